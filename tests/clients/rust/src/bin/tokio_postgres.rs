//! tokio-postgres: statements prepared by name, pipelined, in transactions, by many at once.

use futures_util::future::{join_all, try_join_all};
use futures_util::{SinkExt, StreamExt, TryStreamExt, stream};
use std::io::Cursor;

use pgleash_test_clients::{say, tls};
use tokio_postgres::{AsyncMessage, Client, Error, SimpleQueryMessage, ToStatement};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut client = connect().await?;
    client.batch_execute("CREATE TABLE t (n int PRIMARY KEY, s text)").await?;
    transactions(&mut client).await?;
    pipelines(&client).await?;
    portals_and_copies(&mut client).await?;
    changes(&client).await?;
    crowd().await?;
    cancels(&client).await?;
    sessions().await?;
    hears(&client).await?;
    Ok(())
}

async fn connect() -> Result<Client, Error> {
    connect_with("").await
}

async fn connect_with(options: &str) -> Result<Client, Error> {
    let (client, connection) = pgleash_test_clients::connect("tokio-postgres", options).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn transactions(client: &mut Client) -> Result<(), Error> {
    let insert = client.prepare("INSERT INTO t VALUES ($1, $2)").await?;
    let transaction = client.transaction().await?;
    transaction.execute(&insert, &[&1, &"one"]).await?;
    transaction.commit().await?;
    let again = client.execute(&insert, &[&1, &"two"]).await.unwrap_err();
    say("unique", again.code().map(|code| code.code().to_owned()));
    let transaction = client.transaction().await?;
    transaction.execute(&insert, &[&2, &"gone"]).await?;
    transaction.rollback().await?;
    let rows = client.query("SELECT n, s FROM t", &[]).await?;
    say("kept", rows.iter().map(|row| (row.get::<_, i32>(0), row.get::<_, Option<String>>(1))).collect::<Vec<_>>());
    Ok(())
}

async fn pipelines(client: &Client) -> Result<(), Error> {
    let (add, divide) = (client.prepare("SELECT $1::int + 1").await?, client.prepare("SELECT 10 / $1::int").await?);
    let sums = try_join_all((0..50).map(|n| {
        let add = &add;
        async move { client.query_one(add, &[&n]).await.map(|row| row.get::<_, i32>(0)) }
    }))
    .await?;
    say("pipelined", sums.iter().sum::<i32>());
    let mixed = join_all([5, 0, 2].map(|n| {
        let divide = &divide;
        async move {
            let row = client.query_one(divide, &[&n]).await;
            row.map(|row| row.get::<_, i32>(0)).map_err(|error| error.code().map(|code| code.code().to_owned()))
        }
    }))
    .await;
    say("an error among others", mixed);
    // Each is closed again when it is dropped.
    for n in 0..30 {
        let statement = client.prepare(&format!("SELECT {n}, $1::text")).await?;
        client.query(&statement, &[&"x"]).await?;
    }
    let simple = client.simple_query("SELECT 1; SELECT 'two'").await?;
    say("simple", simple.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count());
    Ok(())
}

async fn portals_and_copies(client: &mut Client) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    let portal = transaction.bind("SELECT generate_series(1, 10)", &[]).await?;
    let (first, rest) = (transaction.query_portal(&portal, 4).await?, transaction.query_portal(&portal, 0).await?);
    say("portal", (first.len(), rest.len()));
    transaction.commit().await?;
    let mut sink = Box::pin(client.copy_in::<_, Cursor<String>>("COPY t FROM STDIN").await?);
    for n in 100..3000 {
        sink.send(Cursor::new(format!("{n}\trow\n"))).await?;
    }
    say("copied in", sink.as_mut().finish().await?);
    let out = client.copy_out("COPY t TO STDOUT").await?;
    say("copied out", out.map_ok(|bytes| bytes.len()).try_fold(0, |sum, n| async move { Ok(sum + n) }).await?);
    Ok(())
}

/// Prepared before the change: an error is right, rows of another shape are not.
async fn changes(client: &Client) -> Result<(), Error> {
    client.batch_execute("CREATE TABLE changing (a int); INSERT INTO changing VALUES (1)").await?;
    let look = client.prepare("SELECT * FROM changing").await?;
    say("before", client.query(&look, &[]).await?[0].len());
    client.batch_execute("ALTER TABLE changing ADD COLUMN b text DEFAULT 'new'").await?;
    let after = client.query(&look, &[]).await.map(|rows| rows[0].len());
    say("after", after.map_err(|error| error.code().map(|code| code.code().to_owned())));
    say("asked again", client.query("SELECT * FROM changing", &[]).await?[0].len());
    Ok(())
}

