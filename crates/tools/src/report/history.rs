//! What a log tells, in the order of its lines: suspicions with their ends, and everything else that
//! happened, folded. Pure, and bounded whatever the length of the log.

use std::collections::BTreeMap;
use std::time::Duration;

use pgleash_core::{InForce, LeftAlone, Reason, RecycleAction, RecycleOutcome, Resolution, Suppression};

use crate::report::parse::{Fact, Line, Who};
use crate::report::timeline::Timeline;

/// Which part of a log is looked at.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Nothing earlier, since the Unix epoch.
    pub since: Option<Duration>,
    /// Nothing later.
    pub until: Option<Duration>,
    /// This pool, `user@database`, and no other.
    pub pool: Option<String>,
}

impl Window {
    fn has(&self, at: Duration) -> bool {
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at <= until)
    }

    fn wants(&self, pool: &str) -> bool {
        self.pool.as_deref().is_none_or(|wanted| wanted == pool)
    }
}

/// How a suspicion ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct End {
    /// When, since the Unix epoch.
    pub at: Duration,
    /// How.
    pub resolution: Resolution,
}

/// One suspicion.
#[derive(Clone, Debug)]
pub struct Case {
    /// `user@database`.
    pub pool: String,
    /// Of what.
    pub reason: Reason,
    /// When it began, since the Unix epoch.
    pub detected: Duration,
    /// Who; with the idleness, limit and grounds that were told last.
    pub who: Who,
    /// When a verdict first fell that was not carried out, and why it was not.
    pub spared: Option<(Duration, Suppression)>,
    /// How it ended; `None` if it did not within the log.
    pub end: Option<End>,
    /// So many seconds after it was taken its holder came back.
    pub regretted_after: Option<f64>,
}

/// What became of a suspect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It went on by itself.
    CameHome,
    /// It was taken, and nobody missed it.
    Taken,
    /// It was taken, and its holder came back.
    Missed,
    /// Its client went without a word.
    Gone,
    /// It was still out when the log ended.
    StillOut,
    /// Its server connection died, or pgleash ended.
    Unknown,
}

impl Case {
    /// What became of it.
    pub fn fate(&self) -> Fate {
        match self.end.map(|end| end.resolution) {
            _ if self.regretted_after.is_some() => Fate::Missed,
            Some(Resolution::Returned) => Fate::CameHome,
            Some(Resolution::Reclaimed) => Fate::Taken,
            Some(Resolution::Disconnected) => Fate::Gone,
            Some(Resolution::ServerLost) => Fate::Unknown,
            None => Fate::StillOut,
        }
    }

    /// A verdict fell: it was taken, or would have been. One that moved at the very moment would not.
    pub fn was_due(&self) -> bool {
        matches!(self.fate(), Fate::Taken | Fate::Missed)
            || self
                .spared
                .is_some_and(|(_, because)| matches!(because, Suppression::Observe | Suppression::Budget))
    }

    /// Suspect for being idle: what a limit on idleness decides.
    pub fn is_idle(&self) -> bool {
        matches!(self.reason, Reason::IdleInTransaction | Reason::IdleSession | Reason::ProtocolWedge)
    }

    /// How long it was idle for altogether, in seconds, as far as the log knows, which ends at `to`.
    pub fn idle_seconds(&self, to: Duration) -> f64 {
        let more = if self.end.is_none() { to.saturating_sub(self.detected) } else { Duration::ZERO };
        self.who.idle_seconds + more.as_secs_f64() + self.regretted_after.unwrap_or(0.0)
    }
}

/// Clients that waited in vain.
#[derive(Clone, Debug, Default)]
pub struct TurnedAway {
    /// How many.
    pub clients: usize,
    /// When the first was told.
    pub first: Duration,
    /// When the last was.
    pub last: Duration,
    /// What the first was told.
    pub diagnosis: String,
}

/// All that a report is made of.
#[derive(Debug, Default)]
pub struct Story {
    window: Window,
    /// First and last moment of the log, since the Unix epoch; `None` if it has no event.
    pub span: Option<(Duration, Duration)>,
    /// Suspicions, as they began.
    pub cases: Vec<Case>,
    /// Suspicions beyond [`Story::MOST_CASES`].
    pub untold: usize,
    /// The last of each checkout and reason, since pgleash started.
    known: BTreeMap<(u64, Reason), usize>,
    /// It has been told to stop: who leaves now does so because of that.
    draining: Option<Duration>,
    /// The last case that was taken, by session: it may be regretted.
    taken: BTreeMap<(u64, u32), usize>,
    /// Size of each pool.
    pub pools: BTreeMap<String, usize>,
    /// `leaks.action` as it was set last.
    pub action: Option<String>,
    /// The limits in force at the last start.
    pub limits: Option<InForce>,
    /// By pool.
    pub turned_away: BTreeMap<String, TurnedAway>,
    /// When exhaustion was first foreseen, and in how many seconds, by pool.
    pub foreseen: BTreeMap<String, (Duration, f64)>,
    /// Connections by how they were dealt with.
    pub recycled: BTreeMap<(RecycleAction, RecycleOutcome), usize>,
    /// Everything in its order.
    pub timeline: Timeline,
    /// Lines that were events.
    pub events: usize,
    /// Lines that were not.
    pub foreign: usize,
}

impl Story {
    /// Suspicions that are kept each by itself.
    pub const MOST_CASES: usize = 200_000;
    /// Pools that are kept each by itself.
    const MOST_POOLS: usize = 1000;

    /// Nothing yet.
    pub fn new(window: Window) -> Self {
        Self { window, ..Self::default() }
    }

