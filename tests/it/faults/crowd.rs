//! Many clients: thousands that idle, and thousands that come at once.

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::raw::{self, PROTOCOL_3_0, Raw};
use crate::support::{Endpoint, Leash, Mode, Server, eventually_or, finish, settled};

/// Memory that an idle client may cost, the optimizer not helping.
const BYTES_PER_CLIENT: u64 = 16 << 10;

/// Raises the limit of descriptors for this process and those it starts. False if the system forbids it.
fn may_open(files: u64) -> bool {
    let limit = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= files);
    if enough(limit.current) {
        return true;
    }
    enough(limit.maximum)
        && setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: limit.maximum }).is_ok()
}

#[tokio::test]
async fn five_thousand_idle_clients() {
    const CLIENTS: usize = 5_000;
    if !may_open(CLIENTS as u64 + 1_000) {
        eprintln!(
            "SKIPPED: the system does not allow {CLIENTS} open files, so {CLIENTS} idle clients are NOT tested"
        );
        return;
    }
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(Mode::Transaction).set("pool.size", 4);
    let leash = setup.set("pool.max_clients", CLIENTS + 1).start().await;
    let endpoint = leash.endpoint();
    assert_eq!(endpoint.connect("first").await.one("SELECT 1").await, "1");
    let before = leash.peak_memory();
    let mut clients: Vec<Raw> = Vec::new();
    while clients.len() < CLIENTS {
        clients.extend(join_all((0..100).map(|_| endpoint.raw("idle"))).await);
    }
    assert_eq!(leash.snapshot().await["clients"], CLIENTS);
    let each = (leash.peak_memory() - before) / CLIENTS as u64;
    println!("{each} bytes for each of {CLIENTS} idle clients");
    assert!(each < BYTES_PER_CLIENT, "{each} bytes for each idle client");
    // They idle, and each of them is served when it wants to be.
    for client in clients.iter_mut().step_by(CLIENTS / 50) {
        assert_eq!(client.one("SELECT 'here'").await, "here");
    }
    settled(&leash).await;
    // Half of them say goodbye, and half just go.
    for (at, mut client) in clients.into_iter().enumerate() {
        if at % 2 == 0 {
            client.send(&raw::terminate()).await;
        }
        client.kill();
    }
    nobody_is_counted(&leash).await;
    let fresh = endpoint.connect("fresh").await;
    assert_eq!(fresh.one("SELECT 1").await, "1");
    fresh.close().await;
    finish(leash, &database).await;
}

/// Two thousand in bursts, more than are let in: each is served or told, nobody hangs, nothing stays.
#[tokio::test]
async fn a_storm_of_connections() {
    const BURSTS: usize = 5;
    const BURST: usize = 400;
    const PLACES: usize = 150;
    if !may_open(BURST as u64 * 2 + 1_000) {
        eprintln!("SKIPPED: the system does not allow {} open files, so a storm is NOT tested", BURST * 2);
        return;
    }
    let database = Server::shared().database().await;
    let setup =
        Leash::on(&database).mode(Mode::Transaction).set("pool.size", 4).expecting(&["client_refused"]);
    let leash = setup.set("pool.max_clients", PLACES).set("pool.wait_timeout", "20s").start().await;
    let endpoint = leash.endpoint();
    let mut refused = 0;
    for _ in 0..BURSTS {
        let ends = join_all((0..BURST).map(|_| come_and_go(&endpoint))).await;
        let served = ends.iter().filter(|end| end.as_str() == "served").count();
        let told = ends.iter().filter(|end| end.as_str() == "53300").count();
        assert_eq!(served + told, BURST, "somebody was neither served nor told: {ends:?}");
        assert!(served >= PLACES.min(BURST) / 2, "only {served} of {BURST} were served");
        refused += told;
        nobody_is_counted(&leash).await;
    }
    assert_eq!(
        leash.metrics().await.sum("clients_refused_total", &[("reason", "too_many_clients")]),
        refused as f64
    );
    settled(&leash).await;
    let fresh = endpoint.connect("fresh").await;
    assert_eq!(fresh.one("SELECT 1").await, "1");
    fresh.close().await;
    finish(leash, &database).await;
}

/// Logs in, asks something, and goes; or the SQLSTATE that it was told instead.
async fn come_and_go(endpoint: &Endpoint) -> String {
    let mut client = Raw::connect(endpoint.port).await;
    client.startup(PROTOCOL_3_0, &[("user", &endpoint.user), ("database", &endpoint.database)]).await;
    client.try_send(&[raw::query("SELECT 1"), raw::terminate()].concat()).await;
    let heard = client.until_closed().await;
    match heard.iter().find(|frame| frame.tag == 'E') {
        Some(error) => error.field('C'),
        None if raw::tags(&heard).ends_with("ZTDCZ") => "served".to_owned(),
        None => format!("heard {}", raw::tags(&heard)),
    }
}

async fn nobody_is_counted(leash: &Leash) {
    eventually_or("no client is counted", async || {
        let clients = leash.snapshot().await["clients"].clone();
        if clients == 0 { Ok(()) } else { Err(clients.to_string()) }
    })
    .await;
}
