//! One line of the event log, read back. Pure.

use std::time::{Duration, UNIX_EPOCH};

use pgleash_core::{
    Grounds, InForce, LeftAlone, Reason, RecycleAction, RecycleOutcome, Resolution, Suppression, Wait,
};
use serde::Deserialize;

/// What a line of the log is.
#[derive(Clone, Debug)]
pub enum Line {
    /// A fact that a report tells of, and when it happened, since the Unix epoch.
    Fact(Duration, Box<Fact>),
    /// An event of pgleash's that no report tells of, and when it happened.
    Other(Duration),
    /// Nothing.
    Blank,
    /// No event of pgleash's, or of a version that is not understood.
    Foreign,
}

impl Line {
    /// Reads a line. What stands before the first brace is passed over: collectors of logs write there who
    /// said it and when.
    pub fn of(text: &str) -> Line {
        if text.trim().is_empty() {
            return Line::Blank;
        }
        let Some(from) = text.find('{') else { return Line::Foreign };
        let Ok(Dated { time, fact }) = serde_json::from_str(&text[from..]) else { return Line::Foreign };
        let at = humantime::parse_rfc3339(&time).ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        match (at, fact) {
            (None, _) => Line::Foreign,
            (Some(at), Fact::Other) => Line::Other(at),
            (Some(at), fact) => Line::Fact(at, Box::new(fact)),
        }
    }
}

#[derive(Deserialize)]
struct Dated {
    time: String,
    #[serde(flatten)]
    fact: Fact,
}

/// Who has a checkout, and what is known of it: as much of `event::Evidence` as a report tells.
#[derive(Clone, Debug, Deserialize)]
#[allow(missing_docs, reason = "named as in the event")]
pub struct Who {
    pub checkout: u64,
    pub session: u32,
    #[serde(default)]
    pub app: String,
    #[serde(default)]
    pub client: String,
    pub age_seconds: f64,
    pub idle_seconds: f64,
    pub limit_seconds: f64,
    pub route: Option<String>,
    pub statement: Option<String>,
    pub waits_for: Option<Wait>,
    /// `None` if the limit is a configured one.
    #[serde(flatten)]
    pub grounds: Option<Grounds>,
}

/// The facts that a report is made of; see `event::Event`.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs, reason = "named as in the event")]
pub enum Fact {
    Started {
        version: String,
        action: String,
        #[serde(flatten)]
        limits: Option<InForce>,
    },
    Draining {},
    Stopped {},
    PoolOpened {
        pool: String,
        size: usize,
    },
    CheckoutTimeout {
        pool: String,
        diagnosis: String,
    },
    LeakDetected {
        pool: String,
        reason: Reason,
        #[serde(flatten)]
        who: Who,
    },
    LeakResolved {
        pool: String,
        reason: Reason,
        resolution: Resolution,
        #[serde(flatten)]
        left_alone: Option<LeftAlone>,
        #[serde(flatten)]
        who: Who,
    },
    ReclaimSuppressed {
        pool: String,
        reason: Reason,
        because: Suppression,
        #[serde(flatten)]
        who: Who,
    },
    Recycled {
        pool: String,
        checkout: u64,
        backend_pid: i32,
        action: RecycleAction,
        outcome: RecycleOutcome,
    },
    ReclaimRegretted {
        pool: String,
        after_seconds: f64,
        #[serde(flatten)]
        who: Who,
    },
    LimitWidened {
        pool: String,
        app: String,
        route: Option<String>,
        limit: Reason,
        from_seconds: f64,
        to_seconds: f64,
    },
    ExhaustionForeseen {
        pool: String,
        in_seconds: f64,
        stale: usize,
    },
    ExhaustionAverted {
        pool: String,
    },
    MissingIndexSuspected {
        pool: String,
        table: String,
    },
    UpstreamFailed {
        pool: String,
        sqlstate: String,
        detail: String,
    },
    UpstreamRecovered {
        pool: String,
        down_seconds: f64,
    },
    Reloaded {
        changed: Vec<String>,
    },
    Paused {},
    Resumed {},
    HandedOver {},
    /// Of no account here.
    #[serde(other)]
    Other,
}

