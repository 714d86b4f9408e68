//! What a client is told that may come in: the server's parameters as it will find them, and its key.

use std::sync::Arc;

use pgleash_core::{Holder, Policy};
use pgleash_wire::parameters::Vars;
use pgleash_wire::startup::{APPLICATION_NAME, Startup};
use pgleash_wire::{message, parameters};
use tokio_postgres::SimpleQueryMessage;

use crate::pool::state::{CheckoutError, WatchedPool};
use crate::process::Hub;
use crate::proxy::clients::session_handle::SessionHandle;
use crate::proxy::login::caller::Rejection;
use crate::proxy::session::prepare_for;

/// From AuthenticationOk to the first ReadyForQuery.
pub(crate) async fn greeting(
    hub: &Hub,
    pool: &WatchedPool,
    startup: &Startup,
    holder: &Arc<Holder>,
    handle: &SessionHandle,
) -> Result<(Vec<u8>, Vars), Rejection> {
    let mut told = Vars::new();
    let mut greeting = Vec::with_capacity(512);
    if startup.needs_negotiation() {
        let minor = startup.spoken_minor();
        message::negotiate_protocol_version(&mut greeting, minor, &startup.unknown_options);
    }
    message::authentication_ok(&mut greeting);
    let welcome = pool.welcome().unwrap_or_default();
    for (name, reported) in &*welcome {
        let value = match startup.settings.get(&name.to_ascii_lowercase()) {
            None => reported.clone(),
            Some(asked) if !is_respelled(name, asked) => asked.clone(),
            Some(asked) => spell(hub, pool, (name, asked, reported), holder).await?,
        };
        message::parameter_status(&mut greeting, name, &value);
        told.insert(name.clone(), value);
    }
    message::backend_key_data(&mut greeting, holder.session.0, handle.key.bytes());
    message::ready_for_query(&mut greeting);
    Ok((greeting, told))
}

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
) -> Result<String, Rejection> {
    if is_alike(asked, reported) {
        return Ok(reported.to_owned());
    }
    let key = (name.to_owned(), asked.to_owned(), reported.to_owned());
    if let Some(known) = hub.spelling(&key) {
        return Ok(known);
    }
    let internal_checkout = pool.internal_checkout(holder).await.map_err(Rejection::Checkout)?;
    let question = parameters::spelling(name, asked);
    let asking = async {
        prepare_for(&question, internal_checkout.conn(), internal_checkout.client()).await?;
        internal_checkout.client().simple_query(&question).await
    };
    let answer = tokio::time::timeout(Policy::RESET_DEADLINE, asking).await;
    let answer = answer.map_err(|_| Rejection::Checkout(CheckoutError::Stalled))?;
    internal_checkout.release().await;
    let rows = answer.map_err(|error| Rejection::Checkout(CheckoutError::Upstream(error)))?;
    let spelled = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    let spelled = spelled.unwrap_or_else(|| reported.to_owned());
    hub.learn_spelling(key, &spelled);
    Ok(spelled)
}

/// Whether the server reports a value that it was asked for in this spelling.
pub(crate) fn is_alike(asked: &str, reported: &str) -> bool {
    let bare = |text: &str| text.replace(['-', '_', ' '], "").to_ascii_lowercase();
    bare(asked) == bare(reported)
}
