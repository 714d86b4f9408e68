//! The wire between tokio-postgres at home and a relay, against a server that a script plays.

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls};

use super::*;

const READY: &[u8] = b"Z\0\0\0\x05I";
const READY_IN_BLOCK: &[u8] = b"Z\0\0\0\x05T";
const DONE: &[u8] = b"C\0\0\0\x0dSELECT 0\0";
const NEWS: &[u8] = b"S\0\0\0\x11TimeZone\0UTC\0";

/// A transport in memory, and the server's end of it.
fn transport() -> (Io, DuplexStream) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    (Io::Tls(Box::new(ours)), theirs)
}

/// A TCP connection on loopback, and the server's end of it.
async fn tcp() -> (Io, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
    (Io::Tcp(ours.unwrap()), theirs.unwrap().0)
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend((body.len() as u32 + 4).to_be_bytes());
    out.extend(body);
    out
}

/// What a server says after a startup packet.
fn welcome() -> Vec<u8> {
    let mut said = message(b'R', &[0; 4]);
    said.extend(message(b'S', b"server_version\x0015.0\0"));
    said.extend(message(b'K', &[0, 0, 0, 77, 1, 2, 3, 4]));
    said.extend(READY);
    said
}

/// The next frame's tag; its body is thrown away.
async fn hear(server: &mut (impl AsyncReadExt + Unpin)) -> u8 {
    let tag = server.read_u8().await.unwrap();
    let length = server.read_u32().await.unwrap();
    let mut body = vec![0; length as usize - 4];
    server.read_exact(&mut body).await.unwrap();
    tag
}

/// A switch at home whose login is over, with the stream tokio-postgres would have.
async fn logged_in() -> (WireLease, HomeEnd, DuplexStream) {
    let wire_lease = WireLease::new();
    let (io, mut server) = transport();
    let mut home = wire_lease.attach(io, ChannelBinding::none());
    server.write_all(&welcome()).await.unwrap();
    let mut heard = vec![0; welcome().len()];
    home.read_exact(&mut heard).await.unwrap();
    let login = wire_lease.take_login().expect("the server said that it is ready");
    assert_eq!((login.backend_pid, login.cancel_key.as_slice()), (77, &[1, 2, 3, 4][..]));
    assert_eq!(login.parameters["server_version"], "15.0");
    (wire_lease, home, server)
}

/// A client of tokio-postgres on a switch.
struct Connected<S> {
    wire_lease: WireLease,
    client: Client,
    task: JoinHandle<()>,
    server: S,
}

async fn connected<S: AsyncReadExt + AsyncWriteExt + Unpin>(io: Io, mut server: S) -> Connected<S> {
    let wire_lease = WireLease::new();
    let home = wire_lease.attach(io, ChannelBinding::none());
    let mut config = Config::new();
    config.user("app");
    let serving = async {
        let length = server.read_u32().await.unwrap();
        server.read_exact(&mut vec![0; length as usize - 4]).await.unwrap();
        server.write_all(&welcome()).await.unwrap();
    };
    let (connected, ()) = tokio::join!(config.connect_raw(home, NoTls), serving);
    let (client, connection) = connected.unwrap();
    let task = tokio::spawn(async move { drop(connection.await) });
    assert!(wire_lease.take_login().is_some());
    assert!(wire_lease.take_login().is_none(), "only once");
    Connected { wire_lease, client, task, server }
}

impl<S: AsyncReadExt + AsyncWriteExt + Unpin> Connected<S> {
    /// One statement of tokio-postgres, answered by the server.
    async fn is_served(&mut self) {
        let serving = async {
            assert_eq!(hear(&mut self.server).await, b'Q');
            self.server.write_all(&[DONE, READY].concat()).await.unwrap();
        };
        let (served, ()) = tokio::join!(self.client.simple_query("SELECT"), serving);
        served.unwrap();
        settles(|| self.wire_lease.is_quiet_at_home()).await;
    }

    /// One statement of a relay on the lent wire.
    async fn relays(&mut self, wire: &mut Wire, ready: &[u8]) {
        wire.io.write_all(&message(b'Q', b"BEGIN\0")).await.unwrap();
        wire.protocol.sent(b'Q');
        assert_eq!(hear(&mut self.server).await, b'Q');
        self.server.write_all(ready).await.unwrap();
        let mut answer = [0; 6];
        wire.io.read_exact(&mut answer).await.unwrap();
        wire.protocol.received(b'Z', Some(answer[5]));
    }
}

/// Lets the other tasks run until it is so.
async fn settles(mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), waiting).await.expect("it settles in time");
}

#[tokio::test]
async fn home_gets_whole_frames_only() {
    let (_switch, mut home, mut server) = logged_in().await;
    let mut heard = [0; 64];
    for byte in &NEWS[..NEWS.len() - 1] {
        server.write_all(&[*byte]).await.unwrap();
        assert!(home.read(&mut heard).now_or_never().is_none(), "half a frame is no news");
    }
    server.write_all(&NEWS[NEWS.len() - 1..]).await.unwrap();
    server.write_all(&READY[..3]).await.unwrap();
    let read = home.read(&mut heard).now_or_never().unwrap().unwrap();
    assert_eq!(&heard[..read], NEWS, "and not the half one behind it");
}

