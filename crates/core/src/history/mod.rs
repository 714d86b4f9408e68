//! What is usual: how long healthy holders pause, and how long they hold, for each kind of work. Pure.
//!
//! A pause that ended because the client went on was a healthy one, whatever became of its checkout later;
//! so checkouts that are still out are evidence as well. Lengths are kept in two sketches that take turns, so
//! that what was usual yesterday is forgotten. Everything is bounded: so many applications, so many groups,
//! and what is beyond that shares one group, which is counted.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use sketches_ddsketch::{Config, DDSketch};

use crate::activity::Pause;
use crate::ids::Moment;

/// One kind of work within one [`History`]: an application, or a route of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GroupId(usize);

impl GroupId {
    /// Its place among the [`History::groups`].
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

/// What is known of the pauses that are usual for a kind of work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Habit {
    /// Healthy pauses that were seen within the memory.
    pub pauses: u64,
    /// Over how long a time.
    pub over: Duration,
    /// The longest of them.
    pub worst: Duration,
    /// Of whom: the group itself, or its application if the group is too new.
    pub of: Option<GroupId>,
    /// It is the group's own.
    pub is_own: bool,
}

impl Habit {
    /// Fewer pauses say too little.
    pub(crate) const ENOUGH: u64 = 300;
    /// Seen in a shorter time, they may all be of one mood.
    pub(crate) const LONG_ENOUGH: Duration = Duration::from_secs(60);

    /// What is taken before its ceiling must be founded on more: on rare work, too, that is as it should be.
    pub(crate) const AMPLE: u64 = 1000;
    /// And on a longer time.
    pub(crate) const LONG: Duration = Duration::from_secs(600);

    /// Whether it says enough to suspect by.
    pub(crate) fn is_warm(&self) -> bool {
        self.pauses >= Self::ENOUGH && self.over >= Self::LONG_ENOUGH
    }

    /// Whether it says enough to take a connection by before its ceiling.
    pub(crate) fn is_ripe(&self) -> bool {
        self.is_own && self.pauses >= Self::AMPLE && self.over >= Self::LONG
    }
}

/// Lengths in seconds that fade: two sketches, of which the older is dropped from time to time.
struct Fading {
    young: DDSketch,
    old: DDSketch,
    /// When the young one began.
    turned: Moment,
    /// The first length that is in either.
    since: Option<Moment>,
}

impl fmt::Debug for Fading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fading")
            .field("count", &self.count())
            .field("worst", &self.worst())
            .finish_non_exhaustive()
    }
}

impl Fading {
    /// A length is remembered for this at least, and for twice this at most.
    const TERM: Duration = Duration::from_secs(1800);

    fn new(now: Moment) -> Self {
        Self { young: sketch(), old: sketch(), turned: now, since: None }
    }

    fn add(&mut self, length: Duration, now: Moment) {
        self.turn(now);
        self.since.get_or_insert(now);
        self.young.add(length.as_secs_f64());
    }

    fn turn(&mut self, now: Moment) {
        let passed = now.since(self.turned);
        if passed < Self::TERM {
            return;
        }
        let young = std::mem::replace(&mut self.young, sketch());
        self.old = if passed < 2 * Self::TERM { young } else { sketch() };
        self.since = (self.old.count() > 0).then_some(self.turned);
        self.turned = now;
    }

    fn count(&self) -> u64 {
        (self.young.count() + self.old.count()) as u64
    }

    fn worst(&self) -> Duration {
        let worst = |sketch: &DDSketch| sketch.max().filter(|max| max.is_finite()).unwrap_or(0.0);
        Duration::try_from_secs_f64(worst(&self.young).max(worst(&self.old))).unwrap_or_default()
    }

    /// Seconds below which this share of the lengths lies, to two parts in a hundred; `None` without any.
    #[cfg(test)]
    fn quantile(&self, share: f64) -> Option<f64> {
        let mut all = self.old.clone();
        all.merge(&self.young).ok()?;
        all.quantile(share).ok().flatten()
    }
}

/// DDSketch (Masson, Rim and Lee, VLDB 2019): quantiles to a relative error of 2 %, from 1 µs on, in at most
/// 1,024 bins. The largest value is exact.
fn sketch() -> DDSketch {
    DDSketch::new(Config::new(0.02, 1024, 1e-6))
}

