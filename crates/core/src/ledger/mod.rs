//! Every server connection and every checkout of one pool, each in one state.
//!
//! A connection is `Idle → Lent → (Recycling →) Idle`, or `Idle → Recycling → Idle` for pgleash itself, and ends
//! from any of them; a checkout is `Held ⇄ Suspect → Reclaiming`, and ends from any of them. `transition` is the
//! one place where a connection's state and the counts change, together.

pub(crate) mod pauses;
pub(crate) mod peak;
pub(crate) mod reclaim;
pub(crate) mod snapshot;
pub(crate) mod sweep;
#[cfg(test)]
mod tests;
pub(crate) mod wait_events;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::activity::{Activity, Observed, Pause};
use crate::event::{CloseReason, Event, Grounds, Reason, Resolution, Suppression};
use crate::forecast::Forecast;
use crate::history::{GroupId, History};
use crate::ids::{CheckoutId, ConnId, Holder, Moment, PoolKey};
use crate::ledger::pauses::widened;
use crate::ledger::peak::Peaks;
use crate::ledger::reclaim::evidence;
use crate::pin::Pin;
use crate::policy::Policy;

pub use crate::ledger::sweep::Due;
pub use crate::ledger::wait_events::{Running, Waiting};

/// Where a live server connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnPlace {
    /// In the pool. Goes to `Lent`, to `Recycling` when pgleash itself uses it, or is closed.
    Idle,
    /// With a holder. Goes to `Idle` when it comes home quiet, to `Recycling` otherwise.
    Lent(CheckoutId),
    /// Being reset or closed, or used by pgleash itself. Goes to `Idle`, or is closed.
    Recycling,
}

impl ConnPlace {
    const KINDS: usize = 3;

    const fn kind(self) -> usize {
        match self {
            ConnPlace::Idle => 0,
            ConnPlace::Lent(_) => 1,
            ConnPlace::Recycling => 2,
        }
    }
}

/// A live server connection.
#[derive(Debug)]
struct Conn {
    place: ConnPlace,
    backend_pid: i32,
    opened: Moment,
    expires: Moment,
    idle_since: Moment,
    uses: u64,
}

/// How sure we are that a checkout leaked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mark {
    /// Nothing is said against it.
    Held,
    /// Its idleness is past the suspect share of the limit.
    Suspect { of: Suspicion, seen: Observed, left_alone: Option<Spared> },
    /// The holder has lost it; the connection is on its way home.
    Reclaiming(Suspicion),
}

/// Why nothing is done about a suspect that is due, and since when.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spared {
    because: Suppression,
    since: Moment,
}

/// What a checkout is suspected of, and the limit that it was measured by.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Suspicion {
    reason: Reason,
    limit: Duration,
    grounds: Option<Grounds>,
}

impl Suspicion {
    /// By a limit that is configured, or by none.
    const fn fixed(reason: Reason, limit: Duration) -> Self {
        Self { reason, limit, grounds: None }
    }
}

/// A checkout that is out. `L` is what the floor above needs to reach its holder.
#[derive(Debug)]
struct Checkout<L> {
    holder: Arc<Holder>,
    handle: L,
    conn: ConnId,
    started: Moment,
    /// End of its connection's life.
    expires: Moment,
    waited: Duration,
    /// Why it keeps its connection between transactions, since when, and after which statement without its values.
    pinned: Option<(Pin, Moment, Arc<str>)>,
    /// What its application says that it is doing.
    route: Option<Arc<str>>,
    group: GroupId,
    /// The pause that its client has announced.
    declared: Option<Duration>,
    /// The fingerprint of the statement after which it became suspect, and its trace.
    statement: Option<Arc<str>>,
    trace: Option<Arc<str>>,
    /// What its statement waits for, and of which of its moves that is said.
    waiting: Option<(u64, Waiting)>,
    /// The longest pauses that it has ended, those of them that ended last, and until when they are known.
    worst: [Duration; Pause::ALL.len()],
    latest: [Duration; Pause::ALL.len()],
    heard: Moment,
    mark: Mark,
    /// That it is overdue has been told.
    overdue: Option<Suspicion>,
}

impl<L> Checkout<L> {
    /// Suspect, and idle: it is not coming back by itself.
    fn is_stale(&self) -> bool {
        matches!(self.mark, Mark::Suspect { of, .. } if of.reason != Reason::SlowStatement)
    }
}

