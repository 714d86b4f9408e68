//! Logs of incidents, written by the events themselves, and what is told of them.

use std::sync::Arc;

use pgleash_core::{
    CheckoutId, ConnId, Event, Evidence, Holder, LeftAlone, PoolKey, Reason, RecycleAction, RecycleOutcome,
    Resolution, Suppression,
};
use pgleash_telemetry::{Record, fixtures};

use super::*;
use crate::report::{history, layout};

/// 2026-11-25T10:00:00Z.
const TEN: u64 = 1_795_600_800;

/// An event log as pgleash writes it.
#[derive(Default)]
struct Log(Vec<String>);

impl Log {
    fn started(action: &'static str) -> Log {
        let mut log = Log::default();
        let Some(mut started) = fixtures::events().into_iter().next() else { panic!() };
        if let Event::Started { action: told, .. } = &mut started {
            *told = action;
        }
        log.tell(0.0, started);
        log.tell(0.0, Event::PoolOpened { pool: fixtures::payments(), size: 20 });
        log
    }

    fn tell(&mut self, at: f64, event: Event) {
        let time = Duration::from_secs(TEN) + Duration::from_secs_f64(at);
        let record = Record { seq: self.0.len() as u64 + 1, time, event };
        self.0.push(serde_json::to_string(&record).unwrap());
    }

    fn detected(&mut self, at: f64, who: Evidence) {
        let (pool, reason) = (fixtures::payments(), Reason::IdleInTransaction);
        self.tell(at, Event::LeakDetected { pool, reason, evidence: who });
    }

    fn resolved(&mut self, at: f64, resolution: Resolution, spared: Option<f64>, who: Evidence) {
        let (pool, reason) = (fixtures::payments(), Reason::IdleInTransaction);
        let left_alone = spared.map(|seconds| LeftAlone { because: Suppression::Observe, seconds });
        self.tell(at, Event::LeakResolved { pool, reason, resolution, left_alone, evidence: who });
    }

    fn spared(&mut self, at: f64, because: Suppression, who: Evidence) {
        let (pool, reason) = (fixtures::payments(), Reason::IdleInTransaction);
        let dry_run = because == Suppression::Observe;
        self.tell(at, Event::ReclaimSuppressed { pool, reason, because, dry_run, evidence: who });
    }

    /// Suspect after half of 30 s, taken after all of it.
    fn leak(&mut self, at: f64, checkout: u64, app: &str) {
        self.detected(at + 15.0, idle(checkout, app, 15.0));
        self.resolved(at + 30.0, Resolution::Reclaimed, None, idle(checkout, app, 30.0));
        self.tell(
            at + 30.0,
            Event::Recycled {
                pool: fixtures::payments(),
                conn: ConnId(1),
                checkout: CheckoutId(checkout),
                backend_pid: 1,
                action: RecycleAction::Reset,
                outcome: RecycleOutcome::Reissued,
                elapsed_seconds: 0.01,
                detail: String::new(),
            },
        );
    }

    fn story(&self) -> Story {
        self.seen_in(Window::default())
    }

    fn seen_in(&self, window: Window) -> Story {
        let mut story = Story::new(window);
        hear(&mut story, self.0.join("\n").as_bytes()).unwrap();
        story
    }

    fn markdown(&self) -> String {
        let story = self.story();
        let blocks = layout::blocks(&story, &Findings::of(&story));
        markdown::page("pgleash report", &blocks, &Curve::of(&story))
    }
}

fn idle(checkout: u64, app: &str, seconds: f64) -> Evidence {
    let holder = Holder { app: app.to_owned(), ..(*fixtures::holder(checkout as u32, app)).clone() };
    Evidence {
        checkout: CheckoutId(checkout),
        holder: Arc::new(holder),
        age_seconds: seconds + 0.5,
        idle_seconds: seconds,
        ..fixtures::evidence()
    }
}

fn settings(log: &Log) -> Vec<String> {
    let story = log.story();
    advise(&story, &Findings::of(&story)).into_iter().map(|advice| advice.setting).collect()
}

/// Two kinds of work leak; one healthy checkout was suspect, and one was taken.
fn incident() -> Log {
    let mut log = Log::started("reclaim");
    for n in 0..6 {
        let mut leak = idle(10 + n, "checkout@3.2.1", 15.0);
        leak.route = Some("POST /pay".into());
        leak.statement = Some("insert into t values (?)".into());
        let at = n as f64 * 20.0;
        log.detected(at + 15.0, leak.clone());
        log.resolved(at + 30.0, Resolution::Reclaimed, None, Evidence { idle_seconds: 30.0, ..leak });
    }
    log.leak(40.0, 31, "batch");
    log.detected(60.0, idle(32, "web", 15.0));
    log.resolved(63.0, Resolution::Returned, None, idle(32, "web", 18.0));
    log.tell(
        90.0,
        Event::ExhaustionForeseen {
            pool: fixtures::payments(),
            in_seconds: 540.0,
            stale: 4,
            holders: Vec::new(),
        },
    );
    log.leak(100.0, 33, "slow|<b>");
    let evidence = idle(33, "slow|<b>", 30.0);
    log.tell(132.0, Event::ReclaimRegretted { pool: fixtures::payments(), evidence, after_seconds: 2.0 });
    log
}