/// How many siblings went on after a pause, by the second in which their pause began at the earliest.
#[derive(Debug, Default)]
struct Recent(VecDeque<(u64, u32)>);

impl Recent {
    /// Longer ago nobody asks for.
    const SECONDS: u64 = 900;

    fn add(&mut self, began: Moment) {
        let second = second_of(began);
        let newest = self.0.back().map_or(second, |(newest, _)| *newest);
        if second + Self::SECONDS < newest {
            return;
        }
        match self.0.iter().rposition(|(at, _)| *at <= second) {
            Some(place) if self.0[place].0 == second => self.0[place].1 = self.0[place].1.saturating_add(1),
            place => self.0.insert(place.map_or(0, |place| place + 1), (second, 1)),
        }
        while self.0.front().is_some_and(|(at, _)| at + Self::SECONDS < newest.max(second)) {
            self.0.pop_front();
        }
    }

    /// How many of them began later than `moment`, by a second or more to be sure.
    fn since(&self, moment: Moment) -> u64 {
        let second = second_of(moment);
        self.0.iter().rev().take_while(|(at, _)| *at > second).map(|(_, count)| u64::from(*count)).sum()
    }
}

const fn second_of(moment: Moment) -> u64 {
    moment.as_nanos() / 1_000_000_000
}

#[derive(Debug)]
struct Record {
    parent: Option<GroupId>,
    /// Checkouts that are out.
    out: usize,
    last: Moment,
    pauses: [(Fading, Recent); Pause::ALL.len()],
    holds: Fading,
}

impl Record {
    fn new(parent: Option<GroupId>, now: Moment) -> Self {
        let pauses = || (Fading::new(now), Recent::default());
        Self { parent, out: 0, last: now, pauses: [pauses(), pauses()], holds: Fading::new(now) }
    }

    fn habit(&self, pause: Pause, of: GroupId, now: Moment) -> Habit {
        let (lengths, _) = &self.pauses[pause as usize];
        // Nobody has added anything for so long that nothing of it counts any more.
        if now.since(lengths.turned) >= 2 * Fading::TERM {
            return Habit::default();
        }
        let over = lengths.since.map_or(Duration::ZERO, |since| now.since(since));
        Habit { pauses: lengths.count(), over, worst: lengths.worst(), of: Some(of), is_own: true }
    }
}

#[derive(Debug)]
struct App {
    group: GroupId,
    routes: HashMap<Arc<str>, GroupId>,
}

/// What is usual in one pool.
#[derive(Debug)]
pub(crate) struct History {
    records: Vec<Record>,
    free: Vec<GroupId>,
    apps: HashMap<Arc<str>, App, RandomState>,
    folded: u64,
}

impl History {
    /// Where those go for whom there is no room.
    pub(crate) const OTHER: GroupId = GroupId(0);
    /// How many applications are told apart.
    pub(crate) const APPS: usize = 64;
    /// How many groups there may be: applications, and routes of applications.
    pub(crate) const GROUPS: usize = 256;

    /// Nothing is known.
    pub(crate) fn new() -> Self {
        let other = Record::new(None, Moment::START);
        Self { records: vec![other], free: Vec::new(), apps: HashMap::default(), folded: 0 }
    }

    /// A checkout of this kind of work begins; its group, to be given back with [`History::ended`].
    pub(crate) fn began(&mut self, app: &str, route: Option<&Arc<str>>, now: Moment) -> GroupId {
        let group = self.find(app, route, now).unwrap_or_else(|| {
            self.folded += 1;
            Self::OTHER
        });
        self.records[group.0].out += 1;
        group
    }

    /// A checkout of the group is over, or has turned out to be of another.
    pub(crate) fn ended(&mut self, group: GroupId, now: Moment) {
        let record = &mut self.records[group.0];
        record.out = record.out.saturating_sub(1);
        record.last = now;
    }

