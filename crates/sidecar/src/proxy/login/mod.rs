//! The front door: login, cancel, refusal. Floor 4.
//!
//! Every read has a bound and a deadline. How a client comes to be believed is in `entry`.

pub(crate) mod caller;
pub(crate) mod check_parameters;
pub(crate) mod greeting;
pub(crate) mod handshake;

use std::sync::Arc;
use std::time::Duration;

use pgleash_core::{Event, Holder, PoolKey, Refusal, SessionId};
use pgleash_wire::frame::Direction;
use pgleash_wire::message::SqlState;
use pgleash_wire::parameters::Vars;
use pgleash_wire::scram::ScramError;
use pgleash_wire::startup::{APPLICATION_NAME, FirstPacket, Startup, StartupError};
use pgleash_wire::{Names, Reader, message};
use tokio::io::AsyncWriteExt;

use crate::pool::pause::Flow;
use crate::pool::state::{CheckoutError, WatchedPool};
use crate::process::Hub;
use crate::proxy::clients::cancel_key::CancelKey;
use crate::proxy::clients::session_handle::Shared;
use crate::proxy::login::caller::{Caller, LOGIN_TIMEOUT, Turned};
use crate::proxy::login::greeting::greeting;
use crate::proxy::login::handshake::{first_packet, prove};
use crate::proxy::relay::buffer::Pipe;
use crate::proxy::session::final_error::{draining, drop_unread, refusal};
use crate::proxy::session::{Place, Session};
use crate::upstream::connector::is_unreachable;

/// How long a client that is turned away may take to hear it.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Lets a caller in, and serves it to its end; or passes its cancel request on; or turns it away.
pub(crate) async fn admit(hub: Arc<Hub>, caller: Caller) {
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
    check_parameters::hear(hub, &pool, startup, &holder).await?;
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
            Some(message::fatal(SqlState::FeatureNotSupported, &error.to_string(), None)),
        ),
        Turned::Packet(error @ StartupError::NoUser) => (
            Refusal::Protocol,
            Some(message::fatal(SqlState::InvalidAuthorization, &error.to_string(), None)),
        ),
        Turned::Packet(error) => {
            (Refusal::Protocol, Some(message::fatal(SqlState::ProtocolViolation, &error.to_string(), None)))
        }
        Turned::Handshake(_) => (Refusal::Tls, None),
        Turned::Unencrypted => {
            let hint = "Connect with sslmode=require, or better verify-full.";
            (
                Refusal::Tls,
                Some(message::fatal(SqlState::InvalidAuthorization, &turned.to_string(), Some(hint))),
            )
        }
        Turned::Scram(error) => {
            let state = match error {
                ScramError::Malformed(_) => SqlState::ProtocolViolation,
                ScramError::NotBound | ScramError::Wrong => SqlState::InvalidAuthorization,
            };
            (Refusal::Protocol, Some(message::fatal(state, &error.to_string(), None)))
        }
        Turned::Password { user, .. } => {
            let message = format!("password authentication failed for user \"{user}\"");
            (Refusal::Password, Some(message::fatal(SqlState::InvalidPassword, &message, None)))
        }
        Turned::Unanswered => {
            let hint = Some("pgleash's log tells why.");
            (Refusal::Upstream, Some(message::fatal(SqlState::ConnectionFailure, &turned.to_string(), hint)))
        }
        Turned::TooManyClients(_) | Turned::TooManyCallers | Turned::TooManyPools => {
            let hint = "Raise pool.max_clients, or look for clients that do not disconnect.";
            let word = message::fatal(SqlState::TooManyConnections, &turned.to_string(), Some(hint));
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
