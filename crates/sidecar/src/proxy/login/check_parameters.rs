//! What a client asks for at its login is tried before it is let in: a server would refuse it there.

use std::sync::Arc;
use std::time::Duration;

use pgleash_core::Holder;
use pgleash_wire::parameters::Vars;
use pgleash_wire::startup::{APPLICATION_NAME, Startup};
use tokio_postgres::error::Severity;

use crate::pool::pause::Flow;
use crate::pool::state::{CheckoutError, WatchedPool};
use crate::process::Hub;
use crate::proxy::login::caller::Rejection;
use crate::proxy::login::greeting::is_alike;
use crate::proxy::session::set_parameters;

/// How long a login waits for a connection to try its parameters on. Without one it goes on: they are set,
/// or refused, at the first statement.
const PATIENCE: Duration = Duration::from_secs(1);

/// Lets the server say whether it takes the client's parameters, unless it has said so of the same before.
///
/// # Errors
/// The server refuses them.
pub(crate) async fn hear(
    hub: &Hub,
    pool: &WatchedPool,
    startup: &Startup,
    holder: &Arc<Holder>,
) -> Result<(), Rejection> {
    let news = news_of(startup, pool);
    if news.is_empty() || pool.has_accepted(&news) || hub.pause_gate.flow() != Flow::Open {
        return Ok(());
    }
    // Whoever waits for so long in vain has not waited in vain for a connection of its own.
    let patience = PATIENCE.min(hub.config.load().policy.wait_timeout / 2);
    let asking = async {
        let turn = pool.turn_to_ask().await;
        if pool.has_accepted(&news) {
            return None;
        }
        pool.internal_checkout(holder).await.ok().map(|internal_checkout| (turn, internal_checkout))
    };
    let Ok(Some((_turn, internal_checkout))) = tokio::time::timeout(patience, asking).await else {
        return Ok(());
    };
    let vars = hub.shared_vars(startup.settings.clone());
    match set_parameters(internal_checkout.conn(), internal_checkout.client(), &vars).await {
        Ok(()) => {
            internal_checkout.release().await;
            pool.record_accepted(news);
            Ok(())
        }
        Err(error) if is_refusal(&error) => {
            // One transaction, of which nothing is left.
            internal_checkout.release().await;
            Err(Rejection::Parameters { name: named_in(&error, &news), error })
        }
        // The first statement tells.
        Err(_) => Ok(()),
    }
}

/// What the server has to be asked about: not what it has set already, nor a name, which may be anything.
fn news_of(startup: &Startup, pool: &WatchedPool) -> Vars {
    let mut news = startup.settings.clone();
    news.remove(APPLICATION_NAME);
    for (name, reported) in &*pool.welcome().unwrap_or_default() {
        let name = name.to_ascii_lowercase();
        if news.get(&name).is_some_and(|asked| is_alike(asked, reported)) {
            news.remove(&name);
        }
    }
    news
}

/// Whether this is about what was asked for, and not about the server's own state: resources, an
/// operator, a system error, or a fault of its own.
fn is_refusal(error: &CheckoutError) -> bool {
    let CheckoutError::Upstream(error) = error else { return false };
    error.as_db_error().is_some_and(|said| {
        let class = said.code().code().get(..2).unwrap_or_default();
        said.parsed_severity() == Some(Severity::Error) && !["40", "53", "57", "58", "XX"].contains(&class)
    })
}

/// Which of them the server names.
fn named_in(error: &CheckoutError, vars: &Vars) -> String {
    let said = match error {
        CheckoutError::Upstream(error) => error.as_db_error().map_or("", |said| said.message()),
        _ => "",
    };
    let said = said.to_ascii_lowercase();
    vars.keys().find(|name| said.contains(&format!("\"{name}\""))).cloned().unwrap_or_default()
}