#[test]
fn an_incident_is_told_with_its_cause_first() {
    insta::assert_snapshot!(incident().markdown());
}

#[test]
fn a_reclaim_that_was_regretted_is_a_healthy_checkout_that_was_taken() {
    let findings = Findings::of(&incident().story());
    let [touched] = &findings.touched[..] else { panic!("{:?}", findings.touched) };
    assert_eq!((touched.session, touched.idle_seconds), (33, 32.0), "idle until it came back");
    assert_eq!((findings.score.verdicts, findings.score.right), (8, 7));
    assert_eq!((findings.score.leaks, findings.score.found), (7, 7));
    assert_eq!(settings(&incident()), ["leaks.rules = \"app=slow|<b> 50s\""]);
}

#[test]
fn a_dry_run_that_was_right_may_be_carried_out() {
    let mut log = Log::started("observe");
    for n in 0..10 {
        log.detected(15.0 + n as f64, idle(n, "leaky", 15.0));
        log.spared(30.0 + n as f64, Suppression::Observe, idle(n, "leaky", 30.0));
    }
    assert_eq!(settings(&log), [""; 0], "the verdicts have not stood for long");
    log.resolved(90.0, Resolution::Disconnected, Some(60.0), idle(0, "leaky", 90.0));
    let findings = Findings::of(&log.story());
    assert_eq!(
        (findings.score.verdicts, findings.score.right, findings.taken),
        (10, 10, 0),
        "nine are still out"
    );
    assert_eq!(findings.observed(), 10);
    assert_eq!(settings(&log).last().map(String::as_str), Some("leaks.action = \"reclaim\""));
}

#[test]
fn a_dry_run_that_was_wrong_says_for_whom() {
    let mut log = Log::started("observe");
    let nightly = |seconds| idle(1, "nightly@7", seconds);
    log.detected(15.0, nightly(15.0));
    log.spared(30.0, Suppression::Observe, nightly(30.0));
    log.resolved(95.0, Resolution::Returned, Some(65.0), nightly(95.0));
    log.detected(100.0, idle(2, "leaky", 15.0));
    log.spared(115.0, Suppression::Observe, idle(2, "leaky", 30.0));
    log.detected(150.0, idle(3, "leaky", 15.0));
    let findings = Findings::of(&log.story());
    assert_eq!((findings.score.precision(), findings.score.recall()), (Some(0.5), Some(1.0)));
    assert_eq!(settings(&log), ["leaks.rules = \"app=nightly@* 150s\"", ""]);
    let trial = |seconds: f64| findings.trials.iter().find(|trial| trial.seconds == seconds).unwrap();
    assert_eq!((trial(60.0).healthy, trial(120.0).healthy), (1, 0));
    assert_eq!((trial(10.0).known, trial(15.0).known), (findings::Known::Some, findings::Known::All));
}

#[test]
fn leaks_beyond_the_budget_ask_for_more_of_it() {
    let mut log = Log::started("reclaim");
    for n in 0..8 {
        log.detected(15.0, idle(n, "leaky", 15.0));
        log.spared(30.0, Suppression::Budget, idle(n, "leaky", 30.0));
    }
    assert_eq!(settings(&log), ["leaks.budget = \"40%/60s\""], "8 of 20 within a minute");
}

#[test]
fn a_limit_that_is_longer_than_anything_healthy_may_be_shorter() {
    let mut log = Log::started("reclaim");
    for n in 0..10 {
        log.leak(n as f64, n, "leaky");
    }
    assert_eq!(settings(&log), ["leaks.idle_in_transaction = \"15s\""], "from 15 s on all pauses are known");
}

/// What is suggested is what the configuration takes.
#[test]
fn every_suggestion_can_be_set() {
    let mut odd = Log::started("observe");
    for (n, app) in ["a;b", "c,d", "e\"f", "", "g\\h@1"].into_iter().enumerate() {
        let who =
            |seconds| Evidence { route: (n == 1).then(|| "GET /x;y".into()), ..idle(n as u64, app, seconds) };
        odd.detected(15.0, who(15.0));
        odd.spared(30.0, Suppression::Observe, who(30.0));
        odd.resolved(95.0, Resolution::Returned, Some(65.0), who(95.0));
        if n == 2 {
            check(&odd);
        }
    }
    check(&odd);
    check(&incident());

    fn check(log: &Log) {
        let said: Vec<_> = settings(log).into_iter().filter(|setting| !setting.is_empty()).collect();
        assert!(!said.is_empty(), "{:?}", settings(log));
        for setting in said {
            let (key, value) = setting.split_once(" = ").unwrap();
            let flags = vec![
                pgleash_sidecar::config::Flag::Named("--upstream", "postgres://u@h/d".to_owned()),
                pgleash_sidecar::config::Flag::Set(format!("{key}={}", value.trim_matches('"'))),
            ];
            let sources = pgleash_sidecar::config::Sources { flags, ..Default::default() };
            if let Err(problems) = pgleash_sidecar::config::load(&sources) {
                panic!("{setting}: {problems}");
            }
        }
    }
}

