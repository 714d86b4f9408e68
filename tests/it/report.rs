//! `pgleash report` on the events of a real pgleash.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Leash, Mode, Server, finish, in_both_modes};

in_both_modes! {
    a_dry_run_is_told_with_what_came_of_its_verdicts,
}

async fn report(args: Vec<String>) -> Output {
    let run = move || Command::new(env!("CARGO_BIN_EXE_pgleash")).arg("report").args(args).output().unwrap();
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// One leaks, and one only pauses for long: the report tells them apart, and says what to set.
async fn a_dry_run_is_told_with_what_came_of_its_verdicts(mode: Mode) {
    let database = Server::shared().database().await;
    let setup = Leash::on(&database).mode(mode).set("leaks.action", "observe");
    let setup = setup.set("leaks.idle_in_transaction", "1s").set("leaks.budget", "100%/1m");
    let mut leash = setup.expecting(&["leak_detected", "reclaim_suppressed"]).start().await;
    let mut leaker = leash.endpoint().raw("payments@3.2.1").await;
    leaker.query("BEGIN").await;
    leaker.query("SELECT 'secret' /*route='POST%20%2Fpay'*/").await;
    let mut thoughtful = leash.endpoint().raw("thoughtful").await;
    thoughtful.query("BEGIN").await;
    for session in [leaker.pid, thoughtful.pid] {
        leash.event("reclaim_suppressed", |event| event["session"] == session).await;
    }
    thoughtful.query("COMMIT").await;
    leash.event("leak_resolved", |event| event["session"] == thoughtful.pid).await;
    // A verdict counts once it has stood for as long as it took; a log ends with its last event.
    let stood = |pool: &Value| {
        let holders = pool["holders"].as_array();
        let idle =
            |holder: &Value| holder["app"] == "payments@3.2.1" && holder["idle_seconds"].as_f64() > Some(2.1);
        holders.is_some_and(|holders| holders.iter().any(idle))
    };
    leash.pool_when("the verdict has stood", stood).await;
    let mut orphan = leash.endpoint().raw("orphan").await;
    orphan.query("BEGIN").await;
    orphan.kill();
    leash.event("leak_detected", |event| event["reason"] == "orphaned").await;

    let directory = tempfile::tempdir().unwrap();
    let [html, json] = ["report.html", "report.json"].map(|name| directory.path().join(name));
    let admin = format!("http://127.0.0.1:{}", leash.admin_port());
    let files = [html.display().to_string(), json.display().to_string()];
    let [to_html, to_json] = files.clone();
    let ran = report(vec![admin, "--html".into(), to_html, "--json".into(), to_json]).await;
    let said = String::from_utf8(ran.stdout).unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert!(said.contains("Cause: payments@3.2.1, route POST /pay leaked 1 connection of "), "{said}");
    assert!(said.contains("2 would have been with leaks.action = \"reclaim\", and 1 of these would have been wrong: the holder"), "{said}");
    assert!(said.contains("leaks.rules = \"app=thoughtful "), "{said}");
    let found: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!((&found["precision"], &found["recall"]), (&0.5.into(), &1.0.into()), "{found}");
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("<svg") && page.contains("route POST /pay"), "{page}");
    for told in [&said, &page, &found.to_string()] {
        assert!(!told.contains("secret"), "{told}");
    }
    leaker.query("ROLLBACK").await;
    leaker.close().await;
    thoughtful.close().await;
    finish(leash, &database).await;
}