impl Fact {
    /// The pool that it happened in; `None` if in none.
    pub fn pool(&self) -> Option<&str> {
        match self {
            Fact::PoolOpened { pool, .. }
            | Fact::CheckoutTimeout { pool, .. }
            | Fact::LeakDetected { pool, .. }
            | Fact::LeakResolved { pool, .. }
            | Fact::ReclaimSuppressed { pool, .. }
            | Fact::Recycled { pool, .. }
            | Fact::ReclaimRegretted { pool, .. }
            | Fact::LimitWidened { pool, .. }
            | Fact::ExhaustionForeseen { pool, .. }
            | Fact::ExhaustionAverted { pool }
            | Fact::MissingIndexSuspected { pool, .. }
            | Fact::UpstreamFailed { pool, .. }
            | Fact::UpstreamRecovered { pool, .. } => Some(pool),
            Fact::Started { .. }
            | Fact::Draining {}
            | Fact::Stopped {}
            | Fact::Reloaded { .. }
            | Fact::Paused {}
            | Fact::Resumed {}
            | Fact::HandedOver {}
            | Fact::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(text: &str) -> Fact {
        match Line::of(text) {
            Line::Fact(_, fact) => *fact,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn each_event_that_pgleash_tells_is_read_back() {
        for (seq, event) in pgleash_telemetry::fixtures::events().into_iter().enumerate() {
            let told = serde_json::to_value(&event).unwrap();
            let record =
                pgleash_telemetry::Record { seq: seq as u64, time: Duration::from_millis(1500), event };
            let line = serde_json::to_string(&record).unwrap();
            let at = match Line::of(&line) {
                Line::Fact(at, _) | Line::Other(at) => at,
                other => panic!("{told}: {other:?}"),
            };
            assert_eq!(at, Duration::from_millis(1500));
        }
    }

    #[test]
    fn evidence_keeps_its_grounds_and_what_came_of_the_verdict() {
        let resolved = r#"{"time":"2026-11-25T10:00:00.5Z","event":"leak_resolved","pool":"app@shop","reason":
            "idle_in_transaction","resolution":"returned","left_alone":"observe","left_alone_seconds":2.5,"checkout":7,
            "session":9,"app":"web","age_seconds":9.5,"idle_seconds":9.0,"limit_seconds":6.3,"pauses_seen":100,
            "worst_pause_seconds":2.1,"later_over":41,"later_idle":0,"p_value":0.02,"ceiling_seconds":30.0}"#;
        let Fact::LeakResolved { who, left_alone, resolution, .. } = fact(resolved) else { panic!() };
        assert_eq!(resolution, Resolution::Returned);
        assert_eq!(left_alone, Some(LeftAlone { because: Suppression::Observe, seconds: 2.5 }));
        assert_eq!(who.grounds.map(|grounds| grounds.ceiling_seconds), Some(30.0));
    }

    #[test]
    fn what_a_collector_writes_before_the_event_is_passed_over() {
        let line = "pgleash-1  | {\"time\":\"2026-11-25T10:00:00Z\",\"event\":\"paused\",\"checkouts\":3}";
        assert!(matches!(fact(line), Fact::Paused {}));
    }

    #[test]
    fn what_is_no_event_is_foreign() {
        let lines = [
            "LOG:  checkpoint starting",
            "{\"event\":\"paused\"}",
            "{\"time\":\"yesterday\",\"event\":\"paused\"}",
            "{\"time\":\"2026-11-25T10:00:00Z\"}",
            "{\"time\":\"2026-11-25T10:00:00Z\",\"event\":\"leak_detected\",\"reason\":\"unheard_of\"}",
            "{\"time\":\"2026-11-25T10:00:00Z\",\"event\":",
        ];
        for line in lines {
            assert!(matches!(Line::of(line), Line::Foreign), "{line}");
        }
        assert!(matches!(Line::of(" \n"), Line::Blank));
    }
}
