//! `pgleash drill`, short: what it proves is proved in its own processes, on a server of its own.

use std::process::{Command, Output};

use serde_json::Value;

/// Plays a scenario, in a fifth of a minute for each run, slowly enough for a busy machine.
fn play(scenario: &str, more: &[&str]) -> (Output, Value) {
    let mut drill = Command::new(env!("CARGO_BIN_EXE_pgleash"));
    drill.args(["drill", "--scenario", scenario, "--minutes", "0.25", "--rate", "12", "--json", "-"]);
    let ran = drill.args(more).output().unwrap();
    let report = serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&ran.stderr));
    });
    (ran, report)
}

/// The route that has the bug is named first, and only what it leaked is taken.
#[test]
fn the_incident_is_survived_and_its_cause_named() {
    let events = tempfile::tempdir().unwrap();
    let kept = events.path().display().to_string();
    let (ran, report) = play("incident", &["--mode", "transaction", "--watch", "--events", &kept]);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("watch it at http://127.0.0.1:"), "{said}");
    for run in report["runs"].as_array().unwrap() {
        assert_eq!(run["leaks"]["named_first"]["route"], "POST /refund", "{}", run["leaks"]);
        assert_eq!(run["leaks"]["planted"], run["leaks"]["found"], "{}", run["leaks"]);
    }
    let mut report = Command::new(env!("CARGO_BIN_EXE_pgleash"));
    let told = report.arg("report").arg(events.path().join("reclaim.log")).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("Cause: payments@1.9.0, route POST /refund leaked "), "{told}");
    assert!(told.contains("Healthy checkouts taken: none."), "{told}");
}

/// Statements that run for longer than any limit are told, and nothing is taken.
#[test]
fn slow_statements_alone_cost_nobody_a_connection() {
    let (ran, report) = play("slow-queries", &[]);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    for run in report["runs"].as_array().unwrap() {
        let leaks = &run["leaks"];
        assert_eq!((&leaks["reclaimed"], &leaks["planted"]), (&0.into(), &0.into()), "{leaks}");
        assert_eq!(leaks["healthy_killed"], serde_json::json!([]), "{leaks}");
    }
    let slow = &report["runs"][1]["leaks"]["slow_statements"];
    assert!(slow.as_u64().unwrap() > 0, "none was slow: {report}");
}
