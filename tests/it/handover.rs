//! An upgrade: the next process takes over, and no client is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;

use crate::support::raw::Raw;
use crate::support::{
    Database, Endpoint, Leash, Mode, Server, eventually, finish, in_both_modes, nobody_is_left, within,
};

in_both_modes! {
    an_upgrade_drops_no_client,
    whoever_is_in_the_queue_at_the_end_hears_why,
}

/// Connects, asks, and disconnects without a pause until it is told to stop; how often it was served.
async fn hammer(endpoint: Endpoint, stop: Arc<AtomicBool>, served: Arc<AtomicUsize>) {
    while !stop.load(Ordering::Relaxed) {
        let client = endpoint.connect("without pause").await;
        assert_eq!(client.one("SELECT 'served'").await, "served");
        client.close().await;
        served.fetch_add(1, Ordering::Relaxed);
    }
}

async fn start(database: &Database, mode: Mode, path: &str, ports: (u16, u16)) -> Leash {
    let setup = Leash::on(database).mode(mode).set("handover", path).set("drain_timeout", "20s");
    let setup = setup.set("listen", format!("127.0.0.1:{}", ports.0));
    setup.set("admin", format!("127.0.0.1:{}", ports.1)).start().await
}

async fn an_upgrade_drops_no_client(mode: Mode) {
    let database = Server::shared().database().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock").display().to_string();
    let mut current = start(&database, mode, &path, (0, 0)).await;
    let ports = (current.port(), current.admin_port());
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let hammers: Vec<_> = (0..6)
        .map(|_| tokio::spawn(hammer(current.endpoint(), Arc::clone(&stop), Arc::clone(&served))))
        .collect();
    let more = async || {
        let before = served.load(Ordering::Relaxed);
        eventually("more are served", async || (served.load(Ordering::Relaxed) > before + 20).then_some(()))
            .await;
    };
    for _ in 0..3 {
        more().await;
        let stays = current.endpoint().connect("stays").await;
        stays.batch_execute("BEGIN").await.unwrap();
        let mut next = start(&database, mode, &path, ports).await;
        next.event("took_over", |_| true).await;
        current.event("handed_over", |_| true).await;
        more().await;
        // Who is with the old process is left in peace there.
        assert_eq!(stays.one("SELECT 'still here'").await, "still here");
        stays.batch_execute("COMMIT").await.unwrap();
        assert_eq!(stays.one("SELECT 'and here'").await, "and here");
        assert_eq!(current.events_named("draining").len(), 0);
        stays.close().await;
        let ended = within(Duration::from_secs(15), "the old process ends", current.wait_exit()).await;
        assert_eq!(ended.code(), Some(0), "{}", current.stderr());
        current.assert_calm();
        assert_eq!(next.get("/readyz").await.0, 200);
        current = next;
    }
    stop.store(true, Ordering::Relaxed);
    for hammer in join_all(hammers).await {
        hammer.expect("nobody saw an error");
    }
    finish(current, &database).await;
    assert!(!directory.path().join("handover.sock").exists(), "the last one cleans up");
}

/// Connections that the system has accepted and pgleash has not.
async fn whoever_is_in_the_queue_at_the_end_hears_why(mode: Mode) {
    let database = Server::shared().database().await;
    let mut leash = Leash::on(&database).mode(mode).expecting(&["client_refused"]).start().await;
    leash.signal("STOP");
    let endpoint = leash.endpoint();
    let mut queued = join_all((0..20).map(|_| async {
        let mut client = Raw::connect(endpoint.port).await;
        let parameters = [("user", endpoint.user.as_str()), ("database", &endpoint.database)];
        client.startup(crate::support::raw::PROTOCOL_3_0, &parameters).await;
        client
    }))
    .await;
    leash.sigterm();
    leash.signal("CONT");
    for client in &mut queued {
        assert_eq!(client.fatal().await.field('C'), "57P01");
    }
    assert_eq!(leash.wait_exit().await.code(), Some(0));
    leash.assert_calm();
    nobody_is_left(&database).await;
    database.remove().await;
}

#[tokio::test]
async fn a_second_one_without_handover_is_told_that_the_port_is_taken() {
    let database = Server::shared().database().await;
    let leash = Leash::on(&database).start().await;
    let second = Leash::on(&database).set("listen", format!("127.0.0.1:{}", leash.port()));
    let (code, said) = second.run().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("another process has the port"), "{said}");
    finish(leash, &database).await;
}
