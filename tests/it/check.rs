//! `pgleash check`: what it finds, what it says to do, and the command that it names next.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::cli::{Ran, pgleash};
use crate::support::Server;
use crate::support::server::{LOCKED_PASSWORD, free_port};
use crate::support::tls::Authority;

/// The lines of a check that begin with `verdict`, as `(about, what)`.
fn findings(ran: &Ran, verdict: &str) -> Vec<(String, String)> {
    let lines = ran.stdout.lines().filter_map(|line| line.strip_prefix(verdict));
    let split = lines.filter_map(|line| line.trim_start().split_once(' '));
    split.map(|(about, what)| (about.to_owned(), what.trim().to_owned())).collect()
}

fn check(url: &str, settings: &[&str]) -> Ran {
    check_with(url, settings, &[])
}

fn check_with(url: &str, settings: &[&str], options: &[&str]) -> Ran {
    let mut args = vec!["check", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    for setting in settings {
        args.extend(["--set", setting]);
    }
    args.extend(options);
    pgleash(&args).env("PGLEASH_UPSTREAM_URL", url).run()
}

#[tokio::test]
async fn a_check_of_a_good_server_finds_nothing_wrong() {
    let database = Server::shared().database().await;
    let ran = check(&database.url("postgres"), &[]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    let abouts: Vec<_> = findings(&ran, "ok").into_iter().map(|(about, _)| about).collect();
    for about in ["upstream", "tls", "connections", "visibility", "timeouts", "backends"] {
        assert!(abouts.contains(&about.to_owned()), "{about}:\n{}", ran.stdout);
    }
    assert_eq!(findings(&ran, "warn"), [], "{}", ran.stdout);
    assert_eq!(findings(&ran, "fail"), [], "{}", ran.stdout);
    assert_eq!(ran.stdout.lines().count(), 10, "{}", ran.stdout);
    let typed = "pgleash run --listen 127.0.0.1:0 --admin 127.0.0.1:0 --set leaks.action=observe";
    let last = format!("Warnings: 0, failures: 0. Next: {typed}");
    assert_eq!(ran.stdout.lines().last(), Some(last.as_str()));
}

#[tokio::test]
async fn a_script_reads_a_check_as_json() {
    let database = Server::shared().database().await;
    let read = |url: &str, settings: &[&str]| {
        let ran = check_with(url, settings, &["--json"]);
        let report: Value = serde_json::from_str(&ran.stdout).unwrap();
        (ran.code, report)
    };
    let (code, report) = read(&database.url("postgres"), &["leaks.action=reclaim"]);
    assert_eq!((code, &report["passed"]), (Some(0), &Value::Bool(true)), "{report}");
    let next = "pgleash run --set leaks.action=reclaim --listen 127.0.0.1:0 --admin 127.0.0.1:0";
    assert_eq!(report["next"], next);
    for finding in report["findings"].as_array().unwrap() {
        assert_eq!((&finding["level"], &finding["do"]), (&"ok".into(), &Value::Null), "{finding}");
        assert!(finding["about"].is_string() && finding["what"].is_string(), "{finding}");
    }

    let (code, report) = read(&database.url("app"), &["pool.size=300"]);
    assert_eq!((code, &report["passed"]), (Some(1), &Value::Bool(false)), "{report}");
    let bad: Vec<_> =
        report["findings"].as_array().unwrap().iter().filter(|it| it["level"] != "ok").collect();
    assert!(bad.iter().all(|it| it["do"].is_string()), "{bad:?}");
    assert!(bad.iter().any(|it| it["level"] == "warning") && bad.iter().any(|it| it["level"] == "failed"));
    let next = report["next"].as_str().unwrap();
    assert!(next.starts_with("pgleash check --set pool.size=300"), "{next}");
    pgleash(&["check", "--json", "--print"]).run().is_refused(&["--json", "--print"]);
}

#[tokio::test]
async fn a_check_warns_of_timeouts_that_cross_a_limit() {
    let database = Server::shared().database().await;
    let admin = database.admin().await;
    for setting in ["statement_timeout = '90s'", "idle_session_timeout = '7min'"] {
        admin.batch_execute(&format!("ALTER DATABASE {} SET {setting}", database.name)).await.unwrap();
    }
    let ran = check(&database.url("postgres"), &[]);
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    let warnings = findings(&ran, "warn");
    let crossing: Vec<_> = warnings.iter().filter(|(about, _)| about == "timeouts").collect();
    assert_eq!(crossing.len(), 2, "{}", ran.stdout);
    assert!(crossing[0].1.contains("idle_session_timeout (7m) acts before"), "{crossing:?}");
    assert!(crossing[1].1.contains("raise leaks.idle_in_transaction to 1m 30s"), "{crossing:?}");
    let settled = ["leaks.idle_in_transaction=2m", "leaks.idle_session=5m", "pool.idle_timeout=5m"];
    assert_eq!(findings(&check(&database.url("postgres"), &settled), "warn"), [], "the limits were moved");
    admin.close().await;
}

#[tokio::test]
async fn a_check_sees_the_limit_of_a_role() {
    let database = Server::shared().database().await;
    let admin = database.admin().await;
    let role = format!("few_{}", database.name);
    admin.batch_execute(&format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 5")).await.unwrap();
    let ran = check(&database.url(&role), &["pool.size=6"]);
    assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
    let failures = findings(&ran, "fail");
    assert!(
        failures[0].1.contains("the connection limit of the role, 5. To do: lower pool.size to 5"),
        "{failures:?}"
    );
    admin.batch_execute(&format!("DROP ROLE {role}")).await.unwrap();
    admin.close().await;
}

#[tokio::test]
async fn a_check_says_what_a_role_cannot_see_and_a_pool_cannot_have() {
    let database = Server::shared().database().await;
    let admin = database.admin().await;
    admin.batch_execute(&format!("ALTER DATABASE {} CONNECTION LIMIT 8", database.name)).await.unwrap();
    admin
        .batch_execute(&format!(
            "ALTER DATABASE {} SET idle_in_transaction_session_timeout = '5s'",
            database.name
        ))
        .await
        .unwrap();

    let ran = check(&database.url("app"), &["pool.size=300"]);
    assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
    let failures = findings(&ran, "fail");
    assert_eq!(failures.len(), 2, "{}", ran.stdout);
    assert!(failures[0].1.contains("the pool can never be filled"), "{failures:?}");
    assert!(failures[1].1.contains("the connection limit of the database, 8"), "{failures:?}");
    let warnings = findings(&ran, "warn");
    assert!(
        warnings
            .iter()
            .any(|(about, what)| about == "visibility" && what.contains("GRANT pg_monitor TO app"))
    );
    assert!(
        warnings.iter().any(|(about, what)| about == "timeouts" && what.contains("(5s)")),
        "{warnings:?}"
    );
    admin.close().await;
}

#[tokio::test]
async fn a_check_tells_a_wrong_password_from_a_missing_database_and_a_missing_server() {
    let database = Server::shared().database().await;
    let wrong = database.url("locked:hunter2");
    let absent =
        database.url(&format!("locked:{LOCKED_PASSWORD}")).replace(&database.name, "no_such_database");
    let nobody = format!("postgres://app:hunter2@127.0.0.1:{}/shop", free_port());
    for (url, because) in [(wrong, "28P01"), (absent, "3D000"), (nobody, "Connection refused")] {
        let ran = check(&url, &[]);
        assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
        let failures = findings(&ran, "fail");
        assert!(
            matches!(&failures[..], [(about, what)] if about == "upstream" && what.contains(because)),
            "{failures:?}"
        );
        assert!(!ran.stdout.contains("hunter2"), "{}", ran.stdout);
        let next =
            if because.len() == 5 { "Next: pgleash check " } else { "Next: pg_isready -h 127.0.0.1 -p " };
        assert!(ran.stdout.contains(next), "{}", ran.stdout);
    }
}

#[tokio::test]
async fn a_check_of_a_server_without_tls_fails_where_tls_is_required() {
    let database = Server::shared().database().await;
    let ran = check(&format!("{}?sslmode=require", database.url("app")), &[]);
    assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
    let failures = findings(&ran, "fail");
    assert!(failures[0].1.contains("does not support TLS. To do: turn ssl on"), "{failures:?}");
}

#[test]
fn a_check_sees_a_port_that_is_taken_and_a_log_that_cannot_be() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let ran = pgleash(&["check", "--listen", &listen, "--set", "events.log=/nowhere/at/all.jsonl"])
        .env("PGLEASH_ADMIN", "127.0.0.1:0")
        .env("PGLEASH_UPSTREAM_URL", &format!("postgres://app@127.0.0.1:{}", free_port()))
        .run();
    assert_eq!(ran.code, Some(1));
    assert!(findings(&ran, "warn")[0].1.contains("is taken"), "{}", ran.stdout);
    assert!(findings(&ran, "fail")[0].1.contains("/nowhere/at does not exist"), "{}", ran.stdout);
    assert!(ran.stdout.ends_with("Next: mkdir -p /nowhere/at\n"), "{}", ran.stdout);
}

#[test]
fn a_check_looks_at_users_and_certificates() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let (cert, key) = authority.identity("localhost").write(directory.path(), "door");
    let (old, old_key) = authority.identity_until("localhost", 2020).write(directory.path(), "old");
    let users = directory.path().join("users.toml");
    fs::write(&users, "app = \"hunter2\"\n").unwrap();
    fs::set_permissions(&users, fs::Permissions::from_mode(0o644)).unwrap();
    let nobody = format!("postgres://app@127.0.0.1:{}/shop", free_port());
    let look = |cert: &Path, key: &Path| {
        let users = format!("auth.users={}", users.display());
        let (cert, key) = (format!("tls.cert={}", cert.display()), format!("tls.key={}", key.display()));
        check(&nobody, &["auth.method=scram-sha-256", &users, &cert, &key])
    };
    let says = |ran: &Ran, verdict: &str, about: &str, clue: &str| {
        let found = findings(ran, verdict).iter().any(|(whom, what)| whom == about && what.contains(clue));
        assert!(found, "{verdict} {about} {clue}:\n{}{}", ran.stdout, ran.stderr);
    };
    let ran = look(&cert, &key);
    says(&ran, "ok", "auth", "SCRAM-SHA-256");
    says(&ran, "ok", "auth.users", "1 with a password, 0 with a verifier");
    says(&ran, "warn", "auth.users", "others may read");
    says(&ran, "ok", "certificate", "the key fits the certificate");
    says(&look(&old, &old_key), "fail", "certificate", "has expired at 2020-01-01");
    says(&look(&cert, &old_key), "fail", "certificate", "it is not the key of the certificate");
    fs::write(&users, "app = hunter2\n").unwrap();
    let ran = look(&cert, &key);
    says(&ran, "fail", "auth.users", "line 1: not TOML");
    assert!(!ran.stdout.contains("hunter2"), "{}", ran.stdout);
}
