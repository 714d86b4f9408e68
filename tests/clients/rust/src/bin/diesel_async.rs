//! diesel over diesel-async: a query builder whose statements are prepared by name and kept.

use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use pgleash_test_clients::{say, tls};

diesel::table! {
    item (id) {
        id -> Integer,
        name -> Text,
        price -> Nullable<Double>,
    }
}

#[derive(Queryable, Insertable, Debug)]
#[diesel(table_name = item)]
struct Item {
    id: i32,
    name: String,
    price: Option<f64>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut conn = connect("").await?;
    conn.batch_execute("CREATE TABLE item (id int PRIMARY KEY, name text NOT NULL UNIQUE, price float8)").await?;
    let items: Vec<_> = (0..50).map(|id| Item { id, name: format!("item {id}"), price: (id % 2 == 0).then_some(0.5) }).collect();
    say("inserted", diesel::insert_into(item::table).values(&items).execute(&mut conn).await?);
    for id in 0..10 {
        say("found", item::table.find(id).first::<Item>(&mut conn).await?);
    }
    transactions(&mut conn).await?;
    crowd().await?;
    let cheap = item::table.filter(item::price.lt(1.0)).order(item::id.desc()).limit(3).load::<Item>(&mut conn).await?;
    say("cheap", cheap);
    cancels(&mut conn).await?;
    sessions().await?;
    hears(&mut conn).await
}

/// Of the crate's own ways to connect none speaks TLS: it is given a connection.
async fn connect(options: &str) -> Result<AsyncPgConnection, Box<dyn std::error::Error>> {
    let (client, connection) = pgleash_test_clients::connect("diesel", options).await?;
    Ok(AsyncPgConnection::try_from_client_and_connection(client, connection).await?)
}

async fn transactions(conn: &mut AsyncPgConnection) -> Result<(), Error> {
    let failed = conn
        .transaction(async |conn| {
            diesel::update(item::table).set(item::price.eq(Some(7.0))).execute(conn).await?;
            let twice = Item { id: 99, name: "item 1".into(), price: None };
            diesel::insert_into(item::table).values(&twice).execute(conn).await?;
            Ok::<_, Error>(())
        })
        .await;
    say("unique", matches!(failed, Err(Error::DatabaseError(DatabaseErrorKind::UniqueViolation, _))));
    say("rolled back", item::table.filter(item::price.eq(7.0)).count().get_result::<i64>(conn).await?);
    let changed = conn
        .transaction(async |conn| {
            diesel::update(item::table.find(3)).set(item::name.eq("renamed")).returning(item::name).get_result::<String>(conn).await
        })
        .await?;
    say("changed", changed);
    Ok(())
}

/// More clients than the pool has connections, with the same statements.
async fn crowd() -> Result<(), Box<dyn std::error::Error>> {
    let sums = try_join_all((0..20).map(|n| async move {
        let mut conn = connect("").await?;
        let mut sum = 0;
        for _ in 0..10 {
            sum += item::table.filter(item::id.gt(n)).count().get_result::<i64>(&mut conn).await?;
        }
        Ok::<_, Box<dyn std::error::Error>>(sum)
    }))
    .await?;
    say("crowd", sums.iter().sum::<i64>());
    Ok(())
}

async fn cancels(conn: &mut AsyncPgConnection) -> Result<(), Box<dyn std::error::Error>> {
    let token = conn.cancel_token();
    let canceller = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        token.cancel_query(tls()).await
    });
    say("cancelled", conn.batch_execute("SELECT pg_sleep(60)").await);
    canceller.await??;
    say("and on", item::table.count().get_result::<i64>(conn).await?);
    Ok(())
}

diesel::define_sql_function! {
    fn current_setting(name: diesel::sql_types::Text) -> diesel::sql_types::Text;
}

diesel::table! {
    place (name) {
        name -> Text,
    }
}

/// Two clients with different parameters on the same server connections, by turns.
async fn sessions() -> Result<(), Box<dyn std::error::Error>> {
    let mut one = connect("-c search_path=one").await?;
    let mut two = connect("-c search_path=two,public").await?;
    for schema in ["one", "two"] {
        one.batch_execute(&format!("CREATE SCHEMA {schema}; CREATE TABLE {schema}.place AS SELECT '{schema}' AS name")).await?;
    }
    two.batch_execute("SET TimeZone = 'Asia/Tokyo'").await?;
    for _ in 0..3 {
        say("by turns", (look(&mut one).await?, look(&mut two).await?));
    }
    let inside = one
        .transaction(async |conn| {
            conn.batch_execute("SET LOCAL search_path = two; SET LOCAL TimeZone = 'Europe/Berlin'").await?;
            conn.batch_execute("CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT 1 AS n").await?;
            conn.batch_execute("SELECT pg_advisory_xact_lock(7) FROM mine").await?;
            look(conn).await
        })
        .await?;
    say("in it", inside);
    say("after it", (look(&mut one).await?, look(&mut two).await?));
    say("gone", two.batch_execute("SELECT n FROM mine").await);
    Ok(())
}

async fn look(conn: &mut AsyncPgConnection) -> Result<(String, String, String), Error> {
    place::table
        .select((place::name, current_setting("search_path"), current_setting("TimeZone")))
        .first(conn)
        .await
}

async fn hears(speaker: &mut AsyncPgConnection) -> Result<(), Box<dyn std::error::Error>> {
    let mut listener = connect("").await?;
    listener.batch_execute("LISTEN news").await?;
    speaker.batch_execute("NOTIFY news, 'it works'").await?;
    let news = std::pin::pin!(listener.notifications_stream()).next().await.transpose()?;
    say("heard", news.map(|news| (news.channel, news.payload)));
    Ok(())
}
