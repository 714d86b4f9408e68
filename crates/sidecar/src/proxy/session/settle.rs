//! A client's session on the connection that it has: what is to be set there, and what its statements have changed.
//!
//! Two images are made equal. The client's is `Session::vars`: what it has set, over the server's defaults. The
//! connection's is what is applied to it. Statements only say what may have changed; the server says what has.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use deadpool_postgres::ClientWrapper;
use pgleash_core::{Pin, Pins, PoolMode};
use pgleash_wire::parameters::Vars;
use pgleash_wire::session_query::Seen;
use pgleash_wire::{SessionState, message, parameters, session_query};

use crate::pool::checkout::Checkout;
use crate::pool::defaults::{columns, rows};
use crate::pool::state::CheckoutError;
use crate::pool::{acquire, answered};
use crate::proxy::session::Session;
use crate::upstream::server_conn::ServerConn;
use crate::upstream::wire_lease::Wire;

/// Parameters that cannot be moved: one that a connection refuses for what it has done before, and one that ends a
/// connection which nobody has.
const UNMOVABLE: [&str; 2] = ["idle_session_timeout", "temp_buffers"];

impl Session {
    /// What is to be set on this connection: the client's own, and what role and database set when it logged in, if
    /// that has changed since.
    pub(super) fn wanted_on(&self, conn: &ServerConn) -> Arc<Vars> {
        if Arc::ptr_eq(&self.defaults, &conn.defaults) {
            return Arc::clone(&self.vars);
        }
        let missing = self.defaults.missing_in(&conn.defaults);
        if missing.is_empty() {
            return Arc::clone(&self.vars);
        }
        let mut wanted = missing;
        wanted.extend(self.vars.iter().map(|(name, value)| (name.clone(), value.clone())));
        self.hub.shared_vars(wanted)
    }

    /// Whether `search_path` has the temporary schema in it.
    pub(super) fn makes_temporary(&self, conn: &ServerConn) -> bool {
        match self.vars.get("search_path") {
            Some(path) => path.contains("pg_temp"),
            None => conn.defaults.makes_temporary,
        }
    }

    /// What the client is told before its next answer: parameters that are not as it was told.
    pub(super) fn catch_up(&mut self, wire: &mut Wire) {
        if Arc::ptr_eq(&wire.current, &self.told) {
            return;
        }
        wire.current = self.hub.shared_vars((*wire.current).clone());
        if Arc::ptr_eq(&wire.current, &self.told) {
            return;
        }
        for (name, value) in &*wire.current {
            if self.told.get(name) != Some(value) {
                message::parameter_status(&mut self.news, name, value);
            }
        }
        self.told = Arc::clone(&wire.current);
    }

    /// Asks the server what the client's statements have changed, and sets again what is the client's own. The
    /// connection is quiet, or in a transaction with nothing in flight; its wire goes home for that.
    ///
    /// # Errors
    /// The server's, or it does not answer; the connection is not fit for anybody then.
    pub(super) async fn settle(
        &mut self,
        checkout: &Checkout,
        mut wire: Box<Wire>,
        state: &mut SessionState,
    ) -> Result<(), CheckoutError> {
        wire.keeps = state.verifiable().has(Pins::of(Pin::Listen));
        let in_transaction = wire.protocol.in_transaction();
        let current = Arc::clone(&wire.current);
        let conn = Arc::clone(checkout.conn());
        conn.wire_lease.give_back(wire);
        if in_transaction {
            self.restore_within(checkout, state).await?;
            state.restored();
            return Ok(());
        }
        let seen = match self.as_reported(state, &current) {
            Some(seen) => seen,
            None => self.look(checkout, state).await?,
        };
        self.learn(&conn, state, &seen);
        let hides = state.ran().has(Pins::HIDES) || seen.unreadable;
        let unmovable = state.touched().any(|name| {
            UNMOVABLE.contains(&name.as_str()) && seen.set_to(name, &self.pool.key().user).is_some()
        });
        let setting = if hides || unmovable { Pins::of(Pin::Setting) } else { Pins::default() };
        state.settled(seen.there.and(setting));
        set_parameters(&conn, checkout.client(), &self.wanted_on(&conn)).await
    }

    /// Parameters that the client has set back within its transaction are its own there, too.
    async fn restore_within(
        &mut self,
        checkout: &Checkout,
        state: &SessionState,
    ) -> Result<(), CheckoutError> {
        if state.is_back_undone() {
            return Ok(());
        }
        let conn = checkout.conn();
        let mut sql = String::new();
        for (name, value) in &self.own_on(conn) {
            let is_local = state.resets_locally(name);
            if !is_local && !state.resets(name) {
                continue;
            }
            // A role is set and reset by the same statements; it is the client's own at the end of the transaction.
            // A parameter with a dot is empty when it is set back.
            let default = conn.defaults.values.get(name).map(String::as_str);
            if let Some(default) = default.or_else(|| name.contains('.').then_some("")) {
                sql.push_str(&parameters::set_back(name, value, default, is_local));
            }
        }
        if sql.is_empty() {
            return Ok(());
        }
        answered(checkout.client().batch_execute(&sql)).await
    }

    /// What a RESET goes back to for this client, where this connection has other defaults.
    pub(super) fn own_on(&self, conn: &ServerConn) -> Vars {
        let mut own = self.defaults.missing_in(&conn.defaults);
        own.extend(self.own.iter().map(|(name, value)| (name.clone(), value.clone())));
        own
    }

    /// What the server has reported already, if that is all that has to be known.
    fn as_reported(&self, state: &SessionState, current: &Vars) -> Option<Seen> {
        let asks = Pins::PARAMETERS.without(Pins::TOUCHES).and(Pins::SEEDS);
        if state.ran().has(asks) || state.is_undone() || !state.verifiable().is_empty() {
            return None;
        }
        let mut seen = Seen::default();
        for name in state.touched() {
            let value = current.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?.1;
            seen.values.insert(name.clone(), Some(value.clone()));
        }
        Some(seen)
    }

