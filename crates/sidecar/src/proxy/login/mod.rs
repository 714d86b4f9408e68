//! The front door: login, cancel, refusal.
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
use crate::proxy::clients::session_handle::SessionHandle;
use crate::proxy::login::caller::{Caller, LOGIN_TIMEOUT, Rejection};
use crate::proxy::login::greeting::greeting;
use crate::proxy::login::handshake::{first_packet, prove};
use crate::proxy::relay::buffer::Pipe;
use crate::proxy::session::final_error::{draining, drop_unread, refusal};
use crate::proxy::session::{Session, SessionGuard};
use crate::upstream::connector::is_unreachable;

/// How long a client that is turned away may take to hear it.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Lets a caller in, and serves it to its end; or passes its cancel request on; or turns it away.
pub(crate) async fn admit(hub: Arc<Hub>, caller: Caller) {
    // What is needed for the way in is let go of behind the door.
    let Some(mut session) = Box::pin(accept_login(hub, caller)).await else { return };
    session.serve().await;
    drop_unread(&session.client);
}

/// The session of a caller who may come in; nobody else is left waiting.
async fn accept_login(hub: Arc<Hub>, mut caller: Caller) -> Option<Session> {
    let Some(pre_auth_limit) = hub.pre_auth_limit() else {
        cancel_only(&hub, caller).await;
        return None;
    };
    let first = tokio::time::timeout(LOGIN_TIMEOUT, read_first_packets(&hub, &mut caller)).await;
    drop(pre_auth_limit);
    let (caller, rejection) = match first {
        Ok(Ok(FirstPacket::Startup(startup))) => match enter(&hub, caller, startup).await {
            Ok(session) => return Some(session),
            Err(rejection) => rejection,
        },
        Ok(Ok(FirstPacket::Cancel { pid, secret })) => {
            cancel(&hub, caller, pid, &secret).await;
            return None;
        }
        // Answered within first_packet.
        Ok(Ok(FirstPacket::Ssl | FirstPacket::Gss)) => return None,
        Ok(Err(rejection)) => (caller, rejection),
        Err(_) => (caller, Rejection::Late),
    };
    reject(&hub, caller, rejection).await;
    None
}

