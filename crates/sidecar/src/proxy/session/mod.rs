//! One client's life: wait for a statement, borrow a connection, relay, give it back.

pub(crate) mod cancelled;
pub(crate) mod final_error;
pub(crate) mod lend;
pub(crate) mod settle;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use pgleash_core::{
    CloseReason, Event, Evidence, Holder, Moment, Pin, Pins, PoolMode, Reason, Refusal, Resolution, SessionId,
};
use pgleash_wire::frame::Direction;
use pgleash_wire::message::SqlState;
use pgleash_wire::parameters::Vars;
use pgleash_wire::session_query::Defaults;
use pgleash_wire::{ConnActivity, Names, Reader, Said, SessionState, Touched, message};
use tokio::io::AsyncWriteExt;

use crate::net::stream::Io;
use crate::pool::checkout::Checkout;
use crate::pool::job::Plan;
use crate::pool::state::{CheckoutError, WatchedPool};
use crate::process::Hub;
use crate::proxy::clients::session_handle::{Borrowed, SessionHandle};
use crate::proxy::relay::buffer::Pipe;
use crate::proxy::relay::outcome::{End, Ended, News};
use crate::proxy::relay::{Relay, Returns, Told, wanted_up};
use crate::proxy::session::final_error::{Asked, draining, lost, reclaimed, refusal};
use crate::upstream::server_conn::ServerConn;
use crate::upstream::wire_lease::Wire;

pub(crate) use crate::proxy::clients::phase::{ClientPhase, Found};
pub(crate) use crate::proxy::session::settle::{prepare_for, set_parameters};

/// A logged-in client.
pub(crate) struct Session {
    /// Its place among the clients, until nothing more is done for it.
    pub place: Option<SessionGuard>,
    /// The process it lives in.
    pub hub: Arc<Hub>,
    /// Where its connections come from.
    pub pool: WatchedPool,
    /// Who it is.
    pub holder: Arc<Holder>,
    /// What others can reach of it.
    pub handle: Arc<SessionHandle>,
    /// Its socket.
    pub client: Io,
    /// What it has sent and nobody has looked at.
    pub up: Pipe,
    /// Its run-time parameters.
    pub vars: Arc<Vars>,
    /// Those that it logged in with: what a RESET goes back to.
    pub own: Arc<Vars>,
    /// What role and database set when it logged in.
    pub defaults: Arc<Defaults>,
    /// The parameters as it was told last, by the names that the server has for them.
    pub told: Arc<Vars>,
    /// As it was told when it logged in.
    pub greeted: Arc<Vars>,
    /// Parameters that its prepared statements may change.
    pub prepared: Vec<Touched>,
    /// Every connection was held when it logged in: whether its role may is asked before its first statement.
    pub unasked: bool,
    /// It has read values of sequences that are the session's own.
    pub reads_sequences: bool,
    /// What it has prepared, in transaction mode.
    pub names: Names,
    /// What it says of its work.
    pub reader: Reader,
    /// ParameterStatus messages that it is to be sent with its next answer.
    pub news: Vec<u8>,
}

/// What an idle client did.
enum Idle {
    Spoke,
    Left,
    Told,
}

impl Session {
    /// How long a client may take to accept its last message.
    const LAST_WORD: Duration = Duration::from_secs(1);

    /// Serves the client to its end.
    pub(crate) async fn serve(&mut self) {
        loop {
            match self.idle().await {
                Idle::Spoke => {}
                Idle::Left => return,
                Idle::Told => return Box::pin(self.say_draining()).await,
            }
            // On the heap, and only for so long: most clients are idle most of the time.
            if !Box::pin(self.work()).await {
                return;
            }
        }
    }

    /// From a statement's beginning to the end of the checkout; whether the session goes on.
    async fn work(&mut self) -> bool {
        let at_once = self.pool.checkout_at_once(&self.holder, &self.handle.holder_state, &self.vars);
        let borrowed = match at_once {
            Some(checkout) if self.is_ready(&checkout) => Ok(Borrowed::Lent(checkout)),
            // On the heap, as it is the exception, and large.
            at_once => Box::pin(self.borrow_connection(at_once)).await,
        };
        match borrowed {
            Ok(Borrowed::Lent(checkout)) => self.lend(checkout).await,
            Ok(Borrowed::Cancelled) => Box::pin(self.answer_cancelled()).await,
            Ok(Borrowed::Gone) => false,
            Err(error) => {
                Box::pin(self.refuse(&error)).await;
                false
            }
        }
    }

