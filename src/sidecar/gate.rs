//! The front door: first packets, login, cancel. Floor 4.
//!
//! Every read has a bound and a deadline. In this version a client is believed: the configuration
//! lets it in from loopback or a Unix socket only.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::SimpleQueryMessage;

use crate::checkout::Checkout;
use crate::dial::{is_unreachable, prepare_socket};
use crate::event::{Event, Refusal};
use crate::ids::{Holder, PoolKey, SessionId};
use crate::pool::{CheckoutError, WatchedPool, describe};
use crate::switch::Io;
use crate::wire::frame::Direction;
use crate::wire::reply::{self, SqlState};
use crate::wire::startup::{self, FirstPacket, Startup, StartupError};
use crate::wire::vars;

use super::Hub;
use super::cancel::CancelKey;
use super::pipe::Pipe;
use super::session::{Place, Session, Shared, draining, refusal};

/// How long a client may take to say who it is.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client that is turned away may take to hear it.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Somebody at the door.
pub struct Caller {
    io: Io,
    from: String,
}

impl Caller {
    /// Over TCP.
    pub fn tcp(stream: TcpStream, from: SocketAddr) -> Self {
        // A socket whose options cannot be set has just died; its next read tells.
        let _ = prepare_socket(&stream);
        Self { io: Io::Tcp(stream), from: from.to_string() }
    }

    /// Over a Unix socket.
    pub fn unix(stream: UnixStream) -> Self {
        Self { io: Io::Unix(stream), from: "unix".to_owned() }
    }
}

/// Why a caller is turned away.
enum Turned {
    /// It hung up, or the system did.
    Gone,
    /// It did not say who it is in time.
    Late,
    Packet(StartupError),
    TooManyClients(usize),
    TooManyCallers,
    TooManyPools,
    TooManyCancels,
    Draining,
    Checkout(CheckoutError),
}

impl From<io::Error> for Turned {
    fn from(_: io::Error) -> Self {
        Turned::Gone
    }
}

impl From<StartupError> for Turned {
    fn from(error: StartupError) -> Self {
        Turned::Packet(error)
    }
}

/// Lets a caller in, and serves it to its end; or passes its cancel request on; or turns it away.
pub async fn admit(hub: Arc<Hub>, mut caller: Caller) {
    let Some(doorstep) = hub.doorstep() else { return side_door(&hub, caller).await };
    let first = tokio::time::timeout(LOGIN_TIMEOUT, first_packet(&mut caller.io)).await;
    drop(doorstep);
    let startup = match first {
        Ok(Ok(FirstPacket::Startup(startup))) => startup,
        Ok(Ok(FirstPacket::Cancel { pid, secret })) => return cancel(&hub, caller, pid, &secret).await,
        // Answered within first_packet.
        Ok(Ok(FirstPacket::Ssl | FirstPacket::Gss)) => return,
        Ok(Err(turned)) => return turn_away(&hub, caller, turned).await,
        Err(_) => return turn_away(&hub, caller, Turned::Late).await,
    };
    let Some((id, shared)) = hub.enter(CancelKey::new(startup.spoken_minor())) else {
        let limit = hub.config.load().max_clients;
        return turn_away(&hub, caller, Turned::TooManyClients(limit)).await;
    };
    let place = Place { hub: Arc::clone(&hub), session: id };
    match log_in(&hub, &mut caller, &startup, id, &shared).await {
        Ok((pool, holder)) => {
            let vars = hub.shared_vars(settings_of(&startup));
            let up = Pipe::new(Direction::Frontend);
            let own = Arc::clone(&vars);
            let (place, client) = (Some(place), caller.io);
            Session { place, hub, pool, holder, shared, client, up, vars, own }.serve().await;
        }
        Err(turned) => {
            drop(place);
            turn_away(&hub, caller, turned).await;
        }
    }
}

/// There is no room at the door. Only a cancel request is let through: it may be what makes room.
async fn side_door(hub: &Hub, mut caller: Caller) {
    if let Some(_place) = hub.desk.side_door() {
        let first = tokio::time::timeout(LAST_WORD, first_packet(&mut caller.io)).await;
        if let Ok(Ok(FirstPacket::Cancel { pid, secret })) = first {
            return cancel(hub, caller, pid, &secret).await;
        }
    }
    turn_away(hub, caller, Turned::TooManyCallers).await;
}

