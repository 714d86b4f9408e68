//! Whole conversations both ways between one client and one lent wire.
//!
//! Bytes move through two buffers of fixed size. Headers are read, bodies are left alone but for the
//! few that carry state: ReadyForQuery and ParameterStatus from the server, and, in transaction mode,
//! the statements' words that leave session state behind. A byte is forwarded only after the holder's
//! activity has been published: a holder that has lost its connection forwards nothing.

pub(crate) mod buffer;
pub(crate) mod inspect;
pub(crate) mod outcome;

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use pgleash_core::{Moment, Phase, PoolMode};
use pgleash_wire::frame::Direction;
use pgleash_wire::parameters::Vars;
use pgleash_wire::{ConnActivity, Names, Prepared, Reader, Said, SessionState};
use tokio::time::Sleep;

use crate::net::stream::Io;
use crate::proxy::clients::session_handle::{Orders, SessionHandle};
use crate::proxy::relay::buffer::Pipe;
use crate::proxy::relay::outcome::{End, Ended, News};
use crate::upstream::holder_handle::HolderState;
use crate::upstream::wire_lease::Wire;

/// Whether anybody is there to hear the answers.
enum Presence {
    /// Goes to `Leaving` or to `HungUp`.
    Here,
    /// It said Terminate; with a grace that runs once it has closed its socket as well.
    Leaving(Option<Timer>),
    /// It closed its side of the socket without a word.
    HungUp(Timer),
}

/// The parameters as a client was told, and as it is to be told.
pub(crate) struct Told<'a> {
    /// By the names that the server has for them.
    pub told: &'a mut Arc<Vars>,
    /// What they go back to.
    pub returns: Returns<'a>,
}

/// What a RESET goes back to for a client.
#[derive(Clone, Copy)]
pub(crate) struct Returns<'a> {
    /// What it asked for at its login, by names in lower case.
    pub own: &'a Vars,
    /// What it was told there.
    pub greeted: &'a Vars,
    /// What the server goes back to on this connection, by names in lower case.
    pub defaults: &'a Vars,
}

type Timer = std::pin::Pin<Box<Sleep>>;

/// A relay between one client and one lent wire.
pub(crate) struct Relay<'a> {
    /// The client.
    pub client: &'a mut Io,
    /// From the client.
    pub up: &'a mut Pipe,
    /// The server.
    pub wire: &'a mut Wire,
    /// What the watchdog sees and does.
    pub holder_state: &'a HolderState,
    /// What the drain says.
    pub orders: &'a Orders,
    /// The client's parameters.
    pub vars: &'a Arc<Vars>,
    /// The parameters as the client was told last.
    pub told: Told<'a>,
    /// What the client has prepared, if the connection is shared.
    pub names: Option<&'a mut Names>,
    /// What the client's statements leave behind.
    pub state: &'a mut SessionState,
    /// What a session's own sequences say is the client's: nobody else's values are on the connection.
    pub own_sequences: bool,
    down: Pipe,
    reader: &'a mut Reader,
    /// What the client has said of its work, and nobody has been told.
    said: Vec<Said>,
    presence: Presence,
    /// While the client is not read from: when to look whether it is still there.
    look: Option<Timer>,
    /// Tag of the client's frame that is on its way to the server.
    sending: u8,
    last_was_fatal: bool,
    now: Option<Moment>,
    published: Phase,
    /// Whom there is nothing to read from, in this poll.
    client_silent: bool,
    server_silent: bool,
}

impl<'a> Relay<'a> {
    /// What is in flight when the client hangs up may end within this, as it would with a server of its
    /// own; then it is cancelled.
    const GRACE: Duration = Duration::from_secs(1);
    /// How often it is looked whether a client is there that sends faster than its server reads.
    const LOOK: Duration = Duration::from_secs(1);