/// One pool's books.
#[derive(Debug)]
pub struct Ledger<L> {
    pool: PoolKey,
    conns: BTreeMap<ConnId, Conn>,
    /// On the heap each: they are large, and those beside one that ends are moved.
    checkouts: BTreeMap<CheckoutId, Box<Checkout<L>>>,
    waits: BTreeMap<u64, Moment>,
    next_wait: u64,
    /// Connections being opened, each for a slot that is taken.
    dialling: usize,
    counts: [usize; ConnPlace::KINDS],
    opened: u64,
    closed: u64,
    started: u64,
    ended: u64,
    peaks: Peaks,
    forecast: Forecast,
    history: History,
}

impl<L: AsRef<Activity> + Clone> Ledger<L> {
    /// Empty books.
    pub fn new(pool: PoolKey) -> Self {
        Self {
            pool,
            conns: BTreeMap::new(),
            checkouts: BTreeMap::new(),
            waits: BTreeMap::new(),
            next_wait: 0,
            dialling: 0,
            counts: [0; ConnPlace::KINDS],
            opened: 0,
            closed: 0,
            started: 0,
            ended: 0,
            peaks: Peaks::default(),
            forecast: Forecast::new(),
            history: History::new(),
        }
    }

    /// A slot's owner began to open a connection; [`Ledger::opened`] or [`Ledger::not_opened`] follows.
    pub fn dialling(&mut self, now: Moment) {
        self.dialling += 1;
        self.note_peak(now);
    }

    /// The connection could not be opened.
    pub fn not_opened(&mut self, now: Moment) {
        self.note_peak(now);
        self.dialling = self.dialling.saturating_sub(1);
    }

    /// A server connection was opened; it is idle until it is lent.
    pub fn opened(&mut self, conn: ConnId, backend_pid: i32, expires: Moment, now: Moment) {
        self.note_peak(now);
        self.dialling = self.dialling.saturating_sub(1);
        let fresh =
            Conn { place: ConnPlace::Idle, backend_pid, opened: now, expires, idle_since: now, uses: 0 };
        self.counts[ConnPlace::Idle.kind()] += 1;
        self.opened += 1;
        self.conns.insert(conn, fresh);
    }

    /// A server connection is gone; `None` if it was not there.
    pub fn closed(&mut self, conn: ConnId, reason: CloseReason, now: Moment) -> Option<Event> {
        self.note_peak(now);
        let gone = self.conns.remove(&conn)?;
        self.counts[gone.place.kind()] -= 1;
        self.closed += 1;
        Some(Event::ConnectionClosed {
            pool: self.pool.clone(),
            conn,
            backend_pid: gone.backend_pid,
            reason,
            age_seconds: now.since(gone.opened).as_secs_f64(),
            uses: gone.uses,
        })
    }

    /// Moves a connection to another place; the only code that does, with the counts in step.
    fn transition(&mut self, conn: ConnId, to: ConnPlace, now: Moment) {
        self.note_peak(now);
        let Some(entry) = self.conns.get_mut(&conn) else { return };
        self.counts[entry.place.kind()] -= 1;
        self.counts[to.kind()] += 1;
        match to {
            ConnPlace::Idle => entry.idle_since = now,
            ConnPlace::Lent(_) => entry.uses += 1,
            ConnPlace::Recycling => {}
        }
        entry.place = to;
        self.note_peak(now);
    }

    /// A client began to wait; the key ends the wait.
    pub fn wait_begins(&mut self, now: Moment) -> u64 {
        self.next_wait += 1;
        self.waits.insert(self.next_wait, now);
        self.next_wait
    }

    /// A wait is over, one way or the other.
    pub fn wait_ends(&mut self, key: u64) {
        self.waits.remove(&key);
    }

    /// A connection was lent. `waited` is how long the client waited for it.
    pub fn checked_out(
        &mut self,
        id: CheckoutId,
        conn: ConnId,
        holder: Arc<Holder>,
        handle: L,
        waited: Duration,
        now: Moment,
    ) {
        self.started += 1;
        self.transition(conn, ConnPlace::Lent(id), now);
        let group = self.history.began(&holder.app, None, now);
        let checkout = Checkout {
            holder,
            handle,
            conn,
            started: now,
            expires: self.conns.get(&conn).map_or(now, |conn| conn.expires),
            waited,
            pinned: None,
            route: None,
            group,
            declared: None,
            statement: None,
            trace: None,
            waiting: None,
            worst: Default::default(),
            latest: Default::default(),
            heard: now,
            mark: Mark::Held,
            overdue: None,
        };
        self.checkouts.insert(id, Box::new(checkout));
    }