/// Reads first packets until one is not about encryption, which is declined.
async fn first_packet(io: &mut Io) -> Result<FirstPacket, Turned> {
    // SSLRequest and GSSENCRequest are each answered once, as Postgres does; more is a loop.
    let mut declined = Vec::new();
    loop {
        let mut length = [0; 4];
        io.read_exact(&mut length).await?;
        let mut body = vec![0; startup::body_length(length)?];
        io.read_exact(&mut body).await?;
        match startup::parse(&body)? {
            again @ (FirstPacket::Ssl | FirstPacket::Gss) if declined.contains(&again) => {
                return Err(StartupError::Unsupported("encryption was asked for again").into());
            }
            asked @ (FirstPacket::Ssl | FirstPacket::Gss) => {
                decline(io).await?;
                declined.push(asked);
            }
            other => return Ok(other),
        }
    }
}

/// Says no to encryption. What was sent before the answer may be anybody's, and is refused.
async fn decline(io: &mut Io) -> Result<(), Turned> {
    let hurried = io.has_unread();
    io.write_all(b"N").await?;
    if hurried {
        let why = "bytes were sent before the request for encryption was answered";
        return Err(StartupError::Malformed(why).into());
    }
    Ok(())
}

/// Finds or opens the pool, and greets the client with what its server said.
async fn log_in(
    hub: &Arc<Hub>,
    caller: &mut Caller,
    startup: &Startup,
    id: SessionId,
    shared: &Arc<Shared>,
) -> Result<(WatchedPool, Arc<Holder>), Turned> {
    if hub.is_draining() {
        return Err(Turned::Draining);
    }
    let holder = Arc::new(Holder {
        session: id,
        app: startup.settings.get("application_name").cloned().unwrap_or_default(),
        user: startup.user.clone(),
        database: startup.database.clone(),
        client: caller.from.clone(),
    });
    let key = PoolKey::new(&startup.database, &startup.user);
    let pool = match hub.known_pool(&key) {
        Some(pool) => pool,
        None => open_pool(hub, &key, &holder, shared).await?,
    };
    let mut greeting = Vec::with_capacity(512);
    if startup.needs_negotiation() {
        let minor = startup.spoken_minor();
        reply::negotiate_protocol_version(&mut greeting, minor, &startup.unknown_options);
    }
    reply::authentication_ok(&mut greeting);
    let welcome = pool.welcome().unwrap_or_default();
    for (name, reported) in &*welcome {
        let value = match startup.settings.get(&name.to_ascii_lowercase()) {
            // The server's report is about pgleash.
            None if name == APPLICATION_NAME => String::new(),
            None => reported.clone(),
            Some(asked) if !is_respelled(name, asked) => asked.clone(),
            Some(asked) => spell(hub, &pool, (name, asked, reported), &holder, shared).await?,
        };
        reply::parameter_status(&mut greeting, name, &value);
    }
    reply::backend_key_data(&mut greeting, id.0, shared.key.bytes());
    reply::ready_for_query(&mut greeting);
    caller.io.write_all(&greeting).await?;
    Ok((pool, holder))
}

const APPLICATION_NAME: &str = "application_name";
/// Parameters whose values the server spells in its own way, and that drivers decode by.
const SPELLED: [&str; 3] = ["DateStyle", "client_encoding", "IntervalStyle"];

/// Whether the server may report another value than it was asked for. A name is cut at 63 bytes, and
/// what is not printable ASCII in it is replaced, in one way or another by the server's version.
fn is_respelled(name: &str, asked: &str) -> bool {
    let is_plain = || asked.len() < 64 && asked.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    SPELLED.contains(&name) || (name == APPLICATION_NAME && !is_plain())
}

/// How the server spells the value that a client asked for: it is asked once for each value.
async fn spell(
    hub: &Hub,
    pool: &WatchedPool,
    (name, asked, reported): (&str, &str, &str),
    holder: &Arc<Holder>,
    shared: &Arc<Shared>,
) -> Result<String, Turned> {
    let bare = |text: &str| text.replace(['-', '_', ' '], "").to_ascii_lowercase();
    if bare(asked) == bare(reported) {
        return Ok(reported.to_owned());
    }
    let key = (name.to_owned(), asked.to_owned(), reported.to_owned());
    if let Some(known) = hub.spelling(&key) {
        return Ok(known);
    }
    let checkout = pool.checkout(holder, &shared.tether).await.map_err(Turned::Checkout)?;
    let answer = checkout.client().simple_query(&vars::spelling(name, asked)).await;
    give_back(checkout, shared);
    let rows = answer.map_err(|error| Turned::Checkout(CheckoutError::Upstream(error)))?;
    let spelled = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    let spelled = spelled.unwrap_or_else(|| reported.to_owned());
    hub.learn_spelling(key, &spelled);
    Ok(spelled)
}