#[test]
fn who_leaves_outside_of_a_transaction_gives_back_and_who_leaves_within_does_not() {
    let mut log = Log::started("reclaim");
    let pool = fixtures::payments;
    for (checkout, reason) in [(1, Reason::IdleSession), (2, Reason::IdleInTransaction)] {
        let who = |seconds| idle(checkout, "short-lived", seconds);
        log.tell(15.0, Event::LeakDetected { pool: pool(), reason, evidence: who(15.0) });
        let resolution = Resolution::Disconnected;
        let gone =
            Event::LeakResolved { pool: pool(), reason, resolution, left_alone: None, evidence: who(20.0) };
        log.tell(20.0, gone);
    }
    let findings = Findings::of(&log.story());
    assert_eq!((findings.holders[0].leaked, findings.score.leaks, findings.score.found), (1, 1, 0));
}

#[test]
fn a_window_cuts_out_a_part() {
    let since = Some(Duration::from_secs(TEN + 99));
    let part = incident().seen_in(Window { since, ..Window::default() });
    let findings = Findings::of(&part);
    assert_eq!(findings.taken, 3, "one of them had become suspect before");
    assert_eq!(part.span.map(|(from, _)| from), Some(Duration::from_secs(TEN + 110)));
    let other = incident().seen_in(Window { pool: Some("nobody@nowhere".to_owned()), ..Window::default() });
    assert!(other.cases.is_empty());
}

#[test]
fn a_restart_ends_what_was_out() {
    let mut log = Log::started("observe");
    log.detected(15.0, idle(1, "leaky", 15.0));
    log.spared(30.0, Suppression::Observe, idle(1, "leaky", 30.0));
    log.0.extend(Log::started("reclaim").0);
    log.detected(45.0, idle(1, "another", 15.0));
    let story = log.story();
    assert_eq!(story.cases[0].fate(), history::Fate::Unknown);
    assert_eq!(story.cases[1].fate(), history::Fate::StillOut);
    assert_eq!(Findings::of(&story).score.verdicts, 0, "what came of it is not known");
    assert_eq!(story.action.as_deref(), Some("reclaim"));
}

#[test]
fn a_reload_changes_the_action() {
    let mut log = Log::started("observe");
    let changed = vec!["leaks.action: observe -> reclaim".to_owned()];
    log.tell(1.0, Event::Reloaded { changed, needs_restart: Vec::new() });
    assert_eq!(log.story().action.as_deref(), Some("reclaim"));
}

#[test]
fn strange_lines_are_counted_and_harm_nothing() {
    let mut story = Story::new(Window::default());
    let long = format!("{{\"time\":\"{}\n", "x".repeat(3 << 20));
    let text = format!("LOG: checkpoint\n\n{long}\u{0}\n{{}}\n{}", incident().0.join("\n"));
    let mut bytes = text.into_bytes();
    bytes.extend(b"\n\xff\xfe{\n");
    hear(&mut story, &bytes[..]).unwrap();
    assert_eq!(story.foreign, 5);
    assert_eq!(Findings::of(&story).taken, 8);
}

#[test]
fn memory_is_bounded_by_kinds_and_not_by_time() {
    let mut log = Log::default();
    for n in 0..1000 {
        let pool = PoolKey::new(&format!("d{n}"), "u");
        log.tell(n as f64, Event::ExhaustionAverted { pool, stale: 0 });
    }
    let story = log.story();
    assert_eq!(story.timeline.entries().len(), timeline::Timeline::MOST);
    assert_eq!(story.timeline.untold, 1000 - timeline::Timeline::MOST);
}

#[test]
fn the_page_stands_alone_and_escapes_what_clients_say() {
    let story = incident().story();
    let page =
        html::page("report", &layout::blocks(&story, &Findings::of(&story)), &Curve::of(&story), &story);
    for outside in ["http://", "https://", "<script", "<link", "url(", "<b>"] {
        assert!(!page.contains(outside), "{outside} in the page");
    }
    assert!(page.contains("slow|&lt;b&gt;"));
    for tag in ["section", "svg", "table", "tr", "ul", "li", "div", "p"] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "<{tag}>");
    }
}

#[test]
fn a_log_of_several_days_has_dates() {
    let mut log = Log::started("reclaim");
    log.leak(86_400.0, 1, "leaky");
    assert!(log.markdown().contains("First evidence at 11-26 10:00:15."), "{}", log.markdown());
}