    /// Takes the next line of the log.
    pub fn hear(&mut self, line: Line) {
        let at = match &line {
            Line::Blank => return,
            Line::Foreign => {
                self.foreign += 1;
                return;
            }
            Line::Fact(at, _) | Line::Other(at) => *at,
        };
        if !self.window.has(at) {
            return;
        }
        self.events += 1;
        let (from, to) = self.span.get_or_insert((at, at));
        (*from, *to) = ((*from).min(at), (*to).max(at));
        if let Line::Fact(_, fact) = line {
            self.learn(at, *fact);
        }
    }

    /// Another log begins, of another process.
    pub fn next_log(&mut self) {
        self.lose_sight();
    }

    /// The process is gone, and its checkouts with it.
    fn lose_sight(&mut self) {
        let at = self.span.map_or(Duration::ZERO, |(_, to)| to);
        for case in std::mem::take(&mut self.known).into_values() {
            self.cases[case].end.get_or_insert(End { at, resolution: Resolution::ServerLost });
        }
        self.draining = None;
        self.taken.clear();
    }

    fn learn(&mut self, at: Duration, fact: Fact) {
        if fact.pool().is_some_and(|pool| !self.window.wants(pool)) {
            return;
        }
        self.timeline.note(at, &fact);
        match fact {
            Fact::Started { action, limits, .. } => {
                self.lose_sight();
                self.action = Some(action);
                self.limits = limits;
            }
            Fact::Draining {} => self.draining = Some(at),
            Fact::Stopped {} => self.lose_sight(),
            Fact::Reloaded { changed } => self.reloaded(&changed),
            Fact::PoolOpened { pool, size } if self.pools.len() < Self::MOST_POOLS => {
                self.pools.insert(pool, size);
            }
            Fact::LeakDetected { pool, reason, who } => self.detected(at, pool, reason, who),
            Fact::LeakResolved { pool, reason, resolution, left_alone, who } => {
                let resolution = match resolution {
                    Resolution::Disconnected if self.draining.is_some() => Resolution::ServerLost,
                    resolution => resolution,
                };
                let key = (who.checkout, reason);
                self.resolved(at, &pool, reason, resolution, who);
                // Its verdict may have been told before the log, or the window, begins.
                if let (Some(LeftAlone { because, seconds }), Some(case)) = (left_alone, self.known.get(&key))
                {
                    let since = at.saturating_sub(Duration::try_from_secs_f64(seconds).unwrap_or_default());
                    self.cases[*case].spared.get_or_insert((since, because));
                }
            }
            Fact::ReclaimSuppressed { pool, reason, because, who } => {
                self.spared(at, &pool, reason, because, who);
            }
            Fact::ReclaimRegretted { after_seconds, who, .. } => {
                if let Some(case) = self.taken.remove(&(who.checkout, who.session)) {
                    self.cases[case].regretted_after = Some(after_seconds);
                }
            }
            Fact::Recycled { action, outcome, .. } => {
                *self.recycled.entry((action, outcome)).or_default() += 1;
            }
            Fact::CheckoutTimeout { pool, diagnosis } => self.turned_away(at, pool, diagnosis),
            Fact::ExhaustionForeseen { pool, in_seconds, .. } if self.foreseen.len() < Self::MOST_POOLS => {
                self.foreseen.entry(pool).or_insert((at, in_seconds));
            }
            _ => {}
        }
    }

    fn reloaded(&mut self, changed: &[String]) {
        let set = changed.iter().find_map(|change| change.strip_prefix("leaks.action: "));
        if let Some((_, to)) = set.and_then(|change| change.rsplit_once(" -> ")) {
            self.action = Some(to.trim_matches('"').to_owned());
        }
    }

    fn detected(&mut self, at: Duration, pool: String, reason: Reason, who: Who) {
        if self.cases.len() >= Self::MOST_CASES {
            self.untold += 1;
            return;
        }
        self.known.insert((who.checkout, reason), self.cases.len());
        let case = Case { pool, reason, detected: at, who, spared: None, end: None, regretted_after: None };
        self.cases.push(case);
    }

    fn resolved(&mut self, at: Duration, pool: &str, reason: Reason, resolution: Resolution, who: Who) {
        let (checkout, session) = (who.checkout, who.session);
        if self.open(checkout, reason).is_none() {
            // It began before the log, or the window, does.
            self.detected(at, pool.to_owned(), reason, who.clone());
        }
        let Some(case) = self.open(checkout, reason) else { return };
        if resolution == Resolution::Reclaimed {
            self.taken.insert((checkout, session), case);
        }
        let case = &mut self.cases[case];
        case.who = who;
        case.end = Some(End { at, resolution });
    }

    fn spared(&mut self, at: Duration, pool: &str, reason: Reason, because: Suppression, who: Who) {
        let checkout = who.checkout;
        if !self.known.contains_key(&(checkout, reason)) {
            self.detected(at, pool.to_owned(), reason, who);
        }
        // One that has ended meanwhile is not suspect again.
        let Some(case) = self.open(checkout, reason) else { return };
        // What would have been done in the end counts, and else what was said first.
        let spared = &mut self.cases[case].spared;
        if spared.is_none() || because == Suppression::Observe {
            *spared = Some((at, because));
        }
    }

    /// The suspicion of a checkout that has not ended.
    fn open(&self, checkout: u64, reason: Reason) -> Option<usize> {
        self.known.get(&(checkout, reason)).copied().filter(|case| self.cases[*case].end.is_none())
    }

    fn turned_away(&mut self, at: Duration, pool: String, diagnosis: String) {
        if self.turned_away.len() >= Self::MOST_POOLS {
            return;
        }
        let away = self.turned_away.entry(pool).or_default();
        if away.clients == 0 {
            (away.first, away.diagnosis) = (at, diagnosis);
        }
        away.clients += 1;
        away.last = at;
    }
}