    fn find(&mut self, app: &str, route: Option<&Arc<str>>, now: Moment) -> Option<GroupId> {
        let whole = match self.apps.get(app) {
            Some(known) => known.group,
            None => {
                if self.apps.len() >= Self::APPS {
                    self.forget_old(now);
                }
                if self.apps.len() >= Self::APPS {
                    return None;
                }
                let group = self.make(None, now)?;
                self.apps.insert(app.into(), App { group, routes: HashMap::new() });
                group
            }
        };
        let Some(route) = route else { return Some(whole) };
        if let Some(group) = self.apps.get(app)?.routes.get(route) {
            return Some(*group);
        }
        let Some(group) = self.make(Some(whole), now) else {
            // Its application is known, and is the better measure than everybody else together.
            self.folded += 1;
            return Some(whole);
        };
        self.apps.get_mut(app)?.routes.insert(Arc::clone(route), group);
        Some(group)
    }

    fn make(&mut self, parent: Option<GroupId>, now: Moment) -> Option<GroupId> {
        if self.free.is_empty() && self.records.len() >= Self::GROUPS && parent.is_some() {
            self.forget_old(now);
        }
        let record = Record::new(parent, now);
        if let Some(group) = self.free.pop() {
            self.records[group.0] = record;
            return Some(group);
        }
        // Routes leave room for applications.
        let room = if parent.is_some() { Self::GROUPS } else { Self::GROUPS + Self::APPS };
        (self.records.len() < room).then(|| {
            self.records.push(record);
            GroupId(self.records.len() - 1)
        })
    }

    /// Frees the groups in which nothing is out and whose memory has faded.
    fn forget_old(&mut self, now: Moment) {
        let Self { records, free, apps, .. } = self;
        let is_old = |group: GroupId| {
            let record = &records[group.0];
            record.out == 0 && now.since(record.last) >= 2 * Fading::TERM
        };
        for app in apps.values_mut() {
            app.routes.retain(|_, group| {
                let keep = !is_old(*group);
                if !keep {
                    free.push(*group);
                }
                keep
            });
        }
        apps.retain(|_, app| {
            let keep = !app.routes.is_empty() || !is_old(app.group);
            if !keep {
                free.push(app.group);
            }
            keep
        });
    }

    /// How many groups there have been.
    pub(crate) fn groups(&self) -> usize {
        self.records.len()
    }

    /// The application of a group; itself, if it is one.
    pub(crate) fn app_of(&self, group: GroupId) -> GroupId {
        self.records[group.0].parent.unwrap_or(group)
    }

    /// A pause of a checkout of this group ended by the client's going on. It began at `began` at the earliest.
    pub(crate) fn paused(
        &mut self,
        group: GroupId,
        pause: Pause,
        length: Duration,
        began: Moment,
        now: Moment,
    ) {
        let mut next = Some(group);
        while let Some(group) = next {
            let record = &mut self.records[group.0];
            let (lengths, over) = &mut record.pauses[pause as usize];
            lengths.add(length, now);
            over.add(began);
            record.last = now;
            next = record.parent;
        }
    }

    /// A checkout of this group came home by itself.
    pub(crate) fn held(&mut self, group: GroupId, held: Duration, now: Moment) {
        self.records[group.0].holds.add(held, now);
    }

    /// What is usual for the group; for its application, if of the group itself too little is known.
    pub(crate) fn habit(&self, group: GroupId, pause: Pause, now: Moment) -> Habit {
        let record = &self.records[group.0];
        let own = record.habit(pause, group, now);
        match record.parent {
            Some(app) if !own.is_warm() => {
                Habit { is_own: false, ..self.records[app.0].habit(pause, app, now) }
            }
            // Everybody for whom there was no room: they may be of any kind.
            None if group == Self::OTHER => Habit { is_own: false, ..own },
            _ => own,
        }
    }

    /// How many pauses of the group began after `moment` and are over.
    pub(crate) fn over_since(&self, group: GroupId, pause: Pause, moment: Moment) -> u64 {
        self.records[group.0].pauses[pause as usize].1.since(moment)
    }

    /// Below which time this share of the group's checkouts came home, in seconds; `None` before any did.
    #[cfg(test)]
    pub(crate) fn hold_quantile(&self, group: GroupId, share: f64) -> Option<f64> {
        self.records[group.0].holds.quantile(share)
    }

    /// How often there was no room for a group of its own since this was asked last.
    pub(crate) fn take_folded(&mut self) -> u64 {
        std::mem::take(&mut self.folded)
    }
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}
