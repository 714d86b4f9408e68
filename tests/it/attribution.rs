//! Who leaks: what applications say of their work, what is shown of it, and what it is granted.

use crate::support::raw;
use crate::support::{Database, Leash, Mode, Server, finish, in_both_modes};

in_both_modes! {
    the_cause_is_named_and_not_its_victims,
    what_a_client_sends_never_shows_its_values,
    a_long_pause_can_be_announced,
    a_rule_exempts,
    strange_tags_harm_nobody,
}

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn leash(mode: Mode, limit: &str, size: usize, more: &[(&str, &str)]) -> (Database, Leash) {
    let database = Server::shared().database().await;
    let app = database.direct().connect("harness").await;
    app.batch_execute("CREATE TABLE t (n int, secret text)").await.unwrap();
    app.close().await;
    let mut setup = Leash::on(&database).mode(mode).set("pool.size", size).set("leaks.budget", "100%/1m");
    setup = setup.set("leaks.idle_in_transaction", limit).set("pool.wait_timeout", "300ms");
    for (key, value) in more {
        setup = setup.set(key, value);
    }
    let told = ["leak_detected", "checkout_timeout", "reclaim_suppressed"];
    (database, setup.expecting(&told).start().await)
}

async fn the_cause_is_named_and_not_its_victims(mode: Mode) {
    let (database, mut leash) = leash(mode, "2s", 4, &[("leaks.action", "observe")]).await;
    let mut leaks = Vec::new();
    for _ in 0..3 {
        let mut leak = leash.endpoint().raw("payments@3.2.1").await;
        leak.query("BEGIN").await;
        leak.query(&format!(
            "INSERT INTO t VALUES (41, 'x') /*route='POST%20%2Fpay',traceparent='{TRACE}'*/"
        ))
        .await;
        leaks.push(leak);
    }
    let detected = leash.event("leak_detected", |_| true).await;
    assert_eq!((&detected["app"], &detected["route"]), (&"payments@3.2.1".into(), &"POST /pay".into()));
    assert_eq!(detected["trace"], TRACE);
    assert_eq!(detected["statement"], "insert into t values (?)");
    leash.pool_when("all three are suspect", |pool| pool["top_holders"][0]["stale"] == 3).await;

    // A victim is busy in the last connection; another gets nothing.
    let mut victim = leash.endpoint().raw("web@1").await;
    victim.query("BEGIN /*route='GET%20%2Fcart'*/").await;
    let mut late = leash.endpoint().raw("web@1").await;
    late.send(&raw::query("SELECT 1 /*route='GET%20%2Fcart'*/")).await;
    let told = late.fatal().await;
    assert_eq!(told.field('C'), "53300");
    let words = format!("{} {} {}", told.field('M'), told.field('D'), told.field('H'));
    assert!(words.contains("most idle: payments@3.2.1 POST /pay (3 for"), "{words}");
    assert!(!words.contains("cart"), "{words}");
    let shown = leash.pool().await;
    let holder = &shown["holders"][0];
    assert_eq!((&holder["route"], &holder["trace"]), (&"POST /pay".into(), &TRACE.into()), "{holder}");

    victim.query("COMMIT").await;
    victim.close().await;
    for mut leak in leaks {
        leak.query("ROLLBACK").await;
        leak.close().await;
    }
    finish(leash, &database).await;
}

async fn what_a_client_sends_never_shows_its_values(mode: Mode) {
    let (database, mut leash) = leash(mode, "400ms", 2, &[]).await;
    let mut leak = leash.endpoint().raw("app").await;
    leak.query("BEGIN").await;
    let secret = "4111-1111";
    leak.query(&format!("/* {secret} */ SELECT $x${secret}$x$, '{secret}', e'\\'{secret}' -- {secret}"))
        .await;
    leash.event("leak_resolved", |_| true).await;
    let (_, page) = leash.get("/api/v1/events").await;
    assert!(page.contains("select ?"), "{page}");
    assert!(!page.contains(secret), "{page}");
    assert!(!leash.metrics().await.names().is_empty());
    finish(leash, &database).await;
}

async fn a_long_pause_can_be_announced(mode: Mode) {
    let (database, mut leash) = leash(mode, "400ms", 3, &[("leaks.longest_hold", "1h")]).await;
    let mut patient = leash.endpoint().raw("patient").await;
    patient.query("BEGIN").await;
    patient.query("SET LOCAL pgleash.hold = '10m'").await;
    let mut commented = leash.endpoint().raw("commented").await;
    commented.query("BEGIN /*pgleash_hold='10m'*/").await;
    let mut leak = leash.endpoint().raw("leak").await;
    leak.query("BEGIN").await;
    let told = leash.event("leak_resolved", |_| true).await;
    assert_eq!((&told["app"], &told["resolution"]), (&"leak".into(), &"reclaimed".into()), "{told}");
    // Both began before the leak, and are there after it.
    for holder in [&mut patient, &mut commented] {
        assert_eq!(holder.one("SELECT 'still here'").await, "still here");
        holder.query("COMMIT").await;
    }
    assert_eq!(leash.events_named("leak_detected").len(), 1);
    patient.close().await;
    commented.close().await;
    finish(leash, &database).await;
}

async fn a_rule_exempts(mode: Mode) {
    let rules = [("leaks.rules", "app=nightly* never; route=GET /export 1h")];
    let (database, mut leash) = leash(mode, "400ms", 3, &rules).await;
    let mut nightly = leash.endpoint().raw("nightly@7").await;
    nightly.query("BEGIN").await;
    let mut export = leash.endpoint().raw("web").await;
    export.query("BEGIN /*route='GET%20%2Fexport'*/").await;
    let mut leak = leash.endpoint().raw("web").await;
    leak.query("BEGIN /*route='GET%20%2Fcart'*/").await;
    let told = leash.event("leak_resolved", |_| true).await;
    assert_eq!((&told["route"], &told["resolution"]), (&"GET /cart".into(), &"reclaimed".into()), "{told}");
    let why = |holder: &serde_json::Value| holder["why"].as_str().unwrap_or_default().to_owned();
    let pool = leash.pool().await;
    assert!(why(&pool["holders"][0]).starts_with("allowed to be idle"), "{pool}");
    for holder in [&mut nightly, &mut export] {
        assert_eq!(holder.one("SELECT 'still here'").await, "still here");
        holder.query("COMMIT").await;
    }
    nightly.close().await;
    export.close().await;
    finish(leash, &database).await;
}

async fn strange_tags_harm_nobody(mode: Mode) {
    let (database, leash) = leash(mode, "30s", 2, &[]).await;
    let mut client = leash.endpoint().raw("odd").await;
    let long = "x".repeat(1 << 20);
    for text in [
        format!("SELECT 1 /*route='{long}'*/"),
        format!("SELECT '{long}' IS NULL /*route='%'*/"),
        "SELECT 1 /*route='a\nb\u{202e}'*/".to_owned(),
        "SELECT 1 /*route='%00%1b'*/".to_owned(),
        "SELECT 1 /*,,,='=':':*/".to_owned(),
        "SELECT 1 /*traceparent='00-zz-zz-00'*/".to_owned(),
    ] {
        assert!(!client.query(&text).await.is_empty());
    }
    for n in 0..500 {
        client.query(&format!("SELECT 1 /*route='/{n}'*/")).await;
    }
    client.query("BEGIN /*route='the%20last'*/").await;
    leash.pool_when("its route is known", |pool| pool["holders"][0]["route"] == "the last").await;
    client.query("COMMIT").await;
    client.close().await;
    finish(leash, &database).await;
}
