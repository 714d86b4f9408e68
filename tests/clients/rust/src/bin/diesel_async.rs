//! diesel over diesel-async: a query builder whose statements are prepared by name and kept.

use diesel::prelude::*;
use diesel::result::{DatabaseErrorKind, Error};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use futures_util::future::try_join_all;
use pgleash_test_clients::{say, url};

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
    let mut conn = AsyncPgConnection::establish(&url("diesel")).await?;
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
    Ok(())
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
        let mut conn = AsyncPgConnection::establish(&url("diesel")).await?;
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
