import java.sql.*;
import java.util.*;
import java.util.concurrent.*;

/**
 * A crowd of workers over pgjdbc, each with settings of its own. All connect, then each does ten transactions, reads its
 * settings back in each, and leaves. The connection comes from the PG* variables, the number of workers from
 * CROWD_WORKERS. Ends with an exception if a worker met an error, or something that is not its own.
 */
public class Workers {
    static final int WORKERS = Integer.parseInt(System.getenv("CROWD_WORKERS"));
    static final int TRANSACTIONS = 10;
    static final String LOOK =
        "SELECT place.name, current_setting('search_path'), current_setting('TimeZone'),"
            + " current_setting('statement_timeout'), current_setting('application_name'),"
            + " current_setting('default_transaction_isolation') FROM place WHERE ? = 1";

    public static void main(String[] arguments) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(WORKERS);
        CyclicBarrier together = new CyclicBarrier(WORKERS);
        List<Future<Void>> workers = new ArrayList<>();
        for (int n = 0; n < WORKERS; n++) {
            int number = n;
            workers.add(threads.submit(() -> work(number, together)));
        }
        try {
            for (Future<Void> worker : workers) worker.get(60, TimeUnit.SECONDS);
        } finally {
            threads.shutdownNow();
        }
    }

    static Void work(int n, CyclicBarrier together) throws Exception {
        try (Connection conn = DriverManager.getConnection(url(n), System.getenv("PGUSER"), "")) {
            conn.setTransactionIsolation(isolation(n)); // SET SESSION CHARACTERISTICS
            try (Statement set = conn.createStatement()) {
                set.execute("SET TIME ZONE '" + zone(n) + "'");
                set.execute("SET statement_timeout = " + timeout(n));
            }
            together.await(60, TimeUnit.SECONDS);
            conn.setAutoCommit(false);
            // Past the threshold from which on the driver names them on the server.
            try (PreparedStatement look = conn.prepareStatement(LOOK);
                 PreparedStatement insert = conn.prepareStatement("INSERT INTO note (worker) VALUES (?)")) {
                for (int done = 0; done < TRANSACTIONS; done++) {
                    look.setInt(1, 1);
                    check(n, look);
                    insert.setInt(1, n);
                    insert.executeUpdate();
                    conn.commit();
                }
            }
        }
        return null;
    }

    static void check(int n, PreparedStatement look) throws SQLException {
        String isolation = isolation(n) == Connection.TRANSACTION_REPEATABLE_READ ? "repeatable read" : "read committed";
        List<String> own = List.of("w" + n, "w" + n, zone(n), timeout(n) + "ms", "worker " + n, isolation);
        try (ResultSet row = look.executeQuery()) {
            row.next();
            List<String> found = new ArrayList<>();
            for (int column = 1; column <= own.size(); column++) found.add(row.getString(column));
            if (!found.equals(own)) throw new AssertionError("worker " + n + " found " + found + " instead of " + own);
        }
    }

    static int isolation(int n) {
        return n % 2 == 0 ? Connection.TRANSACTION_READ_COMMITTED : Connection.TRANSACTION_REPEATABLE_READ;
    }

    /** Ten minutes and some milliseconds, so that the server does not say it in minutes. */
    static int timeout(int n) {
        return 600_001 + n;
    }

    static String zone(int n) {
        return String.format("Etc/GMT%+d", n % 25 - 12);
    }

    static String url(int n) {
        String where = System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        return "jdbc:postgresql://" + where + "?currentSchema=w" + n + "&ApplicationName=worker%20" + n;
    }
}