    /// A checkout is over. The connection goes to `to`; a suspicion against it ends as `resolution`.
    /// Gives how long it was held, and what is to be told.
    pub fn checked_in(
        &mut self,
        id: CheckoutId,
        to: ConnPlace,
        resolution: Resolution,
        now: Moment,
    ) -> (Duration, Vec<Event>) {
        let Some(mut checkout) = self.checkouts.remove(&id) else { return (Duration::ZERO, Vec::new()) };
        self.ended += 1;
        checkout.tell_pauses(&mut self.history, now);
        let held = now.since(checkout.started);
        if resolution == Resolution::Returned {
            self.history.held(checkout.group, held, now);
        }
        self.history.ended(checkout.group, now);
        let suspected = match checkout.mark {
            Mark::Held => None,
            // It moved since it was seen, before it left: the end of a checkout is one step by itself.
            Mark::Suspect { of, seen, left_alone }
                if checkout.handle.as_ref().observe().epoch() > seen.epoch() + 1 =>
            {
                Some((of, Resolution::Returned, left_alone))
            }
            Mark::Suspect { of, left_alone, .. } => Some((of, resolution, left_alone)),
            Mark::Reclaiming(of) => Some((of, Resolution::Reclaimed, None)),
        };
        let overdue = checkout.overdue.map(|of| (of, resolution, None));
        let mut told = Vec::new();
        for (of, resolution, spared) in suspected.into_iter().chain(overdue) {
            told.push(self.resolved(id, &checkout, &of, resolution, spared, now));
            if resolution == Resolution::Returned {
                told.extend(widened(&self.pool, &self.history, &checkout, &of, now));
            }
        }
        self.transition(checkout.conn, to, now);
        (held, told)
    }

    /// An idle connection is used by pgleash itself; [`Ledger::recycled`] follows.
    pub fn sent(&mut self, conn: ConnId, now: Moment) {
        self.transition(conn, ConnPlace::Recycling, now);
    }

    /// A recycled connection is ready to be lent again.
    pub fn recycled(&mut self, conn: ConnId, now: Moment) {
        self.transition(conn, ConnPlace::Idle, now);
    }

    /// The checkouts that are out, oldest first.
    fn out(&self) -> impl Iterator<Item = &Checkout<L>> {
        self.checkouts.values().map(|checkout| &**checkout)
    }

    /// How many checkouts are out.
    pub fn held(&self) -> usize {
        self.checkouts.len()
    }

    /// Idle connections that are past their life, have been idle for `idle_timeout`, or are more than a
    /// pool of this size may have: of those the ones that have been idle for longest.
    pub fn spent(&self, policy: &Policy, now: Moment) -> HashMap<ConnId, CloseReason> {
        let mut idle: Vec<_> = self.conns.iter().filter(|(_, conn)| conn.place == ConnPlace::Idle).collect();
        idle.sort_by_key(|(_, conn)| conn.idle_since);
        let lent = self.counts[ConnPlace::Lent(CheckoutId(0)).kind()];
        let mut surplus = (idle.len() + lent + self.dialling).saturating_sub(policy.size);
        let mut spent = HashMap::new();
        for (id, conn) in idle {
            let reason = if conn.expires <= now {
                CloseReason::MaxLifetime
            } else if now.since(conn.idle_since) >= policy.idle_timeout {
                CloseReason::IdleTimeout
            } else if surplus > 0 {
                CloseReason::Resized
            } else {
                continue;
            };
            surplus = surplus.saturating_sub(1);
            spent.insert(*id, reason);
        }
        spent
    }

    /// Suspect checkouts that are idle: what is not coming back by itself.
    fn stale(&self) -> usize {
        self.checkouts.values().filter(|checkout| checkout.is_stale()).count()
    }

    fn in_use(&self) -> usize {
        self.counts[ConnPlace::Lent(CheckoutId(0)).kind()]
            + self.counts[ConnPlace::Recycling.kind()]
            + self.dialling
    }

    /// Whether the pool is so full that a leaked connection is needed back now.
    #[allow(clippy::cast_precision_loss, reason = "pool sizes are small")]
    fn is_pressed(&self, policy: &Policy) -> bool {
        self.in_use() as f64 > policy.size as f64 * Policy::PRESSURE
    }

    fn note_peak(&mut self, now: Moment) {
        self.peaks.note(self.in_use(), now);
    }

    /// Clients that wait.
    pub fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// Whether there is no connection, and none is being opened.
    pub fn is_empty(&self) -> bool {
        self.conns.is_empty() && self.dialling == 0
    }

    /// Whether anything is out, waiting or being recycled.
    pub fn is_busy(&self) -> bool {
        self.in_use() > 0 || !self.waits.is_empty()
    }
}