    /// Waits for a statement's beginning while no server connection is held.
    async fn idle(&mut self) -> Idle {
        let mode = self.hub.mode;
        let begins = |up: &Pipe| up.can_cut(|tag| wanted_up(mode, tag));
        poll_fn(|cx| {
            self.handle.holder_state.waker.register(cx.waker());
            if self.handle.orders.is_draining() {
                return Poll::Ready(Idle::Told);
            }
            match poll_next_message(&mut self.up, &mut self.client, begins, cx) {
                Poll::Ready(NextMessage::Statement) => Poll::Ready(Idle::Spoke),
                Poll::Ready(NextMessage::Goodbye) => Poll::Ready(Idle::Left),
                Poll::Pending => {
                    self.up.shrink();
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Lends the connection's wire for as long as the client needs it; whether the session goes on.
    async fn lend(&mut self, checkout: Checkout) -> bool {
        let conn = Arc::clone(checkout.conn());
        if self.defaults.key.is_empty() {
            // They were about to change when it logged in.
            self.defaults = Arc::clone(&conn.defaults);
        }
        let mut own_sequences = !self.shares() || !conn.has_sequences_of_others(self.holder.session.0);
        conn.is_used_by(self.holder.session.0);
        let temporary = self.makes_temporary(&conn);
        // By itself, or this call would be large enough to make its place on the heap hard to find.
        let mut state =
            Box::new(SessionState::new(self.hub.mode, std::mem::take(&mut self.prepared), temporary));
        loop {
            let Ok(mut wire) = conn.wire_lease.lend_again() else {
                checkout.recycle(None, Plan::Lost, Resolution::ServerLost, None);
                Box::pin(self.last_word(&lost())).await;
                return false;
            };
            if !self.handle.client_phase.has(&conn) {
                self.prepared = state.into_prepared();
                match self.handle.holder_state.activity.finish() {
                    Ok(_) => checkout.release(wire),
                    Err(_) => checkout.recycle(Some(wire), Plan::Reset, Resolution::Returned, None),
                }
                return Box::pin(self.answer_cancelled()).await;
            }
            self.catch_up(&mut wire);
            let ended = self.relay(&checkout, &mut wire, &mut state, own_sequences).await;
            self.reads_sequences |= state.reads_sequences();
            match ended.end {
                End::Quiet if self.handle.holder_state.activity.finish().is_ok() => {
                    self.prepared = state.into_prepared();
                    checkout.release(wire);
                    return true;
                }
                end @ (End::Unsettled | End::Sequences) => {
                    let asked = if end == End::Unsettled {
                        Box::pin(self.settle(&checkout, wire, &mut state)).await
                    } else {
                        own_sequences = true;
                        conn.wire_lease.give_back(wire);
                        Box::pin(self.forget_sequences(&checkout)).await
                    };
                    if let Err(error) = asked {
                        checkout.recycle(None, Plan::Close, Resolution::Disconnected, None);
                        Box::pin(self.refuse(&error)).await;
                        return false;
                    }
                }
                End::Quiet | End::Taken => {
                    mark(&conn, &state);
                    Box::pin(self.lose(checkout, wire, &ended)).await;
                    return false;
                }
                _ => {
                    mark(&conn, &state);
                    Box::pin(self.part(checkout, wire, ended)).await;
                    return false;
                }
            }
        }
    }

    /// One relay over a lent wire.
    async fn relay(
        &mut self,
        checkout: &Checkout,
        wire: &mut Wire,
        state: &mut SessionState,
        own_sequences: bool,
    ) -> Ended {
        let ended = {
            let Self { hub, client, up, handle, vars, names, reader, news, told, own, greeted, .. } =
                &mut *self;
            let returns = Returns { own, greeted, defaults: &checkout.conn().defaults.values };
            let names = (hub.mode == PoolMode::Transaction).then_some(names);
            let told = Told { told, returns };
            let mut relay =
                Relay::new(client, up, wire, handle, (vars, names, news, told), (&mut *state, reader));
            relay.own_sequences = own_sequences;
            relay.run(|news| tell(checkout, news)).await
        };
        self.handle.client_phase.rests();
        ended
    }

    /// The client's last checkout ends, for any reason but a reclaim.
    async fn part(&mut self, checkout: Checkout, wire: Box<Wire>, ended: Ended) {
        if self.handle.holder_state.activity.finish().is_err() {
            return self.lose(checkout, wire, &ended).await;
        }
        let quiet = wire.protocol.is_quiet() && ended.server_at_boundary;
        let certain = match ended.end {
            _ if quiet => None,
            End::ClientGone => Some(Reason::Orphaned),
            End::Goodbye | End::Violation(_) => Some(Reason::DirtyReturn),
            _ => None,
        };
        let (plan, resolution) = match ended.end {
            End::ServerGone(_) => {
                checkout.conn().closing(CloseReason::ServerLost);
                (Plan::Lost, Resolution::ServerLost)
            }
            End::Lost => (Plan::Close, Resolution::Disconnected),
            _ => {
                (plan_for(wire.protocol.conn_activity(), ended.server_at_boundary), Resolution::Disconnected)
            }
        };
        checkout.recycle(Some(wire), plan, resolution, certain);
        let word = self.word_for(&ended.end);
        match word {
            Some(word) if ended.client_at_boundary => self.last_word(&word).await,
            _ => {}
        }
    }

    /// What the client is told when its relay ends; `None` if it is gone or knows.
    fn word_for(&self, end: &End) -> Option<Vec<u8>> {
        match end {
            End::ServerGone(false) => Some(lost()),
            End::Drained | End::Cut => Some(draining()),
            End::Lost => {
                let message = "a Sync within COPY data, with more behind it, crossed with the COPY's error";
                self.tell_refused(Refusal::Protocol, message.to_owned());
                let hint = "What the server answers to what came behind it cannot be told apart.";
                Some(message::fatal(SqlState::ProtocolViolation, message, Some(hint)))
            }
            End::Violation(error) => {
                self.tell_refused(Refusal::Protocol, error.to_string());
                let hint = "The client broke the frontend/backend protocol; its connection is closed.";
                Some(message::fatal(SqlState::ProtocolViolation, &error.to_string(), Some(hint)))
            }
            _ => None,
        }
    }

    /// The watchdog has taken the connection: send it to be cleaned, tell the client why, and watch
    /// whether the client would have needed it.
    async fn lose(&mut self, checkout: Checkout, wire: Box<Wire>, ended: &Ended) {
        let Some((reason, evidence)) = checkout.reclaimed_for() else { return };
        let plan = plan_for(wire.protocol.conn_activity(), ended.server_at_boundary);
        checkout.recycle(Some(wire), plan, Resolution::Reclaimed, None);
        let taken = pgleash_clock::now();
        if ended.client_at_boundary {
            let by_hand = evidence.limit_seconds == 0.0;
            self.last_word(&reclaimed(reason, if by_hand { Asked::ByHand } else { Asked::ByLimit })).await;
        }
        self.watch_for_regret(reason, evidence, taken).await;
    }

    /// A holder that speaks after its connection was taken was not a leak. Ends after a while, or at
    /// once if too many are being watched.
    async fn watch_for_regret(&mut self, reason: Reason, evidence: Evidence, taken: Moment) {
        let hub = Arc::clone(&self.hub);
        self.place = None;
        let Some(_place) = hub.linger() else { return };
        // What had come before the taking, such as half a statement, says nothing.
        self.up = Pipe::new(Direction::Frontend);
        let speaking = poll_fn(|cx| poll_next_message(&mut self.up, &mut self.client, |_| true, cx));
        if let Ok(NextMessage::Statement) = tokio::time::timeout(Hub::LINGER, speaking).await {
            self.pool.regretted(reason, evidence, pgleash_clock::now().since(taken));
        }
    }

    async fn refuse(&mut self, error: &CheckoutError) {
        self.last_word(&refusal(error)).await;
    }

    async fn say_draining(&mut self) {
        self.last_word(&draining()).await;
    }

    /// Says it, and hangs up: the client sees the message, then the end.
    async fn last_word(&mut self, word: &[u8]) {
        let saying = async {
            self.client.write_all(word).await?;
            self.client.flush().await?;
            self.client.shutdown().await
        };
        // A client that does not take it is gone, or as good as gone.
        let _ = tokio::time::timeout(Self::LAST_WORD, saying).await;
    }

    fn tell_refused(&self, reason: Refusal, detail: String) {
        self.hub.sink.emit(Event::ClientRefused { reason, client: self.holder.client.clone(), detail });
    }
}

/// A place among the clients, given up on drop.
pub(crate) struct SessionGuard {
    /// Whose clients.
    pub hub: Arc<Hub>,
    /// Which one.
    pub session: SessionId,
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.hub.forget(self.session);
    }
}

/// What stays of a client on a connection that it leaves, and no reset ends.
fn mark(conn: &ServerConn, state: &SessionState) {
    if state.pins().has(Pins::of(Pin::Load)) {
        conn.loaded.store(true, Ordering::Relaxed);
    }
    if state.ran().has(Pins::SEEDS) {
        conn.seeded.store(true, Ordering::Relaxed);
    }
}

/// Tells the ledger what the client has said, or has come to hold.
fn tell(checkout: &Checkout, news: News) {
    match news {
        News::Pinned(pin) => checkout.pinned(pin),
        News::Said(Said::Route(route)) => checkout.routed(&route),
        News::Said(Said::Hold(length)) => checkout.declared(length),
    }
}

/// A client's next word.
enum NextMessage {
    Statement,
    /// Terminate, or the end of its socket.
    Goodbye,
}

/// `begins` says whether what has come so far is a statement's beginning.
fn poll_next_message(
    up: &mut Pipe,
    client: &mut Io,
    begins: impl Fn(&Pipe) -> bool,
    cx: &mut Context<'_>,
) -> Poll<NextMessage> {
    loop {
        match up.unseen().first() {
            Some(b'X') => return Poll::Ready(NextMessage::Goodbye),
            Some(_) if begins(up) => return Poll::Ready(NextMessage::Statement),
            _ => {}
        }
        match std::task::ready!(up.poll_fill(cx, client)) {
            Ok(0) | Err(_) => return Poll::Ready(NextMessage::Goodbye),
            Ok(_) => {}
        }
    }
}

/// How to clean a connection that was left like this.
fn plan_for(conn_activity: ConnActivity, server_at_boundary: bool) -> Plan {
    match conn_activity {
        _ if !server_at_boundary => Plan::Close,
        ConnActivity::Quiet | ConnActivity::InTransaction => Plan::Reset,
        ConnActivity::InFlight => Plan::Cancel,
        ConnActivity::AwaitsClient => Plan::Close,
    }
}