    /// Begins with what the client has sent so far in `up`, and has the client told the `news` first.
    pub(crate) fn new(
        client: &'a mut Io,
        up: &'a mut Pipe,
        wire: &'a mut Wire,
        shared: &'a SessionHandle,
        (vars, mut names, news, told): (&'a Arc<Vars>, Option<&'a mut Names>, &mut Vec<u8>, Told<'a>),
        (state, reader): (&'a mut SessionState, &'a mut Reader),
    ) -> Self {
        if let Some(names) = &mut names {
            wire.prepared.begin(names);
        }
        let mut down = Pipe::holding(Direction::Backend, std::mem::take(&mut wire.inbox));
        down.put(news);
        down.put(&mut wire.kept);
        wire.keeps = false;
        Self {
            client,
            up,
            wire,
            holder_state: &shared.holder_state,
            orders: &shared.orders,
            vars,
            told,
            names,
            own_sequences: true,
            down,
            state,
            reader,
            said: Vec::new(),
            presence: Presence::Here,
            look: None,
            sending: 0,
            last_was_fatal: false,
            now: None,
            published: Phase::InFlight,
            client_silent: false,
            server_silent: false,
        }
    }

    /// Relays until there is a reason to stop. `on_news` is told when the session comes to keep the
    /// connection, and what its statements say. What the server has sent and the client has not got stays in the wire's inbox.
    ///
    /// Once. Not cancel safe: a dropped call loses the place in the conversation.
    pub(crate) async fn run(&mut self, mut on_news: impl FnMut(News)) -> Ended {
        let mut told = None;
        let end = poll_fn(|cx| {
            let end = self.poll(cx);
            if self.state.pinned() != told {
                told = self.state.pinned();
                told.map(News::Pinned).into_iter().for_each(&mut on_news);
            }
            self.said.drain(..).map(News::Said).for_each(&mut on_news);
            end
        })
        .await;
        // Whatever becomes of the transaction: who parses from now on asks anew.
        if let Some(names) = &mut self.names {
            self.wire.prepared.transaction_over(self.state.in_transaction(), names);
        }
        let client_at_boundary = self.down.at_boundary();
        let server_at_boundary = self.up.at_boundary();
        let down = std::mem::replace(&mut self.down, Pipe::new(Direction::Backend));
        (self.wire.inbox, self.wire.received) = down.into_rest();
        Ended { end, client_at_boundary, server_at_boundary }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.holder_state.waker.register(cx.waker());
        self.now = None;
        (self.client_silent, self.server_silent) = (false, false);
        loop {
            if self.holder_state.activity.is_taken() {
                return Poll::Ready(End::Taken);
            }
            if self.orders.is_cut() {
                return Poll::Ready(End::Cut);
            }
            match self.step(cx) {
                // Often the server has nothing more to say then, and the client neither.
                Ok(true) if self.down.ran_dry() && self.wire.protocol.is_quiet() => {
                    if let Some(end) = self.rest() {
                        return Poll::Ready(end);
                    }
                }
                Ok(true) => {}
                Ok(false) => break,
                Err(end) => return Poll::Ready(end),
            }
        }
        if let Some(end) = self.rest() {
            return Poll::Ready(end);
        }
        if self.patience_ends(cx) {
            return Poll::Ready(self.parted());
        }
        if self.holder_state.activity.is_asked() && self.client.is_silent() {
            self.holder_state.answer();
        }
        Poll::Pending
    }

    /// Moves what can be moved; false if nothing could.
    fn step(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let down = self.step_down(cx)?;
        // The end of a transaction is not held up by a look at a client that has nothing to say. What it has said,
        // and had to wait, goes on.
        let over = down && self.wire.protocol.is_quiet() && self.up.unseen().is_empty();
        let up = !over && self.step_up(cx)?;
        Ok(self.clear_up()? || up || down)
    }

    fn step_up(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        if self.reads_client() && !self.client_silent {
            match self.up.poll_fill(cx, self.client) {
                Poll::Ready(Err(_)) => return Err(End::ClientGone),
                Poll::Ready(Ok(0)) => self.hang_up(),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => self.client_silent = true,
            }
            moved = !self.client_silent;
        }
        match self.presence {
            // Nothing counts that comes after Terminate.
            Presence::Leaving(_) => self.up.forget_unseen(),
            _ if !self.up.unseen().is_empty() => self.walk_up()?,
            _ => {}
        }
        if self.up.is_draining() {
            self.publish(Phase::InFlight)?;
            let before = self.up.cleared();
            match self.up.poll_drain(cx, &mut self.wire.io) {
                Poll::Ready(Err(_)) => return Err(End::ServerGone(self.last_was_fatal)),
                Poll::Ready(Ok(())) => moved = true,
                Poll::Pending => moved |= self.up.cleared() < before,
            }
        }
        Ok(moved)
    }

    fn step_down(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let mut moved = false;
        if !self.server_silent && self.down.has_room() {
            match self.down.poll_fill(cx, &mut self.wire.io) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(self.server_gone(cx)),
                Poll::Ready(Ok(_)) => moved = true,
                Poll::Pending => self.server_silent = true,
            }
        }
        if !self.down.unseen().is_empty() {
            self.walk_down().map_err(|_| End::ServerGone(false))?;
        }
        if self.down.is_draining() {
            self.publish(Phase::InFlight)?;
            let before = self.down.cleared();
            match self.down.poll_drain(cx, self.client) {
                Poll::Ready(Err(_)) => return Err(End::ClientGone),
                Poll::Ready(Ok(())) => moved = true,
                Poll::Pending => moved |= self.down.cleared() < before,
            }
        }
        Ok(moved)
    }

    /// Lets the client have the server's last words, as far as it takes them at once.
    fn server_gone(&mut self, cx: &mut Context<'_>) -> End {
        let _ = self.walk_down();
        let _ = self.down.poll_drain(cx, self.client);
        End::ServerGone(self.last_was_fatal)
    }