/// Gives back a connection on which only tokio-postgres has spoken.
fn give_back(checkout: Checkout, shared: &Shared) {
    // It is quiet; if it is not, dropping the checkout closes it.
    if shared.tether.activity.finish().is_ok()
        && let Ok(wire) = checkout.lend()
    {
        checkout.come_home(wire);
    }
}

/// Opens the first connection of a pool: only a server that lets us in makes a pool.
async fn open_pool(
    hub: &Arc<Hub>,
    key: &PoolKey,
    holder: &Arc<Holder>,
    shared: &Arc<Shared>,
) -> Result<WatchedPool, Turned> {
    let pool = hub.new_pool(key).ok_or(Turned::TooManyPools)?;
    let checkout = pool.checkout(holder, &shared.tether).await.map_err(Turned::Checkout)?;
    let pool = hub.enter_pool(pool);
    give_back(checkout, shared);
    Ok(pool)
}

/// The parameters that follow the client. Without a name of its own it has an empty one, as it would
/// have with the server, and not ours.
fn settings_of(startup: &Startup) -> crate::wire::vars::Vars {
    let mut settings = startup.settings.clone();
    settings.entry(APPLICATION_NAME.to_owned()).or_default();
    settings
}

/// Passes a cancel request on to the server connection that the session has now, if it has one.
/// Whoever asks is told nothing, as Postgres tells nothing.
async fn cancel(hub: &Hub, caller: Caller, pid: u32, secret: &[u8]) {
    let Some(session) = hub.session(pid, secret) else { return };
    if !hub.desk.serve(&session).await {
        turn_away(hub, caller, Turned::TooManyCancels).await;
    }
}

async fn turn_away(hub: &Hub, mut caller: Caller, turned: Turned) {
    let (reason, word) = match &turned {
        Turned::Gone => return,
        Turned::Late => (Refusal::LoginTimeout, None),
        Turned::Packet(error @ StartupError::Unsupported(_) | error @ StartupError::Version(..)) => (
            Refusal::Unsupported,
            Some(reply::fatal(SqlState::FeatureNotSupported, &error.to_string(), None)),
        ),
        Turned::Packet(error @ StartupError::NoUser) => {
            (Refusal::Protocol, Some(reply::fatal(SqlState::InvalidAuthorization, &error.to_string(), None)))
        }
        Turned::Packet(error) => {
            (Refusal::Protocol, Some(reply::fatal(SqlState::ProtocolViolation, &error.to_string(), None)))
        }
        Turned::TooManyClients(_) | Turned::TooManyCallers | Turned::TooManyPools => {
            let hint = "Raise pool.max_clients, or look for clients that do not disconnect.";
            let word = reply::fatal(SqlState::TooManyConnections, &turned.to_string(), Some(hint));
            (Refusal::TooManyClients, Some(word))
        }
        Turned::TooManyCancels => (Refusal::TooManyClients, None),
        Turned::Draining => (Refusal::Draining, Some(draining())),
        Turned::Checkout(error) => {
            let reason = match error {
                CheckoutError::Upstream(error) if !is_unreachable(error) => Refusal::Login,
                CheckoutError::Closed => Refusal::Draining,
                _ => Refusal::Upstream,
            };
            (reason, Some(refusal(error)))
        }
    };
    hub.sink.emit(Event::ClientRefused { reason, client: caller.from.clone(), detail: turned.to_string() });
    if let Some(word) = word {
        let telling = async {
            caller.io.write_all(&word).await?;
            caller.io.shutdown().await
        };
        let _ = tokio::time::timeout(LAST_WORD, telling).await;
    }
}

impl fmt::Display for Turned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Turned::Gone => f.write_str("the client hung up"),
            Turned::Late => write!(f, "no startup packet within {} s", LOGIN_TIMEOUT.as_secs()),
            Turned::Packet(error) => error.fmt(f),
            Turned::TooManyClients(limit) => {
                write!(f, "too many clients: pool.max_clients = {limit} are connected")
            }
            Turned::TooManyCallers => f.write_str("too many connections that have not said who they are"),
            Turned::TooManyPools => f.write_str("too many different databases and users through one pgleash"),
            Turned::TooManyCancels => f.write_str("too many cancel requests at one time"),
            Turned::Draining => f.write_str("pgleash is draining"),
            Turned::Checkout(CheckoutError::Upstream(error)) => f.write_str(&describe(error)),
            Turned::Checkout(error) => error.fmt(f),
        }
    }
}