#[tokio::test]
async fn a_wire_that_is_not_quiet_is_not_lent() {
    let wire_lease = WireLease::new();
    assert_eq!(wire_lease.lend().err(), Some(NotLent::NotHome), "nothing was attached");
    let (io, _server) = transport();
    let home = wire_lease.attach(io, ChannelBinding::none());
    assert_eq!(wire_lease.lend().err(), Some(NotLent::NotQuiet), "login is not over");
    drop(home);
    assert_eq!(wire_lease.lend().err(), Some(NotLent::NotHome), "its owner has dropped it");

    let (wire_lease, mut home, mut server) = logged_in().await;
    assert_eq!(wire_lease.look(), Ok(()));
    home.write_all(&message(b'Q', b"SELECT\0")[..3]).await.unwrap();
    assert_eq!(wire_lease.lend().err(), Some(NotLent::NotQuiet), "half a header was sent");
    home.write_all(&message(b'Q', b"SELECT\0")[3..]).await.unwrap();
    assert_eq!(wire_lease.lend().err(), Some(NotLent::NotQuiet), "an answer is owed");
    server.write_all(&[DONE, READY_IN_BLOCK].concat()).await.unwrap();
    home.read_exact(&mut vec![0; DONE.len() + READY.len()]).await.unwrap();
    assert!(wire_lease.in_transaction_at_home());
    assert_eq!(wire_lease.lend().err(), Some(NotLent::NotQuiet), "a transaction is open");
    home.write_all(&message(b'Q', b"COMMIT\0")).await.unwrap();
    server.write_all(&[DONE, READY].concat()).await.unwrap();
    home.read_exact(&mut [0; 4]).await.unwrap();
    assert_eq!(wire_lease.lend().err(), Some(NotLent::NotQuiet), "home has not heard all of it");
    home.read_exact(&mut vec![0; DONE.len() + READY.len() - 4]).await.unwrap();

    let wire = wire_lease.lend().map_err(|_| "quiet again").unwrap();
    assert_eq!(wire_lease.lend().err(), Some(NotLent::NotHome), "it is lent");
    assert_eq!(wire_lease.look(), Err(NotLent::NotHome));
    assert!(home.read(&mut [0; 8]).now_or_never().is_none(), "home waits while it is lent");
    assert!(home.write(b"X").now_or_never().is_none());
    wire_lease.give_back(wire);
    assert_eq!(wire_lease.look(), Ok(()));
}

#[tokio::test]
async fn a_wire_lent_and_given_back_goes_on() {
    let (io, server) = transport();
    let mut scene = connected(io, server).await;
    for _ in 0..3 {
        scene.is_served().await;
        let mut wire = scene.wire_lease.lend().map_err(|_| "quiet").unwrap();
        scene.relays(&mut wire, READY).await;
        scene.wire_lease.give_back(wire);
        assert!(scene.wire_lease.is_quiet_at_home());
    }
    scene.is_served().await;
}

#[tokio::test]
async fn a_transaction_left_open_by_the_relay_is_known_and_ended_at_home() {
    let (io, server) = transport();
    let mut scene = connected(io, server).await;
    let mut wire = scene.wire_lease.lend().map_err(|_| "quiet").unwrap();
    scene.relays(&mut wire, READY_IN_BLOCK).await;
    scene.wire_lease.give_back(wire);
    assert!(scene.wire_lease.in_transaction_at_home());
    assert_eq!(scene.wire_lease.look(), Err(NotLent::NotQuiet));
    scene.is_served().await; // ROLLBACK
    assert!(scene.wire_lease.lend().is_ok());
}

