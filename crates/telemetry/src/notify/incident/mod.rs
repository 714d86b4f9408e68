//! From facts to what a person is told: few notices, each with an end. Pure.
//!
//! A leak of every second must not be a page of every second. Facts of one kind in one pool are one
//! incident: it is told when it begins, and when it has been quiet for [`Incidents::QUIET`].

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use pgleash_core::{CheckoutId, Event, Evidence, PoolKey, Reason, RecycleOutcome, Resolution, Suppression};
use serde::Serialize;

use crate::telemetry::Record;

/// Whether an incident begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It has begun.
    Triggered,
    /// It is over.
    Resolved,
}

/// How bad it is, in the words of PagerDuty's Events API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth a look by day.
    Warning,
    /// Something was done wrong, or was not done.
    Error,
    /// Clients are hurt now.
    Critical,
}

/// What a person is told. Field names are those that `events.template` can use.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Notice {
    /// Begin or end.
    pub status: Status,
    /// How bad.
    pub severity: Severity,
    /// The same for begin and end of one incident, and for nothing else in this process at that time.
    #[serde(skip)]
    pub key: String,
    /// One word for what it is: `idle_in_transaction`, `pool_exhausted`.
    pub what: &'static str,
    /// `user@database`; empty if it is about no pool.
    pub pool: String,
    /// The application first met in it; empty if unknown.
    pub app: String,
    /// How many facts it has had.
    pub count: usize,
    /// One sentence.
    pub summary: String,
    /// When it began, since the Unix epoch.
    #[serde(skip)]
    pub began: Duration,
    /// When what this tells happened, since the Unix epoch.
    #[serde(skip)]
    pub at: Duration,
}

/// The incidents that are not over.
#[derive(Debug, Default)]
pub struct Incidents {
    open: BTreeMap<(PoolLabel, &'static str), Open>,
}

type PoolLabel = String;

#[derive(Debug)]
struct Open {
    severity: Severity,
    app: String,
    began: Duration,
    last: Duration,
    count: usize,
    reclaimed: usize,
    /// Suspects that are still out. While there is one the incident is not over.
    members: BTreeSet<CheckoutId>,
}

/// What a fact means for an incident.
struct Meaning<'a> {
    severity: Severity,
    pool: Option<&'a PoolKey>,
    what: &'static str,
    member: Option<&'a Evidence>,
    summary: String,
}

impl Incidents {
    /// An incident without a suspect that is out, and without news for so long, is over.
    pub const QUIET: Duration = Duration::from_secs(300);
    /// More incidents at one time are told as those of the pool `other`.
    pub const MOST: usize = 256;

    /// Takes one fact in; what is to be told because of it.
    pub fn hear(&mut self, record: &Record) -> Option<Notice> {
        match &record.event {
            Event::LeakResolved { pool, reason, resolution, evidence, .. } => {
                self.left(pool, *reason, *resolution, evidence.checkout, record.time);
                None
            }
            Event::UpstreamRecovered { pool, down_seconds, .. } => {
                let summary = format!("the server of {pool} can be reached again after {down_seconds:.0} s");
                self.close(&(pool.to_string(), UPSTREAM), record.time, Some(summary))
            }
            event => self.happened(meaning(event)?, record.time),
        }
    }

    /// The incidents that are over because nothing more was heard of them. `now` is since the Unix epoch.
    pub fn quiet(&mut self, now: Duration) -> Vec<Notice> {
        let over = |open: &Open| open.members.is_empty() && now.saturating_sub(open.last) >= Self::QUIET;
        let keys: Vec<_> =
            self.open.iter().filter(|(_, open)| over(open)).map(|(key, _)| key.clone()).collect();
        keys.iter().filter_map(|key| self.close(key, now, None)).collect()
    }

    /// Facts were missed: who is still out is not known any more.
    pub fn missed(&mut self) {
        self.open.values_mut().for_each(|open| open.members.clear());
    }

    fn happened(&mut self, meaning: Meaning<'_>, at: Duration) -> Option<Notice> {
        let Meaning { severity, pool, what, member, summary } = meaning;
        let key = (self.label(pool, what), what);
        let open = self.open.entry(key.clone()).or_insert_with(|| Open {
            severity,
            app: member.map_or_else(String::new, |evidence| evidence.holder.app.clone()),
            began: at,
            last: at,
            count: 0,
            reclaimed: 0,
            members: BTreeSet::new(),
        });
        open.count += 1;
        open.last = at;
        open.members.extend(member.map(|evidence| evidence.checkout));
        (open.count == 1).then(|| notice(Status::Triggered, &key, open, at, summary))
    }

