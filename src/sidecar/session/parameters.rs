//! A client's run-time parameters on the connection that it has. Floor 4.

use std::sync::Arc;

use deadpool_postgres::ClientWrapper;

use crate::conn::ServerConn;
use crate::policy::Policy;
use crate::pool::CheckoutError;
use crate::wire::reply;
use crate::wire::vars::{self, Vars};

use super::super::words::Words;
use super::Session;

impl Session {
    /// What is set on the connection now, and what the client expects to be set.
    pub(super) fn settle_parameters(&mut self, conn: &ServerConn, words: &Words) {
        let resets = words.resets();
        let is_doubtful = words.is_doubtful() || vars::may_stay(resets, &self.vars);
        if !words.owes_own() {
            conn.set_applied(&self.vars);
        } else {
            let left = Arc::new(vars::after_reset(resets, &self.vars, conn.reported));
            let mut expected = vars::expected(resets, &self.own, &left, &conn.parameters);
            for name in words.set_back() {
                if let Some(value) = self.own.get(name).filter(|_| !left.contains_key(name)) {
                    expected.insert(name.clone(), value.clone());
                }
            }
            conn.set_applied(&left);
            self.tell_changes(conn, &expected);
            self.vars = self.hub.shared_vars(expected);
        }
        // A client that keeps the connection also keeps what else it has set there.
        if is_doubtful && words.pinned().is_none() {
            conn.forget_applied();
        }
    }

    /// The client was told of the server's defaults; with its next answer it is told of its own values.
    pub(super) fn tell_changes(&mut self, conn: &ServerConn, expected: &Vars) {
        for (name, default) in &conn.parameters {
            let key = name.to_ascii_lowercase();
            if let Some(value) = expected.get(&key).filter(|value| self.vars.get(&key) != Some(value)) {
                let spelling = (name.clone(), value.clone(), default.clone());
                let spelled = self.hub.spelling(&spelling);
                reply::parameter_status(&mut self.news, name, spelled.as_ref().unwrap_or(value));
            }
        }
    }
}

/// Sets a client's parameters on a connection whose wire is at home, if they are not.
pub async fn set_parameters(
    conn: &ServerConn,
    client: &ClientWrapper,
    vars: &Arc<Vars>,
) -> Result<(), CheckoutError> {
    let Some(sql) = conn.change_to(vars) else { return Ok(()) };
    let setting = async {
        let changed = prepare_for(&sql, conn, client).await?;
        let sql = if changed { conn.change_to(vars).unwrap_or_default() } else { sql };
        client.batch_execute(&sql).await
    };
    match tokio::time::timeout(Policy::RESET_DEADLINE, setting).await {
        Ok(Ok(())) => conn.set_applied(vars),
        Ok(Err(error)) => return Err(CheckoutError::Upstream(error)),
        Err(_) => return Err(CheckoutError::Stalled),
    }
    Ok(())
}

/// Sees to it that the server reads this text in the encoding that it is written in; whether something had to be
/// changed for that.
///
/// # Errors
/// The server's.
pub async fn prepare_for(
    sql: &str,
    conn: &ServerConn,
    client: &ClientWrapper,
) -> Result<bool, tokio_postgres::Error> {
    let changes = !sql.is_ascii() && conn.takes_our_encoding();
    if changes {
        client.batch_execute("RESET client_encoding").await?;
    }
    Ok(changes)
}