    async fn look(&mut self, checkout: &Checkout, state: &SessionState) -> Result<Seen, CheckoutError> {
        let ran = state.ran();
        let mut names: BTreeSet<String> = state.touched().cloned().collect();
        if ran.has(Pins::TOUCHES_ALL) {
            let dotted = |name: &&String| name.contains('.');
            names.extend(self.vars.keys().filter(dotted).cloned());
            names.extend(checkout.conn().applied().keys().filter(dotted).cloned());
            names.extend([session_query::ROLE, session_query::AUTHORIZATION].map(str::to_owned));
        }
        let touches = !names.is_empty() || ran.has(Pins::PARAMETERS);
        let sources = touches && (ran.has(Pins::TOUCHES_ALL.and(Pins::RESETS)) || state.is_undone());
        let seed = ran.has(Pins::SEEDS).then(|| rand::random_range(-1.0..1.0));
        let sql = session_query::question(&names, sources, !state.verifiable().is_empty(), seed);
        let rows = match answered(rows(checkout.client(), &sql)).await {
            Err(error) if error.is_from_server() && acquire::settle(checkout.client()).await => {
                return self.unseen(checkout, state).await;
            }
            rows => rows?,
        };
        let mut seen = Seen { set: sources.then(BTreeSet::new), ..Seen::default() };
        rows.iter().for_each(|row| seen.row(columns(row)));
        Ok(seen)
    }

    /// The server does not answer the question: what may be there is taken to be there.
    async fn unseen(&mut self, checkout: &Checkout, state: &SessionState) -> Result<Seen, CheckoutError> {
        answered(checkout.client().batch_execute("ROLLBACK")).await?;
        Ok(Seen { there: state.verifiable(), unreadable: true, ..Seen::default() })
    }

    /// Makes both images true to what the server says.
    fn learn(&mut self, conn: &ServerConn, state: &SessionState, seen: &Seen) {
        let mut applied = (*conn.applied()).clone();
        let mut vars = (*self.vars).clone();
        let (missing, user) = (self.defaults.missing_in(&conn.defaults), &self.pool.key().user);
        let mut names: BTreeSet<&str> = state.touched().map(String::as_str).collect();
        if state.ran().has(Pins::TOUCHES_ALL) && !seen.unreadable {
            names.extend(seen.values.keys().map(String::as_str));
            names.extend(self.vars.keys().map(String::as_str));
            applied.retain(|name, _| seen.set_to(name, user).is_some());
        }
        for name in names {
            match seen.set_to(name, user) {
                Some(value) => {
                    applied.insert(name.to_owned(), value.to_owned());
                    // A parameter that the server does not list is empty when it is set back.
                    let is_back = value.is_empty() && name.contains('.') && state.resets(name);
                    let value = self.own.get(name).filter(|_| is_back).map_or(value, String::as_str);
                    // What is set only since the defaults are others here is not the client's doing.
                    let is_missing =
                        !self.vars.contains_key(name) && missing.get(name).is_some_and(|own| own == value);
                    if !is_missing {
                        vars.insert(name.to_owned(), value.to_owned());
                    }
                }
                None if seen.unreadable => {}
                None => {
                    applied.remove(name);
                    match self.own.get(name) {
                        Some(value) => drop(vars.insert(name.to_owned(), value.clone())),
                        None => drop(vars.remove(name)),
                    }
                }
            }
        }
        conn.set_applied(&self.hub.shared_vars(applied));
        self.vars = self.hub.shared_vars(vars);
    }

    /// Discards the values of sequences on this connection, which others have had since this client.
    ///
    /// # Errors
    /// The server does not answer.
    pub(super) async fn forget_sequences(&mut self, checkout: &Checkout) -> Result<(), CheckoutError> {
        match answered(checkout.client().batch_execute("DISCARD SEQUENCES")).await {
            Ok(()) => checkout.conn().sequences_of.store(self.holder.session.0, Ordering::Relaxed),
            // In a transaction that has failed nothing can be read either.
            Err(error) if error.is_from_server() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Asks on this connection what could not be asked when the client logged in; whether it is still one to be lent.
    ///
    /// # Errors
    /// The role may not log in any more, or the server does not answer.
    pub(super) async fn ask_admission(&mut self, checkout: &Checkout) -> Result<bool, CheckoutError> {
        self.unasked = false;
        let admission = self.pool.ask_on(checkout.conn(), checkout.client()).await?;
        self.hub.admits(admission, self.pool.key())?;
        Ok(self.pool.is_current(checkout.conn()))
    }

    /// Whether the connections of the pool are shared.
    pub(super) fn shares(&self) -> bool {
        self.hub.mode == PoolMode::Transaction
    }
}

/// Sets a client's parameters on a connection whose wire is at home, if they are not.
pub(crate) async fn set_parameters(
    conn: &ServerConn,
    client: &ClientWrapper,
    vars: &Arc<Vars>,
) -> Result<(), CheckoutError> {
    let Some(sql) = conn.change_to(vars) else {
        conn.set_applied(vars);
        return Ok(());
    };
    let setting = async {
        let changed = prepare_for(&sql, conn, client).await?;
        let sql = if changed { conn.change_to(vars).unwrap_or_default() } else { sql };
        client.batch_execute(&sql).await
    };
    answered(setting).await?;
    conn.set_applied(vars);
    Ok(())
}

/// Sees to it that the server reads this text in the encoding that it is written in; whether something had to be
/// changed for that.
///
/// # Errors
/// The server's.
pub(crate) async fn prepare_for(
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
