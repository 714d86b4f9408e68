//! Half-open sockets: the other end is silent and does not close, as when a cable is cut, a host is
//! powered off, or a firewall forgets. A proxy on loopback stops forwarding.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::raw::{self, Raw};
use crate::support::{Database, Endpoint, Leash, Mode, Server, finish, in_both_modes, within};

use super::healed;

in_both_modes! {
    clients_fall_silent,
    the_server_falls_silent,
}

/// Forwards bytes both ways, unless it is told not to.
struct Cable {
    port: u16,
    whole: Arc<watch::Sender<bool>>,
    task: JoinHandle<()>,
}

impl Cable {
    /// To a port on loopback.
    async fn to(port: u16) -> Cable {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().port();
        let whole = Arc::new(watch::Sender::new(true));
        let told = whole.clone();
        let task = tokio::spawn(async move {
            while let Ok((here, _)) = listener.accept().await {
                let Ok(there) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let (from_here, to_here) = here.into_split();
                let (from_there, to_there) = there.into_split();
                tokio::spawn(forward(from_here, to_there, told.subscribe()));
                tokio::spawn(forward(from_there, to_here, told.subscribe()));
            }
        });
        Cable { port: at, whole, task }
    }

    /// From here on nothing passes, not even an end.
    fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// What was held up passes after all.
    fn mend(&self) {
        self.whole.send_replace(true);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut whole: watch::Receiver<bool>,
) {
    let mut chunk = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut chunk).await.unwrap_or(0);
        if whole.wait_for(|whole| *whole).await.is_err() || read == 0 {
            return;
        }
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
}

async fn scene(database: &Database, upstream: u16, mode: Mode) -> Leash {
    let told = &["leak_detected", "client_refused", "upstream_failed", "checkout_timeout", "recycled"];
    let url = Database { port: upstream, ..database.clone() }.url("app");
    let setup = Leash::upstream(&url, &database.name).mode(mode).set("pool.size", 1);
    let setup = setup.set("leaks.idle_in_transaction", "1s").set("leaks.idle_session", "1s");
    let leash =
        setup.set("leaks.budget", "100%/1s").set("pool.wait_timeout", "20s").expecting(told).start().await;
    let client = leash.endpoint().connect("setup").await;
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    client.close().await;
    leash
}

/// Behind a cut cable a client that holds a connection is an idle one, or one that has stopped in
/// mid-exchange: it is taken back at the limit, and whoever waits is served.
async fn clients_fall_silent(mode: Mode) {
    let database = Server::shared().database().await;
    let leash = scene(&database, database.port, mode).await;
    let insert = || raw::query("BEGIN; INSERT INTO t VALUES (1)");
    let batch =
        || [raw::parse("", "INSERT INTO t VALUES (1)"), raw::bind("", &[]), raw::execute(0), raw::flush()];
    let copy = || [raw::query("COPY t FROM STDIN"), raw::copy_data("1\n")].concat();
    let states: [(&str, Vec<u8>, &str); 5] = [
        ("at rest", raw::query("SELECT 1"), "TDCZ"),
        ("in a transaction", insert(), "CCZ"),
        ("in a batch", batch().concat(), "12C"),
        ("in a copy", copy(), "G"),
        ("in mid-message", raw::query("SELECT 1")[..9].to_vec(), ""),
    ];
    for (state, said, reply) in states {
        let cable = Cable::to(leash.port()).await;
        let mut client = Raw::login(&Endpoint { port: cable.port, ..leash.endpoint() }, "silent").await;
        client.send(&said).await;
        for tag in reply.chars() {
            client.expect(tag).await;
        }
        cable.cut();
        healed(&leash, &database, state).await;
        cable.mend();
        client.kill();
    }
    finish(leash, &database).await;
}

/// The server does not answer any more and does not close: a client that gives up gets its slot back
/// to the pool in bounded time, and once the cable is mended a fresh client is served.
async fn the_server_falls_silent(mode: Mode) {
    let database = Server::shared().database().await;
    let cable = Cable::to(database.port).await;
    let leash = scene(&database, cable.port, mode).await;
    for (state, first, said) in [
        ("at rest", "SELECT 1", "SELECT 'never answered'"),
        ("in a transaction", "BEGIN; INSERT INTO t VALUES (1)", "SELECT 'never answered'"),
    ] {
        let mut client = leash.endpoint().raw("patient").await;
        client.query(first).await;
        cable.cut();
        client.send(&raw::query(said)).await;
        leash.pool_when("it is in flight", |pool| pool["holders"][0]["phase"] == "active").await;
        client.kill();
        let bound = Duration::from_secs(25);
        let freed =
            leash.pool_when("the slot is free", |pool| pool["holders"].as_array().is_some_and(Vec::is_empty));
        within(bound, state, freed).await;
        cable.mend();
        healed(&leash, &database, state).await;
    }
    finish(leash, &database).await;
}
