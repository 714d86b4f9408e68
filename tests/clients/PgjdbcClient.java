import com.zaxxer.hikari.HikariConfig;
import com.zaxxer.hikari.HikariDataSource;
import java.math.BigDecimal;
import java.sql.*;
import java.util.*;
import java.util.concurrent.*;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.copy.CopyManager;

/**
 * pgjdbc with HikariCP: prints what it got, which must not depend on what is between it and the server. The
 * connection comes from the PG* variables. After five uses the driver names a statement on the server.
 */
public class PgjdbcClient {
    public static void main(String[] arguments) throws Exception {
        HikariConfig config = new HikariConfig();
        config.setJdbcUrl(url(""));
        config.setUsername(env("PGUSER"));
        config.setPassword(System.getenv("PGPASSWORD"));
        config.setMaximumPoolSize(6);
        config.setConnectionTimeout(20_000);
        try (HikariDataSource pool = new HikariDataSource(config)) {
            types(pool);
            transactions(pool);
            batches(pool);
            crowd(pool);
            cursors(pool);
            copies(pool);
            changes(pool);
            cancels(pool);
        }
        sessions();
        hears();
        shared();
    }

    static void types(HikariDataSource pool) throws SQLException {
        try (Connection conn = pool.getConnection();
             PreparedStatement ask = conn.prepareStatement(
                 "SELECT ?::int8, ?::text, ?::bytea, ?::numeric, ?::timestamptz, ?::int[], ?::jsonb, ?::uuid, ?::bool")) {
            for (int n = 0; n < 8; n++) { // past the threshold from which on the driver asks in binary
                ask.setLong(1, 1L << 62);
                ask.setString(2, "ß漢");
                ask.setBytes(3, new byte[] {0, -1});
                ask.setBigDecimal(4, new BigDecimal("12.50"));
                ask.setObject(5, java.time.OffsetDateTime.parse("2026-01-02T03:04:05Z"));
                ask.setArray(6, conn.createArrayOf("int4", new Integer[] {1, null, 3}));
                ask.setString(7, "{\"a\": [1, 2]}");
                ask.setObject(8, UUID.fromString("00000000-0000-4000-8000-000000000001"));
                ask.setBoolean(9, true);
                try (ResultSet row = ask.executeQuery()) {
                    row.next();
                    say("types", row.getLong(1), row.getString(2), Arrays.toString(row.getBytes(3)), row.getBigDecimal(4),
                        row.getObject(5, java.time.OffsetDateTime.class).toInstant(), row.getArray(6), row.getString(7),
                        row.getObject(8), row.getBoolean(9));
                }
            }
        }
    }

    static void transactions(HikariDataSource pool) throws SQLException {
        try (Connection conn = pool.getConnection()) {
            run(conn, "CREATE TABLE t (n int PRIMARY KEY, s text)");
            conn.setAutoCommit(false);
            run(conn, "INSERT INTO t VALUES (1, 'one')");
            Savepoint savepoint = conn.setSavepoint("sp");
            try {
                run(conn, "INSERT INTO t VALUES (1, 'again')");
            } catch (SQLException error) {
                say("unique", error.getSQLState());
                conn.rollback(savepoint);
            }
            conn.commit();
            run(conn, "DELETE FROM t");
            conn.rollback();
            conn.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
            say("kept", one(conn, "SELECT count(*) FROM t"), one(conn, "SHOW transaction_isolation"));
            conn.commit();
        }
    }