/// Gives the caller a place among the clients and greets it. One that is turned away has none by then.
async fn enter(
    hub: &Arc<Hub>,
    mut caller: Caller,
    mut startup: Startup,
) -> Result<Session, (Caller, Rejection)> {
    let Some((id, handle)) = hub.enter(CancelKey::new(startup.spoken_minor())) else {
        let limit = hub.config.load().max_clients;
        return Err((caller, Rejection::TooManyClients(limit)));
    };
    let place = SessionGuard { hub: Arc::clone(hub), session: id };
    let (pool, holder, told, unasked) = match log_in(hub, &mut caller, &mut startup, id, &handle).await {
        Ok(entered) => entered,
        Err(rejection) => return Err((caller, rejection)),
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
        handle,
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
async fn cancel_only(hub: &Hub, mut caller: Caller) {
    if let Some(_place) = hub.cancel_queue.cancel_only() {
        let first = tokio::time::timeout(LAST_WORD, first_packet(hub, &mut caller)).await;
        if let Ok(Ok(FirstPacket::Cancel { pid, secret })) = first {
            return cancel(hub, caller, pid, &secret).await;
        }
    }
    reject(hub, caller, Rejection::TooManyCallers).await;
}

/// What a caller wants; if it wants to be let in, it has proved to be who it says.
async fn read_first_packets(hub: &Hub, caller: &mut Caller) -> Result<FirstPacket, Rejection> {
    let first = first_packet(hub, caller).await?;
    if let FirstPacket::Startup(startup) = &first {
        if hub.credentials.demands_tls(caller.origin) && !caller.is_encrypted() {
            return Err(Rejection::Unencrypted);
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
    handle: &Arc<SessionHandle>,
) -> Result<(WatchedPool, Arc<Holder>, Vars, bool), Rejection> {
    if hub.is_draining() {
        return Err(Rejection::Draining);
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
            let admission =
                if hub.pause_gate.flow() == Flow::Open { pool.admission(&holder).await } else { None };
            unasked = admission.is_none();
            if let Some(admission) = admission {
                hub.admits(admission, &key).map_err(Rejection::Checkout)?;
            }
            pool
        }
        None => open_pool(hub, &key, &holder).await?,
    };
    let welcome = pool.welcome().unwrap_or_default();
    startup.spell_name(welcome.get("server_version").map_or("", String::as_str));
    check_parameters::hear(hub, &pool, startup, &holder).await?;
    let (greeting, told) = greeting(hub, &pool, startup, &holder, handle).await?;
    caller.io.write_all(&greeting).await?;
    caller.io.flush().await?;
    Ok((pool, holder, told, unasked))
}

/// Opens the first connection of a pool: only a server that lets us in makes a pool.
async fn open_pool(hub: &Arc<Hub>, key: &PoolKey, holder: &Arc<Holder>) -> Result<WatchedPool, Rejection> {
    let pool = hub.new_pool(key).ok_or(Rejection::TooManyPools)?;
    let internal_checkout = pool.internal_checkout(holder).await.map_err(Rejection::Checkout)?;
    let pool = hub.enter_pool(pool);
    internal_checkout.release().await;
    Ok(pool)
}

/// Passes a cancel request on to the server connection that the session has now, if it has one.
/// Whoever asks is told nothing, as Postgres tells nothing.
async fn cancel(hub: &Hub, caller: Caller, pid: u32, secret: &[u8]) {
    let Some(session) = hub.session(pid, secret) else { return };
    if !hub.cancel_queue.serve(&session).await {
        reject(hub, caller, Rejection::TooManyCancels).await;
    }
}

/// As what a rejection counts, and what the client reads; `None` if nobody is there any more.
fn answer_to(rejection: &Rejection) -> Option<(Refusal, Option<Vec<u8>>)> {
    Some(match rejection {
        Rejection::Gone => return None,
        Rejection::Late => (Refusal::LoginTimeout, None),
        Rejection::Packet(error @ StartupError::Unsupported(_) | error @ StartupError::Version(..)) => (
            Refusal::Unsupported,
            Some(message::fatal(SqlState::FeatureNotSupported, &error.to_string(), None)),
        ),
        Rejection::Packet(error @ StartupError::NoUser) => (
            Refusal::Protocol,
            Some(message::fatal(SqlState::InvalidAuthorization, &error.to_string(), None)),
        ),
        Rejection::Packet(error) => {
            (Refusal::Protocol, Some(message::fatal(SqlState::ProtocolViolation, &error.to_string(), None)))
        }
        Rejection::Handshake(_) => (Refusal::Tls, None),
        Rejection::Unencrypted => {
            let hint = "Connect with sslmode=require, or better verify-full.";
            (
                Refusal::Tls,
                Some(message::fatal(SqlState::InvalidAuthorization, &rejection.to_string(), Some(hint))),
            )
        }
        Rejection::Scram(error) => {
            let state = match error {
                ScramError::Malformed(_) => SqlState::ProtocolViolation,
                ScramError::NotBound | ScramError::Wrong => SqlState::InvalidAuthorization,
            };
            (Refusal::Protocol, Some(message::fatal(state, &error.to_string(), None)))
        }
        Rejection::Password { user, .. } => {
            let message = format!("password authentication failed for user \"{user}\"");
            (Refusal::Password, Some(message::fatal(SqlState::InvalidPassword, &message, None)))
        }
        Rejection::Unanswered => {
            let hint = Some("pgleash's log tells why.");
            (
                Refusal::Upstream,
                Some(message::fatal(SqlState::ConnectionFailure, &rejection.to_string(), hint)),
            )
        }
        Rejection::TooManyClients(_) | Rejection::TooManyCallers | Rejection::TooManyPools => {
            let hint = "Raise pool.max_clients, or look for clients that do not disconnect.";
            let word = message::fatal(SqlState::TooManyConnections, &rejection.to_string(), Some(hint));
            (Refusal::TooManyClients, Some(word))
        }
        Rejection::TooManyCancels => (Refusal::TooManyClients, None),
        Rejection::Draining => (Refusal::Draining, Some(draining())),
        Rejection::Parameters { error, .. } => (Refusal::Login, Some(refusal(error))),
        Rejection::Checkout(error) => {
            let reason = match error {
                CheckoutError::Upstream(error) if !is_unreachable(error) => Refusal::Login,
                CheckoutError::Refused(..) => Refusal::Login,
                CheckoutError::Closed => Refusal::Draining,
                _ => Refusal::Upstream,
            };
            (reason, Some(refusal(error)))
        }
    })
}

/// Answers somebody who may not come in, and hangs up.
async fn reject(hub: &Hub, mut caller: Caller, rejection: Rejection) {
    let Some((reason, word)) = answer_to(&rejection) else { return };
    hub.sink.emit(Event::ClientRefused {
        reason,
        client: caller.from.clone(),
        detail: rejection.to_string(),
    });
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
