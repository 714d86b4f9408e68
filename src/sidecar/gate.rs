//! The front door: login, cancel, refusal. Floor 4.
//!
//! Every read has a bound and a deadline. How a client comes to be believed is in `entry`.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};

use crate::dial::{is_unreachable, prepare_socket};
use crate::event::{Event, Refusal};
use crate::ids::{Holder, PoolKey, SessionId};
use crate::pool::{CheckoutError, WatchedPool, describe};
use crate::switch::Io;
use crate::valve::Flow;
use crate::wire::frame::Direction;
use crate::wire::prepared::Names;
use crate::wire::reply::{self, SqlState};
use crate::wire::scram::ScramError;
use crate::wire::startup::{APPLICATION_NAME, FirstPacket, Startup, StartupError};
use crate::wire::vars::Vars;

use super::Hub;
use super::auth::Origin;
use super::cancel::CancelKey;
use super::entry::{first_packet, prove};
use super::farewell::{draining, drop_unread, refusal};
use super::greeting::greeting;
use super::pipe::Pipe;
use super::reader::Reader;
use super::session::{Place, Session, Shared};
use super::trial;

/// How long a client may take to say who it is, and to prove it.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client that is turned away may take to hear it.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Somebody at the door.
pub struct Caller {
    pub(super) io: Io,
    pub(super) origin: Origin,
    /// What a proof over its TLS is bound to.
    pub(super) binding: Option<Arc<[u8]>>,
    from: String,
}

impl Caller {
    /// Over TCP.
    pub fn tcp(stream: TcpStream, from: SocketAddr) -> Self {
        // A socket whose options cannot be set has just died; its next read tells.
        let _ = prepare_socket(&stream);
        let origin = if from.ip().to_canonical().is_loopback() { Origin::Near } else { Origin::Far };
        Self { io: Io::Tcp(stream), origin, binding: None, from: from.to_string() }
    }

    /// Over a Unix socket.
    pub fn unix(stream: UnixStream) -> Self {
        Self { io: Io::Unix(stream), origin: Origin::Socket, binding: None, from: "unix".to_owned() }
    }

    /// Whether what it says cannot be read on the way.
    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self.io, Io::Served(_))
    }
}