    static void batches(HikariDataSource pool) throws SQLException {
        try (Connection conn = pool.getConnection();
             PreparedStatement insert = conn.prepareStatement("INSERT INTO t VALUES (?, ?)", Statement.RETURN_GENERATED_KEYS)) {
            conn.setAutoCommit(false);
            for (int n = 2; n < 300; n++) {
                insert.setInt(1, n);
                insert.setString(2, "row " + n);
                insert.addBatch();
            }
            say("batch", Arrays.stream(insert.executeBatch()).sum());
            insert.setInt(1, 300);
            insert.setString(2, "fine");
            insert.addBatch();
            insert.setInt(1, 5);
            insert.addBatch();
            try {
                insert.executeBatch();
            } catch (BatchUpdateException error) {
                say("batch error", error.getSQLState());
            }
            conn.rollback();
            say("after it", one(conn, "SELECT count(*) FROM t"));
            conn.commit();
        }
        try (Connection conn = pool.getConnection(); Statement many = conn.createStatement()) {
            for (int n = 2; n < 300; n++) many.addBatch("INSERT INTO t VALUES (" + n + ", 'row')");
            say("texts", many.executeBatch().length);
        }
    }

    /** More threads than there are connections, here and in the pool behind. */
    static void crowd(HikariDataSource pool) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(10);
        List<Future<Long>> sums = new ArrayList<>();
        for (int n = 0; n < 10; n++) {
            int seed = n;
            sums.add(threads.submit(() -> {
                long sum = 0;
                for (int round = 0; round < 20; round++) {
                    try (Connection conn = pool.getConnection();
                         PreparedStatement ask = conn.prepareStatement("SELECT count(*) + ? FROM t WHERE n > ?")) {
                        ask.setInt(1, seed);
                        ask.setInt(2, round);
                        try (ResultSet row = ask.executeQuery()) {
                            row.next();
                            sum += row.getLong(1);
                        }
                    }
                }
                return sum;
            }));
        }
        List<Long> results = new ArrayList<>();
        for (Future<Long> sum : sums) results.add(sum.get());
        threads.shutdown();
        say("crowd", results);
    }

    static void cursors(HikariDataSource pool) throws SQLException {
        try (Connection conn = pool.getConnection()) {
            conn.setAutoCommit(false);
            try (PreparedStatement ask = conn.prepareStatement("SELECT generate_series(1, 1000)")) {
                ask.setFetchSize(50);
                long sum = 0;
                try (ResultSet rows = ask.executeQuery()) {
                    while (rows.next()) sum += rows.getLong(1);
                }
                say("fetched", sum);
            }
            conn.commit();
        }
    }

    static void copies(HikariDataSource pool) throws Exception {
        try (Connection conn = pool.getConnection()) {
            CopyManager copy = conn.unwrap(PGConnection.class).getCopyAPI();
            StringBuilder lines = new StringBuilder();
            for (int n = 1000; n < 4000; n++) lines.append(n).append("\tcopied\n");
            say("copy in", copy.copyIn("COPY t FROM STDIN", new java.io.StringReader(lines.toString())));
            java.io.StringWriter out = new java.io.StringWriter();
            say("copy out", copy.copyOut("COPY (SELECT n FROM t WHERE n >= 1000 ORDER BY n) TO STDOUT", out), out.toString().length());
        }
    }

    /** The driver asks again by itself when the shape of a prepared statement's result has changed. */
    static void changes(HikariDataSource pool) throws SQLException {
        try (Connection conn = pool.getConnection()) {
            run(conn, "CREATE TABLE changing (a int)");
            run(conn, "INSERT INTO changing VALUES (1)");
            try (PreparedStatement look = conn.prepareStatement("SELECT * FROM changing")) {
                for (int n = 0; n < 8; n++) look.executeQuery().close();
                run(conn, "ALTER TABLE changing ADD COLUMN b text DEFAULT 'new'");
                for (int n = 0; n < 4; n++) {
                    try (ResultSet row = look.executeQuery()) {
                        row.next();
                        say("changed", row.getMetaData().getColumnCount(), row.getString(2));
                    }
                }
            }
        }
    }

    static void cancels(HikariDataSource pool) throws SQLException {
        try (Connection conn = pool.getConnection(); Statement slow = conn.createStatement()) {
            slow.setQueryTimeout(1);
            try {
                slow.execute("SELECT pg_sleep(60)");
            } catch (SQLException error) {
                say("timeout", error.getSQLState());
            }
            say("and on", one(conn, "SELECT 'well'"));
        }
    }

    /** Two clients with different parameters on the same server connections, by turns. */
    static void sessions() throws SQLException {
        try (Connection conn = connect("")) {
            for (String schema : List.of("one", "two")) {
                run(conn, "CREATE SCHEMA " + schema);
                run(conn, "CREATE TABLE " + schema + ".place AS SELECT '" + schema + "' AS name");
            }
        }
        String look = "SELECT concat_ws(' ', name, current_setting('search_path'), current_setting('TimeZone')) FROM place";
        try (Connection one = connect("&currentSchema=one");
             Connection two = connect("&options=-c%20search_path=two%20-c%20TimeZone=Asia/Tokyo");
             PreparedStatement first = one.prepareStatement(look); PreparedStatement second = two.prepareStatement(look)) {
            run(one, "SET TimeZone = 'UTC'"); // the driver asks for the machine's at its login
            for (int n = 0; n < 8; n++) say("by turns", one(first), one(second));
            two.setAutoCommit(false);
            run(two, "SET LOCAL search_path = one");
            run(two, "CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT generate_series(1, 3) AS n");
            run(two, "SELECT pg_advisory_xact_lock(7)");
            say("in it", one(two, look), one(two, "SELECT sum(n) FROM mine"));
            say("locked", one(one, "SELECT pg_try_advisory_xact_lock(7)"));
            two.commit();
            say("unlocked", one(one, "SELECT pg_try_advisory_xact_lock(7)"), one(one, "SELECT to_regclass('mine')"));
            say("after it", one(first), one(second));
            two.commit();
            one.setSchema("two");
            one.setReadOnly(true);
            say("another schema, to be read only", one(first), one(one, "SHOW transaction_read_only"));
        }
    }

    /** More clients that are connected than the pool behind has connections. */
    static void shared() throws SQLException {
        List<Connection> all = new ArrayList<>();
        for (int n = 0; n < 8; n++) all.add(connect(""));
        int sum = 0;
        for (int round = 0; round < 8; round++) {
            for (Connection conn : all) sum += Integer.parseInt(one(conn, "SELECT " + round));
        }
        say("shared", sum, one(all.get(0), "SHOW extra_float_digits"), one(all.get(7), "SHOW application_name"));
        for (Connection conn : all) conn.close();
    }

    static void hears() throws SQLException {
        try (Connection conn = connect(""); Connection speaker = connect("")) {
            run(conn, "LISTEN news");
            run(speaker, "NOTIFY news, 'it works'");
            for (PGNotification news : conn.unwrap(PGConnection.class).getNotifications(10_000)) {
                say("heard", news.getName(), news.getParameter());
            }
        }
    }

    static String url(String more) {
        return "jdbc:postgresql://" + env("PGHOST") + ":" + env("PGPORT") + "/" + env("PGDATABASE")
            + "?ApplicationName=pgjdbc" + System.getenv().getOrDefault("JDBC_OPTIONS", "") + more;
    }

    /** The driver says SET extra_float_digits on each of its connections. */
    static Connection connect(String more) throws SQLException {
        return DriverManager.getConnection(url(more), env("PGUSER"), env("PGPASSWORD"));
    }

    static String one(PreparedStatement ask) throws SQLException {
        try (ResultSet row = ask.executeQuery()) {
            row.next();
            return row.getString(1);
        }
    }

    static void run(Connection conn, String sql) throws SQLException {
        try (Statement statement = conn.createStatement()) {
            statement.execute(sql);
        }
    }

    static String one(Connection conn, String sql) throws SQLException {
        try (Statement statement = conn.createStatement(); ResultSet row = statement.executeQuery(sql)) {
            row.next();
            return row.getString(1);
        }
    }

    static String env(String name) {
        return System.getenv(name);
    }

    static void say(String what, Object... values) {
        System.out.println(what + ": " + Arrays.toString(values));
    }
}
