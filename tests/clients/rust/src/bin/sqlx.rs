//! sqlx: a pool of its own, statements cached by name on each of its connections.

use futures_util::TryStreamExt;
use futures_util::future::try_join_all;
use pgleash_test_clients::{say, url};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener, PgPool, PgPoolOptions};
use sqlx::{Acquire, ConnectOptions, Connection, Error, Row};

/// Password, `sslmode` and authority the driver takes from the environment itself.
#[tokio::main]
async fn main() -> Result<(), Error> {
    let pool = PgPoolOptions::new().max_connections(6).test_before_acquire(true).connect(&url("sqlx")).await?;
    types(&pool).await?;
    transactions(&pool).await?;
    crowd(&pool).await?;
    streams(&pool).await?;
    changes(&pool).await?;
    hears(&pool).await?;
    sessions().await?;
    pool.close().await;
    Ok(())
}

fn code(error: &Error) -> Option<String> {
    error.as_database_error().and_then(|error| error.code()).map(Into::into)
}

async fn types(pool: &PgPool) -> Result<(), Error> {
    for _ in 0..3 {
        let row = sqlx::query("SELECT $1::int8, $2::text, $3::bytea, $4::int[], NULL::text, true")
            .bind(1_i64 << 62)
            .bind("ß漢")
            .bind(vec![0_u8, 255])
            .bind(vec![Some(1), None, Some(3)])
            .fetch_one(pool)
            .await?;
        let (ints, none): (Vec<Option<i32>>, Option<String>) = (row.get(3), row.get(4));
        say("types", (row.get::<i64, _>(0), row.get::<String, _>(1), row.get::<Vec<u8>, _>(2), ints, none));
    }
    Ok(())
}

async fn transactions(pool: &PgPool) -> Result<(), Error> {
    sqlx::raw_sql("CREATE TABLE t (n int PRIMARY KEY, s text)").execute(pool).await?;
    let mut outer = pool.begin().await?;
    sqlx::query("INSERT INTO t VALUES ($1, $2)").bind(1).bind("one").execute(&mut *outer).await?;
    let mut inner = outer.begin().await?;
    let again = sqlx::query("INSERT INTO t VALUES ($1, $2)").bind(1).bind("two").execute(&mut *inner).await;
    say("unique", code(&again.unwrap_err()));
    inner.rollback().await?;
    outer.commit().await?;
    let mut dropped = pool.begin().await?;
    sqlx::query("DELETE FROM t").execute(&mut *dropped).await?;
    drop(dropped); // rolls back on the way home
    say("kept", sqlx::query_as::<_, (i32, String)>("SELECT n, s FROM t").fetch_all(pool).await?);
    Ok(())
}

async fn crowd(pool: &PgPool) -> Result<(), Error> {
    let sums = try_join_all((0..40_i64).map(|n| async move {
        let mut sum = 0;
        for round in 0..5_i64 {
            let text = if round % 2 == 0 { "SELECT count(*) + $1 FROM t" } else { "SELECT $1 * 2" };
            sum += sqlx::query_scalar::<_, i64>(text).bind(n).fetch_one(pool).await?;
        }
        Ok::<_, Error>(sum)
    }))
    .await?;
    say("crowd", sums.iter().sum::<i64>());
    Ok(())
}

async fn streams(pool: &PgPool) -> Result<(), Error> {
    let rows = sqlx::query("SELECT generate_series(1, 2000)").fetch(pool);
    say("streamed", rows.try_fold(0, |sum, row| async move { Ok(sum + i64::from(row.get::<i32, _>(0))) }).await?);
    // Given up in the middle.
    let mut rows = sqlx::query("SELECT generate_series(1, 100000)").fetch(pool);
    rows.try_next().await?;
    drop(rows);
    say("and on", sqlx::query_scalar::<_, String>("SELECT 'well'").fetch_one(pool).await?);
    Ok(())
}

/// Prepared before the change: an error is right, rows of another shape are not.
async fn changes(pool: &PgPool) -> Result<(), Error> {
    sqlx::raw_sql("CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)").execute(pool).await?;
    let mut conn = pool.acquire().await?;
    let look = "SELECT * FROM changing";
    say("before", sqlx::query(look).fetch_one(&mut *conn).await?.len());
    sqlx::raw_sql("ALTER TABLE changing ADD COLUMN b text DEFAULT 'new'").execute(&mut *conn).await?;
    let after = sqlx::query(look).fetch_one(&mut *conn).await.map(|row| row.len());
    say("after", after.map_err(|error| code(&error)));
    Ok(())
}

async fn hears(pool: &PgPool) -> Result<(), Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen("news").await?;
    sqlx::query("SELECT pg_notify('news', $1)").bind("it works").execute(pool).await?;
    say("heard", listener.recv().await?.payload().to_owned());
    Ok(())
}

/// Two clients with different parameters on the same server connections, by turns.
async fn sessions() -> Result<(), Error> {
    let options: PgConnectOptions = url("sqlx").parse()?;
    let mut one = options.clone().options([("search_path", "one")]).connect().await?;
    let mut two = options.options([("search_path", "two,public"), ("work_mem", "5MB")]).connect().await?;
    for schema in ["one", "two"] {
        let made = format!("CREATE SCHEMA {schema}; CREATE TABLE {schema}.place AS SELECT '{schema}' AS name");
        sqlx::raw_sql(sqlx::AssertSqlSafe(made)).execute(&mut one).await?;
    }
    sqlx::raw_sql("SET TimeZone = 'Asia/Tokyo'").execute(&mut two).await?;
    for _ in 0..3 {
        say("by turns", (look(&mut one).await?, look(&mut two).await?));
    }
    let mut transaction = Connection::begin(&mut one).await?;
    sqlx::query("SET LOCAL search_path = two").execute(&mut *transaction).await?;
    sqlx::query("CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT generate_series(1, 3) AS n").execute(&mut *transaction).await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(7_i64).execute(&mut *transaction).await?;
    let sum: i64 = sqlx::query_scalar("SELECT sum(n) FROM mine").fetch_one(&mut *transaction).await?;
    say("in it", (look(&mut transaction).await?, sum));
    say("locked", try_lock(&mut two).await?);
    transaction.commit().await?;
    say("unlocked", try_lock(&mut two).await?);
    say("after it", (look(&mut one).await?, look(&mut two).await?));
    one.close().await?;
    two.close().await
}

async fn look(conn: &mut PgConnection) -> Result<(String, String, String), Error> {
    let sql = "SELECT name, current_setting('search_path'), current_setting('TimeZone') FROM place";
    sqlx::query_as(sql).fetch_one(conn).await
}

async fn try_lock(conn: &mut PgConnection) -> Result<bool, Error> {
    sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(7_i64).fetch_one(conn).await
}