/// Why a caller is turned away.
pub(super) enum Turned {
    /// It hung up, or the system did.
    Gone,
    /// It did not say who it is in time.
    Late,
    Packet(StartupError),
    /// The TLS handshake failed.
    Handshake(String),
    /// It has to speak TLS, and does not.
    Unencrypted,
    /// Its proof cannot be read, or is bound to another channel.
    Scram(ScramError),
    /// Its proof is wrong. Why is not for the client.
    Password {
        user: String,
        why: &'static str,
    },
    /// The server could not be asked for its verifier.
    Unanswered,
    TooManyClients(usize),
    TooManyCallers,
    TooManyPools,
    TooManyCancels,
    Draining,
    /// The server refuses a parameter, which it names if it can.
    Parameters {
        name: String,
        error: CheckoutError,
    },
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

impl From<ScramError> for Turned {
    fn from(error: ScramError) -> Self {
        Turned::Scram(error)
    }
}

/// Lets a caller in, and serves it to its end; or passes its cancel request on; or turns it away.
pub async fn admit(hub: Arc<Hub>, caller: Caller) {
    // What is needed for the way in is let go of behind the door.
    let Some(mut session) = Box::pin(let_in(hub, caller)).await else { return };
    session.serve().await;
    drop_unread(&session.client);
}

/// The session of a caller who may come in; nobody else is left waiting.
async fn let_in(hub: Arc<Hub>, mut caller: Caller) -> Option<Session> {
    let Some(doorstep) = hub.doorstep() else {
        side_door(&hub, caller).await;
        return None;
    };
    let first = tokio::time::timeout(LOGIN_TIMEOUT, knock(&hub, &mut caller)).await;
    drop(doorstep);
    let (caller, turned) = match first {
        Ok(Ok(FirstPacket::Startup(startup))) => match enter(&hub, caller, startup).await {
            Ok(session) => return Some(session),
            Err(turned) => turned,
        },
        Ok(Ok(FirstPacket::Cancel { pid, secret })) => {
            cancel(&hub, caller, pid, &secret).await;
            return None;
        }
        // Answered within first_packet.
        Ok(Ok(FirstPacket::Ssl | FirstPacket::Gss)) => return None,
        Ok(Err(turned)) => (caller, turned),
        Err(_) => (caller, Turned::Late),
    };
    turn_away(&hub, caller, turned).await;
    None
}

/// Gives the caller a place among the clients and greets it. One that is turned away has none by then.
async fn enter(
    hub: &Arc<Hub>,
    mut caller: Caller,
    mut startup: Startup,
) -> Result<Session, (Caller, Turned)> {
    let Some((id, shared)) = hub.enter(CancelKey::new(startup.spoken_minor())) else {
        let limit = hub.config.load().max_clients;
        return Err((caller, Turned::TooManyClients(limit)));
    };
    let place = Place { hub: Arc::clone(hub), session: id };
    let (pool, holder, told, unasked) = match log_in(hub, &mut caller, &mut startup, id, &shared).await {
        Ok(entered) => entered,
        Err(turned) => return Err((caller, turned)),
    };
    let vars = hub.shared_vars(startup.settings.clone());
    let (told, pool_defaults) =
        (hub.shared_vars(told), if unasked { Arc::default() } else { pool.defaults() });
    Ok(Session {
        place: Some(place),
        hub: Arc::clone(hub),
        names: Names::new(pool.library()),
        pool,
        holder,
        shared,
        client: caller.io,
        up: Pipe::new(Direction::Frontend),
        own: Arc::clone(&vars),
        defaults: pool_defaults,
        greeted: Arc::clone(&told),
        told,
        prepared: Vec::new(),
        unasked,
        reads_sequences: false,
        vars,
        reader: Reader::new(),
        news: Vec::new(),
    })
}

/// There is no room at the door. Only a cancel request is let through: it may be what makes room.
async fn side_door(hub: &Hub, mut caller: Caller) {
    if let Some(_place) = hub.desk.side_door() {
        let first = tokio::time::timeout(LAST_WORD, first_packet(hub, &mut caller)).await;
        if let Ok(Ok(FirstPacket::Cancel { pid, secret })) = first {
            return cancel(hub, caller, pid, &secret).await;
        }
    }
    turn_away(hub, caller, Turned::TooManyCallers).await;
}

/// What a caller wants; if it wants to be let in, it has proved to be who it says.
async fn knock(hub: &Hub, caller: &mut Caller) -> Result<FirstPacket, Turned> {
    let first = first_packet(hub, caller).await?;
    if let FirstPacket::Startup(startup) = &first {
        if hub.credentials.demands_tls(caller.origin) && !caller.is_encrypted() {
            return Err(Turned::Unencrypted);
        }
        if hub.credentials.demands_password() {
            prove(hub, caller, &startup.user).await?;
        }
    }
    Ok(first)
}

/// Finds or opens the pool, and greets the client with what its server said.
async fn log_in(
    hub: &Arc<Hub>,
    caller: &mut Caller,
    startup: &mut Startup,
    id: SessionId,
    shared: &Arc<Shared>,
) -> Result<(WatchedPool, Arc<Holder>, Vars, bool), Turned> {
    if hub.is_draining() {
        return Err(Turned::Draining);
    }
    let holder = Arc::new(Holder {
        session: id,
        app: startup.settings.get(APPLICATION_NAME).cloned().unwrap_or_default(),
        user: startup.user.clone(),
        database: startup.database.clone(),
        client: caller.from.clone(),
    });
    let key = PoolKey::new(&startup.database, &startup.user);
    let mut unasked = false;
    let pool = match hub.known_pool(&key) {
        Some(pool) => {
            let admission = if hub.valve.flow() == Flow::Open { pool.admission(&holder).await } else { None };
            unasked = admission.is_none();
            if let Some(admission) = admission {
                hub.admits(admission, &key).map_err(Turned::Checkout)?;
            }
            pool
        }
        None => open_pool(hub, &key, &holder).await?,
    };
    let welcome = pool.welcome().unwrap_or_default();
    startup.spell_name(welcome.get("server_version").map_or("", String::as_str));
    trial::hear(hub, &pool, startup, &holder).await?;
    let (greeting, told) = greeting(hub, &pool, startup, &holder, shared).await?;
    caller.io.write_all(&greeting).await?;
    caller.io.flush().await?;
    Ok((pool, holder, told, unasked))
}

/// Opens the first connection of a pool: only a server that lets us in makes a pool.
async fn open_pool(hub: &Arc<Hub>, key: &PoolKey, holder: &Arc<Holder>) -> Result<WatchedPool, Turned> {
    let pool = hub.new_pool(key).ok_or(Turned::TooManyPools)?;
    let errand = pool.errand(holder).await.map_err(Turned::Checkout)?;
    let pool = hub.enter_pool(pool);
    errand.come_home().await;
    Ok(pool)
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
        Turned::Handshake(_) => (Refusal::Tls, None),
        Turned::Unencrypted => {
            let hint = "Connect with sslmode=require, or better verify-full.";
            (
                Refusal::Tls,
                Some(reply::fatal(SqlState::InvalidAuthorization, &turned.to_string(), Some(hint))),
            )
        }
        Turned::Scram(error) => {
            let state = match error {
                ScramError::Malformed(_) => SqlState::ProtocolViolation,
                ScramError::NotBound | ScramError::Wrong => SqlState::InvalidAuthorization,
            };
            (Refusal::Protocol, Some(reply::fatal(state, &error.to_string(), None)))
        }
        Turned::Password { user, .. } => {
            let message = format!("password authentication failed for user \"{user}\"");
            (Refusal::Password, Some(reply::fatal(SqlState::InvalidPassword, &message, None)))
        }
        Turned::Unanswered => {
            let hint = Some("pgleash's log tells why.");
            (Refusal::Upstream, Some(reply::fatal(SqlState::ConnectionFailure, &turned.to_string(), hint)))
        }
        Turned::TooManyClients(_) | Turned::TooManyCallers | Turned::TooManyPools => {
            let hint = "Raise pool.max_clients, or look for clients that do not disconnect.";
            let word = reply::fatal(SqlState::TooManyConnections, &turned.to_string(), Some(hint));
            (Refusal::TooManyClients, Some(word))
        }
        Turned::TooManyCancels => (Refusal::TooManyClients, None),
        Turned::Draining => (Refusal::Draining, Some(draining())),
        Turned::Parameters { error, .. } => (Refusal::Login, Some(refusal(error))),
        Turned::Checkout(error) => {
            let reason = match error {
                CheckoutError::Upstream(error) if !is_unreachable(error) => Refusal::Login,
                CheckoutError::Refused(..) => Refusal::Login,
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
            caller.io.flush().await?;
            caller.io.shutdown().await
        };
        let _ = tokio::time::timeout(LAST_WORD, telling).await;
        drop_unread(&caller.io);
    }
}

impl fmt::Display for Turned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Turned::Gone => f.write_str("the client hung up"),
            Turned::Late => write!(f, "not logged in within {} s", LOGIN_TIMEOUT.as_secs()),
            Turned::Packet(error) => error.fmt(f),
            Turned::Handshake(why) => write!(f, "TLS handshake failed: {why}"),
            Turned::Unencrypted => f.write_str("pgleash lets in encrypted connections only (tls.mode)"),
            Turned::Scram(error) => error.fmt(f),
            Turned::Password { user, why } => {
                write!(f, "password authentication failed for user {user:?}: {why}")
            }
            Turned::Unanswered => f.write_str("the server cannot be asked for the password"),
            Turned::TooManyClients(limit) => {
                write!(f, "too many clients: pool.max_clients = {limit} are connected")
            }
            Turned::TooManyCallers => f.write_str("too many connections that have not said who they are"),
            Turned::TooManyPools => f.write_str("too many different databases and users through one pgleash"),
            Turned::TooManyCancels => f.write_str("too many cancel requests at one time"),
            Turned::Draining => f.write_str("pgleash is draining"),
            // Not in the server's words, which hold the value.
            Turned::Parameters { name, error } => {
                let code = match error {
                    CheckoutError::Upstream(error) => error.code().map_or("", |code| code.code()),
                    _ => "",
                };
                write!(f, "the server refuses a parameter of the login: {name:?} ({code})")
            }
            Turned::Checkout(CheckoutError::Upstream(error)) => f.write_str(&describe(error)),
            Turned::Checkout(error) => error.fmt(f),
        }
    }
}