/// More clients than the pool has connections, with the same statements.
async fn crowd() -> Result<(), Error> {
    let sums = try_join_all((0..30_i64).map(|n| async move {
        let client = connect().await?;
        let count = client.prepare("SELECT count(*) + $1 FROM t").await?;
        let mut sum = 0;
        for _ in 0..10 {
            sum += client.query_one(&count, &[&n]).await?.get::<_, i64>(0);
        }
        Ok::<_, Error>(sum)
    }))
    .await?;
    say("crowd", sums.iter().sum::<i64>());
    Ok(())
}

async fn cancels(client: &Client) -> Result<(), Error> {
    let token = client.cancel_token();
    let canceller = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        token.cancel_query(tls()).await
    });
    let slow = client.batch_execute("SELECT pg_sleep(60)").await.unwrap_err();
    canceller.await.expect("it does not panic")?;
    say("cancelled", slow.code().map(|code| code.code().to_owned()));
    let stream = client.query_raw("SELECT generate_series(1, 5)", std::iter::empty::<i32>()).await?;
    say("and on", stream.count().await);
    Ok(())
}

/// Two clients with different parameters on the same server connections, by turns.
async fn sessions() -> Result<(), Error> {
    let mut one = connect_with("-c search_path=one").await?;
    let two = connect_with("-c search_path=two,public -c TimeZone=Asia/Tokyo").await?;
    for schema in ["one", "two"] {
        one.batch_execute(&format!("CREATE SCHEMA {schema}; CREATE TABLE {schema}.place AS SELECT '{schema}' AS name")).await?;
    }
    two.batch_execute("SET DateStyle = 'German'").await?;
    let sql = "SELECT concat_ws(' ', name, current_setting('search_path'), current_setting('TimeZone'), date '2026-01-02') FROM place";
    let looks = [one.prepare(sql).await?, two.prepare(sql).await?];
    for _ in 0..3 {
        say("by turns", (text(&one, &looks[0]).await?, text(&two, &looks[1]).await?));
    }
    let transaction = one.transaction().await?;
    transaction.batch_execute("SET LOCAL search_path = two; SET LOCAL TimeZone = 'Europe/Berlin'").await?;
    transaction.batch_execute("CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT generate_series(1, 3) AS n").await?;
    let sum = transaction.query_one("SELECT sum(n), pg_advisory_xact_lock(7)::text FROM mine", &[]).await?;
    say("in it", (text(transaction.client(), sql).await?, sum.get::<_, i64>(0)));
    let lock = "SELECT pg_try_advisory_xact_lock(7)";
    say("locked", two.query_one(lock, &[]).await?.get::<_, bool>(0));
    transaction.commit().await?;
    say("unlocked", two.query_one(lock, &[]).await?.get::<_, bool>(0));
    say("after it", (text(&one, &looks[0]).await?, text(&two, &looks[1]).await?));
    one.batch_execute("CREATE TEMP TABLE kept AS SELECT 1 AS n; RESET search_path").await?;
    say("kept", one.query_one("SELECT current_setting('search_path'), n FROM kept", &[]).await?.get::<_, String>(0));
    Ok(())
}

async fn text<T: ToStatement + ?Sized>(client: &Client, statement: &T) -> Result<String, Error> {
    client.query_one(statement, &[]).await.map(|row| row.get(0))
}

async fn hears(speaker: &Client) -> Result<(), Error> {
    let (listener, mut connection) = pgleash_test_clients::connect("tokio-postgres", "").await?;
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = stream::poll_fn(move |cx| connection.poll_message(cx));
        while let Some(Ok(message)) = messages.next().await {
            if let AsyncMessage::Notification(news) = message {
                drop(sender.send(news.payload().to_owned()));
            }
        }
    });
    listener.batch_execute("LISTEN news").await?;
    speaker.execute("SELECT pg_notify('news', $1)", &[&"it works"]).await?;
    say("heard", heard.recv().await);
    Ok(())
}