#[tokio::test]
async fn a_statement_of_home_waits_for_the_wire() {
    let (io, server) = transport();
    let mut scene = connected(io, server).await;
    let wire = scene.wire_lease.lend().map_err(|_| "quiet").unwrap();
    let mut asked = Box::pin(scene.client.simple_query("SELECT"));
    for _ in 0..100 {
        assert!((&mut asked).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    assert!(scene.server.read_u8().now_or_never().is_none(), "nothing of it is on the wire");
    scene.wire_lease.give_back(wire);
    scene.wire_lease.wake_home();
    let serving = async {
        assert_eq!(hear(&mut scene.server).await, b'Q');
        scene.server.write_all(&[DONE, READY].concat()).await.unwrap();
    };
    let (answered, ()) = tokio::join!(asked, serving);
    answered.unwrap();
}

#[tokio::test]
async fn a_server_that_dies_at_home_is_noticed_once_home_is_woken() {
    let (io, server) = tcp().await;
    let mut scene = connected(io, server).await;
    let mut wire = scene.wire_lease.lend().map_err(|_| "quiet").unwrap();
    scene.relays(&mut wire, READY).await;
    scene.wire_lease.give_back(wire);
    drop(scene.server);
    scene.wire_lease.wake_home();
    settles(|| scene.client.is_closed()).await;
    scene.task.await.unwrap();
    assert_eq!(scene.wire_lease.lend().err(), Some(NotLent::NotHome));
}

#[tokio::test]
async fn a_server_that_dies_at_home_is_noticed_by_who_looks() {
    let (io, server) = tcp().await;
    let mut scene = connected(io, server).await;
    let mut wire = scene.wire_lease.lend().map_err(|_| "quiet").unwrap();
    scene.relays(&mut wire, READY).await;
    scene.wire_lease.give_back(wire);
    drop(scene.server);
    settles(|| scene.wire_lease.look().is_err()).await;
    settles(|| scene.client.is_closed()).await;
}

#[tokio::test]
async fn a_server_that_speaks_at_home_is_heard_before_it_is_lent() {
    let (io, server) = transport();
    let mut scene = connected(io, server).await;
    let mut wire = scene.wire_lease.lend().map_err(|_| "quiet").unwrap();
    scene.relays(&mut wire, READY).await;
    scene.wire_lease.give_back(wire);
    scene.server.write_all(NEWS).await.unwrap();
    assert_eq!(scene.wire_lease.look(), Err(NotLent::NotQuiet));
    assert_eq!(
        scene.wire_lease.look(),
        Err(NotLent::NotQuiet),
        "who looks again finds nothing new, and home has not heard"
    );
    settles(|| scene.wire_lease.look().is_ok()).await;
    scene.is_served().await;
}

#[tokio::test]
async fn a_switch_severed_at_home_ends_both_sides() {
    let (io, server) = transport();
    let mut scene = connected(io, server).await;
    scene.wire_lease.sever();
    scene.task.await.unwrap();
    assert!(scene.client.is_closed());
    let mut rest = Vec::new();
    scene.server.read_to_end(&mut rest).await.unwrap();
    assert_eq!(scene.wire_lease.look(), Err(NotLent::NotHome));
}

#[tokio::test]
async fn a_wire_severed_while_it_is_lent_does_not_come_home() {
    let (io, server) = transport();
    let mut scene = connected(io, server).await;
    let wire = scene.wire_lease.lend().map_err(|_| "quiet").unwrap();
    scene.wire_lease.sever();
    scene.task.await.unwrap();
    scene.wire_lease.give_back(wire);
    assert_eq!(scene.wire_lease.lend().err(), Some(NotLent::NotHome));
    assert_eq!(scene.server.read(&mut [0; 8]).await.unwrap(), 0, "the wire is closed");
}

#[tokio::test]
async fn a_server_that_sends_no_protocol_ends_the_connection() {
    let (io, server) = transport();
    let mut scene = connected(io, server).await;
    scene.server.write_all(b"X\0\0\0\x01").await.unwrap();
    scene.task.await.unwrap();
    assert!(scene.client.is_closed());
}

/// Both ends of a TLS connection over TCP; ours as a client is served.
async fn tls_pair() -> (Io, tokio_rustls::client::TlsStream<TcpStream>) {
    let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = key.cert.der().clone();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let ours = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider));
    let ours = ours.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let secret = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let ours = ours.with_single_cert(vec![certificate.clone()], secret).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let theirs = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let theirs = theirs.unwrap().with_root_certificates(roots).with_no_client_auth();
    let (Io::Tcp(server), client) = tcp().await else { unreachable!() };
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(theirs));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(ours));
    let (server, client) = tokio::join!(acceptor.accept(server), connector.connect(name, client));
    (Io::Served(Box::new(server.unwrap())), client.unwrap())
}

#[tokio::test]
async fn the_silence_of_a_client_is_seen_through_its_tls() {
    let (mut io, mut client) = tls_pair().await;
    assert!(io.is_silent() && !io.has_unread() && !io.has_hung_up(), "nothing has been said");

    client.write_all(b"SELECT 1").await.unwrap();
    client.flush().await.unwrap();
    arrived(&io, |io| !io.is_silent()).await;
    let mut half = [0; 4];
    io.read_exact(&mut half).await.unwrap();
    assert!(!io.is_silent(), "the other half is decrypted, and waits though the socket is empty");
    io.read_exact(&mut half).await.unwrap();
    assert!(io.is_silent());

    client.shutdown().await.unwrap();
    drop(client);
    arrived(&io, Io::has_hung_up).await;
    assert!(!io.is_silent(), "an end is no silence");
    assert_eq!(io.read(&mut half).await.unwrap(), 0);
    assert!(!io.is_silent());
}

/// Waits for what is on its way through the system.
async fn arrived(io: &Io, seen: impl Fn(&Io) -> bool) {
    for _ in 0..10_000 {
        if seen(io) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("it does not arrive");
}
