//! What was decided, and what came of it: the events of a pgleash, as far as they tell that. Knows no terminal.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use pgleash_core::{Reason, Resolution, Suppression};

use crate::report::parse::{Fact, Line};
use crate::report::timeline::said;

/// One decision, or another thing that a person wants to know.
#[derive(Clone, Debug)]
pub struct Decision {
    /// When, since the Unix epoch.
    pub at: Duration,
    /// `info`, `warn` or `error`.
    pub level: String,
    /// What, in words; names in it come from clients.
    pub what: String,
    /// Which suspicion it is about, if it is about one.
    about: Option<(u64, Reason)>,
    /// That the checkout was due and not taken.
    spared: Option<Suppression>,
    /// How the suspicion ended.
    end: Option<Resolution>,
}

impl Decision {
    /// What came of it; empty where nothing is to come. `out` has the checkouts that are out now.
    pub fn outcome(&self, out: &HashSet<u64>) -> &'static str {
        match (self.about, self.end) {
            (None, _) => "",
            (_, Some(Resolution::Returned)) => "it went on by itself: no leak",
            (_, Some(Resolution::Reclaimed)) => "taken back",
            (_, Some(Resolution::Disconnected)) => "its client left",
            (_, Some(Resolution::ServerLost)) => "its server connection was lost",
            (Some((checkout, _)), None) if out.contains(&checkout) => "still out",
            (Some(_), None) => "not told",
        }
    }
}

/// The latest of them.
#[derive(Debug, Default)]
pub struct Decisions(VecDeque<Decision>);

impl Decisions {
    /// How many are kept.
    const MOST: usize = 2000;

    /// Takes in an event, as the API tells it.
    pub fn hear(&mut self, event: &serde_json::Value) {
        let Line::Fact(at, fact) = Line::of(&event.to_string()) else { return };
        if let Fact::LeakResolved { reason, resolution, who, .. } = &*fact {
            let about = Some((who.checkout, *reason));
            let mut known = false;
            for one in self.0.iter_mut().filter(|one| one.about == about && one.end.is_none()) {
                one.end = Some(*resolution);
                known = true;
            }
            if known {
                return;
            }
        }
        let (about, spared) = match &*fact {
            Fact::LeakDetected { reason, who, .. } => (Some((who.checkout, *reason)), None),
            Fact::ReclaimSuppressed { reason, because, who, .. } => {
                (Some((who.checkout, *reason)), Some(*because))
            }
            _ => (None, None),
        };
        let Some(what) = said(&fact) else { return };
        let level = event["level"].as_str().unwrap_or_default().to_owned();
        self.0.push_back(Decision { at, level, what, about, spared, end: None });
        if self.0.len() > Self::MOST {
            self.0.pop_front();
        }
    }

    /// Newest first.
    pub fn latest(&self) -> impl Iterator<Item = &Decision> {
        self.0.iter().rev()
    }

    /// What enforcement would have done, in words. `out` has the checkouts that are out now.
    pub fn would_have_done(&self, out: &HashSet<u64>) -> String {
        let spared = |because| self.0.iter().filter(move |one| one.spared == Some(because));
        let due: Vec<_> = spared(Suppression::Observe).collect();
        if due.is_empty() {
            return "enforcement would have done nothing: no connection was due so far".to_owned();
        }
        let taken: HashSet<_> =
            due.iter().filter_map(|one| one.about).map(|(checkout, _)| checkout).collect();
        let beyond = spared(Suppression::Budget).filter_map(|one| one.about);
        let beyond = beyond.filter(|(checkout, _)| !taken.contains(checkout)).count();
        let held = due.iter().filter(|one| one.outcome(out) == "still out").count();
        let wrong = due.iter().filter(|one| one.end == Some(Resolution::Returned)).count();
        let mut said = format!("enforcement would have taken back {}", connections(due.len()));
        if beyond > 0 {
            said += &format!(", and {beyond} more were due beyond the budget");
        }
        if held > 0 {
            said += &format!("; {held} of them would be in the pool now");
        }
        said + &match wrong {
            0 => "; none of them went on later".to_owned(),
            n => format!("; {n} would have been wrong, as the client went on later: raise the limit first"),
        }
    }
}

fn connections(number: usize) -> String {
    if number == 1 { "1 connection".to_owned() } else { format!("{number} connections") }
}
