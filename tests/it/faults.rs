//! Faults of every kind. After each: no checkout is held, no backend runs on, the counts are balanced,
//! and a fresh client is served.

mod crowd;
mod half_open;
mod slow_readers;
mod states;

use std::time::{Duration, Instant};

use crate::support::{Database, Endpoint, Leash, eventually_or, nothing_runs, settled};

/// What [`crate::support::finish`] asks at the end, asked in between: all is as if nothing had been.
async fn healed(leash: &Leash, database: &Database, after: &str) {
    println!("healing: {after}");
    settled(leash).await;
    nothing_runs(database).await;
    let fresh = eventually_or("a fresh client is served", async || served(&leash.endpoint()).await);
    assert_eq!(fresh.await, "0", "{after}: nothing of it has stayed");
    settled(leash).await;
}

/// A client that comes, looks whether anybody holds the table or has left something in it, and goes.
async fn served(endpoint: &Endpoint) -> Result<String, String> {
    let served = async {
        let client = endpoint.try_connect("fresh").await?;
        client.batch_execute("BEGIN; LOCK TABLE t; ROLLBACK").await?;
        let count = client.try_one("SELECT count(*) FROM t").await;
        client.close().await;
        count
    };
    served.await.map_err(|error: tokio_postgres::Error| format!("{error:?}"))
}

/// Waits until pgleash's memory has not grown for a while: whatever is on its way has stopped.
async fn standstill(leash: &Leash) -> u64 {
    let (mut peak, mut since) = (leash.peak_memory(), Instant::now());
    while since.elapsed() < Duration::from_millis(700) {
        crate::support::tick().await;
        let now = leash.peak_memory();
        if now != peak {
            (peak, since) = (now, Instant::now());
        }
    }
    peak
}