    fn left(
        &mut self,
        pool: &PoolKey,
        reason: Reason,
        resolution: Resolution,
        who: CheckoutId,
        at: Duration,
    ) {
        let what = reason.as_str();
        let Some(open) = self.open.get_mut(&(self.label(Some(pool), what), what)) else { return };
        if open.members.remove(&who) {
            open.last = at;
            open.reclaimed += usize::from(resolution == Resolution::Reclaimed);
        }
    }

    fn close(
        &mut self,
        key: &(PoolLabel, &'static str),
        at: Duration,
        said: Option<String>,
    ) -> Option<Notice> {
        let open = self.open.remove(key)?;
        let summary = said.unwrap_or_else(|| over(key, &open));
        Some(notice(Status::Resolved, key, &open, at, summary))
    }

    fn label(&self, pool: Option<&PoolKey>, what: &'static str) -> PoolLabel {
        let label = pool.map_or_else(String::new, PoolKey::to_string);
        if self.open.len() < Self::MOST || self.open.contains_key(&(label.clone(), what)) {
            label
        } else {
            "other".to_owned()
        }
    }
}

const UPSTREAM: &str = "upstream_unreachable";

fn notice(
    status: Status,
    (pool, what): &(PoolLabel, &'static str),
    open: &Open,
    at: Duration,
    summary: String,
) -> Notice {
    Notice {
        status,
        severity: open.severity,
        key: format!("{what}/{pool}/{}", open.began.as_millis()),
        what,
        pool: pool.clone(),
        app: open.app.clone(),
        count: open.count,
        summary,
        began: open.began,
        at,
    }
}

fn over((pool, what): &(PoolLabel, &'static str), open: &Open) -> String {
    let of = if pool.is_empty() { String::new() } else { format!(" in {pool}") };
    let minutes = open.last.saturating_sub(open.began).as_secs_f64() / 60.0;
    let taken = match open.reclaimed {
        0 => String::new(),
        reclaimed => format!(", {reclaimed} taken back"),
    };
    format!("{what}{of} is over: {} in {minutes:.1} min{taken}", open.count)
}

/// What a fact means; `None` for normal life, and for what is over as soon as it is found.
fn meaning(event: &Event) -> Option<Meaning<'_>> {
    let about = |severity, pool, what, summary| Meaning { severity, pool, what, member: None, summary };
    Some(match event {
        Event::LeakDetected { pool, reason, evidence } if lasts(*reason) => Meaning {
            severity: Severity::Warning,
            pool: Some(pool),
            what: reason.as_str(),
            member: Some(evidence),
            summary: format!(
                "{} holds a connection of {pool} that looks leaked: {reason} for {:.0} s",
                app(evidence),
                evidence.idle_seconds
            ),
        },
        Event::CheckoutTimeout { pool, diagnosis, .. } => about(
            Severity::Critical,
            Some(pool),
            "pool_exhausted",
            format!("clients of {pool} wait for a connection in vain: {diagnosis}"),
        ),
        Event::UpstreamFailed { pool, detail, .. } => about(
            Severity::Critical,
            Some(pool),
            UPSTREAM,
            format!("the server of {pool} cannot be reached: {detail}"),
        ),
        Event::ReclaimRegretted { pool, evidence, .. } => about(
            Severity::Error,
            Some(pool),
            "false_reclaim",
            format!("{} came back after its connection of {pool} was taken", app(evidence)),
        ),
        Event::ReclaimSuppressed { pool, because: Suppression::Budget, dry_run: false, evidence, .. } => {
            about(
                Severity::Error,
                Some(pool),
                "budget_exhausted",
                format!(
                    "leaked connections of {pool} are left where they are, {} first: the budget is spent",
                    app(evidence)
                ),
            )
        }
        Event::Recycled { pool, outcome: RecycleOutcome::BackendLingers, backend_pid, .. } => about(
            Severity::Error,
            Some(pool),
            "backend_lingers",
            format!("a connection of {pool} was closed, and its backend {backend_pid} is still there"),
        ),
        Event::CredentialsKept { what, detail } => about(
            Severity::Error,
            None,
            "credentials_kept",
            format!("a changed {what} does not work, the old one is kept: {detail}"),
        ),
        Event::ReloadRefused { problems } => about(
            Severity::Warning,
            None,
            "reload_refused",
            format!("a changed configuration is wrong, the old one is kept; errors: {}", problems.len()),
        ),
        _ => return None,
    })
}

/// Whether a leak for this reason lasts until something is done about it. A slow statement does too, but
/// is nothing to wake anybody for.
const fn lasts(reason: Reason) -> bool {
    match reason {
        Reason::ProtocolWedge | Reason::IdleInTransaction | Reason::IdleSession | Reason::Overdue => true,
        Reason::DirtyReturn | Reason::Orphaned | Reason::SlowStatement => false,
    }
}

fn app(evidence: &Evidence) -> &str {
    match evidence.holder.app.as_str() {
        "" => "a client without application_name",
        app => app,
    }
}