    /// Nothing moves any more for now: is this the end, and if not, what is the client doing?
    fn rest(&mut self) -> Option<End> {
        let conn_activity = self.wire.protocol.conn_activity();
        // A frame that is still coming is due something already.
        if conn_activity == ConnActivity::Quiet && self.up.ends_frame() {
            self.state.settle();
            self.wire.prepared.settle();
        }
        let delivered = self.down.is_empty() && self.down.at_boundary() && !self.up.is_draining();
        let whole = self.up.ends_frame();
        if !matches!(self.presence, Presence::Here) {
            if conn_activity != ConnActivity::InFlight && delivered {
                return Some(self.parted());
            }
        } else if delivered && whole && conn_activity == ConnActivity::Quiet {
            if self.state.is_unsettled() {
                return Some(End::Unsettled);
            }
            // With half a header at hand the client is about to speak: it would be lent the next one.
            if self.state.pinned().is_none() && self.up.unseen().is_empty() {
                return Some(End::Quiet);
            }
            if self.orders.is_draining() {
                return Some(End::Drained);
            }
        }
        if self.state.holds() && delivered && whole && conn_activity == ConnActivity::InTransaction {
            return Some(End::Unsettled);
        }
        let phase = match phase_of(conn_activity) {
            _ if !delivered => Phase::InFlight,
            // The server has half a message, and nothing else to do than to wait for the rest.
            Phase::Held | Phase::InTransaction if !whole => Phase::AwaitsClient,
            phase => phase,
        };
        if phase != self.published {
            self.now.take();
            return self.publish(phase).err();
        }
        None
    }

    /// Whether there is room for what the client sends, and anybody who may send it.
    fn reads_client(&self) -> bool {
        self.up.has_room()
            && !self.wire.protocol.is_full()
            && !self.wire.prepared.is_full()
            && matches!(self.presence, Presence::Here | Presence::Leaving(None))
    }

    /// The client's socket has come to its end.
    fn hang_up(&mut self) {
        let grace = Box::pin(tokio::time::sleep(Self::GRACE));
        self.presence = match self.presence {
            Presence::Leaving(_) => Presence::Leaving(Some(grace)),
            Presence::Here | Presence::HungUp(_) => Presence::HungUp(grace),
        };
    }

    /// How a client left that is not there any more.
    fn parted(&self) -> End {
        if matches!(self.presence, Presence::Leaving(_)) { End::Goodbye } else { End::ClientGone }
    }

    /// Whether a client that hung up has had its grace. Looks after a client that is not read from.
    fn patience_ends(&mut self, cx: &mut Context<'_>) -> bool {
        while !self.reads_client() {
            let grace = match &mut self.presence {
                Presence::Leaving(Some(grace)) | Presence::HungUp(grace) => grace,
                Presence::Here | Presence::Leaving(None) => {
                    let look = self.look.get_or_insert_with(|| Box::pin(tokio::time::sleep(Self::LOOK)));
                    if look.as_mut().poll(cx).is_pending() {
                        return false;
                    }
                    self.look = None;
                    if self.client.has_hung_up() {
                        self.hang_up();
                    }
                    continue;
                }
            };
            return grace.as_mut().poll(cx).is_ready();
        }
        false
    }

    /// Once in a poll, and whenever the phase changes.
    fn publish(&mut self, phase: Phase) -> Result<(), End> {
        if self.now.is_some() && phase == self.published {
            return Ok(());
        }
        let now = pgleash_clock::now();
        self.now = Some(now);
        self.published = phase;
        self.holder_state.activity.publish(phase, now).map_err(|_| End::Taken)
    }
}

const fn phase_of(conn_activity: ConnActivity) -> Phase {
    match conn_activity {
        ConnActivity::Quiet => Phase::Held,
        ConnActivity::InFlight => Phase::InFlight,
        ConnActivity::InTransaction => Phase::InTransaction,
        ConnActivity::AwaitsClient => Phase::AwaitsClient,
    }
}

/// Whether what a client sends seems to read values of sequences that are its session's own.
pub(crate) fn reads_sequences(bytes: &[u8]) -> bool {
    memchr::memchr2_iter(b'v', b'V', bytes).any(|at| {
        let word = at.checked_sub(4).and_then(|from| bytes.get(from..at + 3));
        word.is_some_and(|word| {
            word.eq_ignore_ascii_case(b"currval") || word.eq_ignore_ascii_case(b"lastval")
        })
    })
}

/// How many body bytes of a client's frame with this tag are looked at at once.
pub(crate) const fn wanted_up(mode: PoolMode, tag: u8) -> usize {
    match mode {
        PoolMode::Transaction => Prepared::wanted_up(tag),
        PoolMode::Session => 0,
    }
}
