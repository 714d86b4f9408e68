//! Notifications: a leak and an outage as receivers elsewhere are told of them; receivers that fail.

use std::collections::{HashMap, VecDeque};
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::raw;
use crate::support::tap::{Manner, Tap};
use crate::support::{Leash, Server, Setup, eventually, eventually_or, finish};

const SECRET: &str = "whsec-0123456789abcdef";

/// One request as it arrived.
#[derive(Clone, Debug)]
struct Got {
    path: String,
    headers: HashMap<String, String>,
    body: String,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// A server on a free port that keeps what it is sent, and answers with the next of its statuses, then 202.
#[derive(Clone, Default)]
struct Receiver {
    port: u16,
    got: Arc<Mutex<Vec<Got>>>,
    answers: Arc<Mutex<VecDeque<StatusCode>>>,
}

impl Receiver {
    async fn start() -> Receiver {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let receiver = Receiver { port: listener.local_addr().unwrap().port(), ..Receiver::default() };
        let app = Router::new().fallback(Receiver::take).with_state(receiver.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        receiver
    }

    async fn take(State(receiver): State<Receiver>, request: Request) -> StatusCode {
        let (head, body) = request.into_parts();
        let text = |value: &axum::http::HeaderValue| value.to_str().unwrap().to_owned();
        let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        receiver.got.lock().unwrap().push(Got { path: head.uri.to_string(), headers, body });
        receiver.answers.lock().unwrap().pop_front().unwrap_or(StatusCode::ACCEPTED)
    }

    fn answers_first(&self, statuses: &[u16]) {
        let statuses = statuses.iter().map(|status| StatusCode::from_u16(*status).unwrap());
        self.answers.lock().unwrap().extend(statuses);
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// Waits for a request that is wanted.
    async fn wait_for(&self, what: &str, wanted: impl Fn(&Got) -> bool) -> Got {
        eventually_or(what, async || {
            let got = self.got();
            got.iter().find(|got| wanted(got)).cloned().ok_or_else(|| format!("{got:#?}"))
        })
        .await
    }

    fn url(&self, credentials: &str, path: &str) -> String {
        format!("http://{credentials}127.0.0.1:{}{path}", self.port)
    }
}

/// CloudEvents 1.0, section 3 (the names and which are required) and the extension-free JSON format.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "that it is there, and a string, is the test")]
struct CloudEvent {
    specversion: String,
    id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    time: String,
    datacontenttype: String,
    subject: Option<String>,
    data: Value,
}

/// PagerDuty's Events API v2, "Send an alert event".
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PagerDutyEvent {
    routing_key: String,
    event_action: String,
    dedup_key: String,
    payload: Option<PagerDutyPayload>,
    #[allow(dead_code, reason = "optional in the API")]
    client: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "that it is there, and a string, is the test")]
struct PagerDutyPayload {
    summary: String,
    source: String,
    severity: String,
    timestamp: String,
    component: String,
    group: String,
    class: String,
    custom_details: Value,
}

fn name(got: &Got) -> String {
    got.json()["type"].as_str().unwrap_or_default().to_owned()
}

async fn leak(setup: Setup) -> Leash {
    let setup = setup.set("leaks.idle_in_transaction", "300ms").set("leaks.budget", "100%/1m");
    let mut leash = setup.expecting(&["leak_detected", "notifications_failing"]).start().await;
    let mut leaker = leash.endpoint().raw("checkout <3 & \"co\"").await;
    leaker.query("BEGIN").await;
    leash.event("leak_resolved", |event| event["resolution"] == "reclaimed").await;
    leash
}

#[tokio::test]
async fn a_leak_reaches_every_receiver_in_its_own_form() {
    let database = Server::shared().database().await;
    let [webhook, slack, pagerduty, grafana] =
        [Receiver::start().await, Receiver::start().await, Receiver::start().await, Receiver::start().await];
    let leash = leak(
        Leash::on(&database)
            .set("events.webhook", webhook.url(&format!(":{SECRET}@"), "/hooks/db?team=pay"))
            .set("events.slack", slack.url("", "/services/T0/B0/hush"))
            .set("events.pagerduty", pagerduty.url("r0ut1ng@", ""))
            .set("events.grafana", grafana.url(":glsa_token@", "/grafana/")),
    )
    .await;

    // 1. The webhook is told of both ends of the leak, each a valid CloudEvent with a signature that fits.
    for kind in ["pgleash.leak_detected", "pgleash.leak_resolved"] {
        let got = webhook.wait_for(kind, |got| name(got) == kind).await;
        assert_eq!(got.path, "/hooks/db?team=pay");
        assert_eq!(got.headers["content-type"], "application/cloudevents+json; charset=utf-8");
        assert_signed(&got);
        let event: CloudEvent = serde_json::from_value(got.json()).unwrap();
        assert_eq!((event.specversion.as_str(), event.datacontenttype.as_str()), ("1.0", "application/json"));
        assert!(event.source.starts_with("/pgleash/"), "{}", event.source);
        assert_eq!(event.subject, Some(format!("app@{}", database.name)));
        assert_eq!(event.data["app"], "checkout <3 & \"co\"");
        assert_eq!(event.data["reason"], "idle_in_transaction");
    }
    let kinds: Vec<_> = webhook.got().iter().map(name).collect();
    assert!(!kinds.iter().any(|kind| kind.contains("connection_")), "{kinds:?}");

    // 2. Slack is told once, with its control characters escaped.
    let got = slack.wait_for("a message", |_| true).await;
    assert_eq!(got.path, "/services/T0/B0/hush");
    let text = got.json()["text"].as_str().unwrap().to_owned();
    assert!(text.contains("checkout &lt;3 &amp; \"co\" holds a connection of app@"), "{text}");

    // 3. PagerDuty gets a trigger.
    let got = pagerduty.wait_for("an alert", |_| true).await;
    assert_eq!(got.path, "/v2/enqueue");
    let event: PagerDutyEvent = serde_json::from_value(got.json()).unwrap();
    assert_eq!((event.routing_key.as_str(), event.event_action.as_str()), ("r0ut1ng", "trigger"));
    assert!((1..=255).contains(&event.dedup_key.len()));
    let payload = event.payload.unwrap();
    assert_eq!((payload.severity.as_str(), payload.class.as_str()), ("warning", "idle_in_transaction"));
    assert!(payload.timestamp.ends_with('Z'), "{}", payload.timestamp);

    // 4. Grafana gets an annotation, with the token.
    let got = grafana.wait_for("an annotation", |_| true).await;
    assert_eq!(got.path, "/grafana/api/annotations");
    assert_eq!(got.headers["authorization"], "Bearer glsa_token");
    let annotation = got.json();
    assert!(annotation["time"].as_u64().unwrap() > 1_600_000_000_000, "{annotation}");
    assert!(annotation["tags"].as_array().unwrap().contains(&json!("idle_in_transaction")), "{annotation}");

    // 5. All of it is counted, and no secret is told.
    eventually("the notifications are counted", async || {
        let sent = [("outcome", "sent")];
        (leash.metrics().await.sum("notifications_total", &sent) >= 5.0).then_some(())
    })
    .await;
    let told = format!("{:?} {}", leash.events(), leash.stderr());
    assert!(![SECRET, "r0ut1ng", "glsa_token", "hush"].iter().any(|secret| told.contains(secret)));
    finish(leash, &database).await;
}

fn assert_signed(got: &Got) {
    let signed = format!("{}.{}.{}", got.headers["webhook-id"], got.headers["webhook-timestamp"], got.body);
    let signature = got.headers["webhook-signature"].strip_prefix("v1,").unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    hmac::verify(&key, signed.as_bytes(), &BASE64.decode(signature).unwrap()).unwrap();
}

#[tokio::test]
async fn a_server_that_goes_and_comes_back_is_an_alert_that_is_resolved() {
    let database = Server::shared().database().await;
    let tap = Tap::new(Manner::Close).await;
    let pagerduty = Receiver::start().await;
    let setup =
        Leash::upstream(&format!("postgres://app@127.0.0.1:{}/{}", tap.port, database.name), &database.name);
    let setup = setup.set("events.pagerduty", pagerduty.url("r0ut1ng@", "")).set("pool.wait_timeout", "25s");
    let leash = setup.expecting(&["upstream_failed"]).start().await;
    let mut client = raw::Raw::connect(leash.port()).await;
    client.startup(raw::PROTOCOL_3_0, &[("user", "app"), ("database", &database.name)]).await;
    client.send(&raw::query("SELECT 1")).await;
    let action = |action: &'static str| move |got: &Got| got.json()["event_action"] == action;
    let trigger = pagerduty.wait_for("a trigger", action("trigger")).await.json();
    assert_eq!(trigger["payload"]["severity"], "critical");
    tap.turn(Manner::Pass(database.port));
    let resolve = pagerduty.wait_for("a resolve", action("resolve")).await.json();
    assert_eq!(resolve["dedup_key"], trigger["dedup_key"]);
    // Whoever has waited for it is served.
    while !raw::tags(&client.until_ready().await).ends_with("TDCZ") {}
    client.close().await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_receiver_that_fails_for_a_while_gets_everything_in_order() {
    let database = Server::shared().database().await;
    let webhook = Receiver::start().await;
    webhook.answers_first(&[503, 429]);
    let mut leash =
        leak(Leash::on(&database).set("events.webhook", webhook.url(&format!(":{SECRET}@"), "/"))).await;
    let failing = leash.event("notifications_failing", |_| true).await;
    assert_eq!(failing["detail"], "HTTP status 503", "{failing}");
    leash.event("notifications_recovered", |_| true).await;
    webhook.wait_for("the end of the leak", |got| name(got) == "pgleash.leak_resolved").await;
    let mut ids = Vec::new();
    for got in webhook.got() {
        let seq = got.json()["data"]["seq"].as_u64().unwrap();
        if ids.last() != Some(&seq) {
            ids.push(seq);
        }
    }
    assert!(ids.is_sorted(), "{ids:?}");
    assert_eq!(leash.events_named("notifications_failing").len(), 1);
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_receiver_that_refuses_or_is_not_there_holds_up_nobody() {
    let database = Server::shared().database().await;
    let (webhook, slack) = (Receiver::start().await, Receiver::start().await);
    slack.answers_first(&[403; 50]);
    let setup = Leash::on(&database)
        .set("events.webhook", webhook.url(&format!(":{SECRET}@"), "/"))
        .set("events.slack", slack.url("", "/services/T0/B0/hush"))
        .set("events.pagerduty", format!("http://key@127.0.0.1:{}", crate::support::server::free_port()));
    let leash = leak(setup).await;
    webhook.wait_for("the end of the leak", |got| name(got) == "pgleash.leak_resolved").await;
    eventually("the refusal is counted", async || {
        let refused = [("channel", "slack"), ("outcome", "refused")];
        (leash.metrics().await.sum("notifications_total", &refused) == 1.0).then_some(())
    })
    .await;
    finish(leash, &database).await;
}

#[tokio::test]
async fn a_test_says_which_receivers_take_it() {
    let (slack, pagerduty) = (Receiver::start().await, Receiver::start().await);
    pagerduty.answers_first(&[202, 202, 400]);
    let (slack_url, pagerduty_url) = (slack.url("", "/services/T0/B0/hush"), pagerduty.url("r0ut1ng@", ""));
    let run = move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgleash"));
        command.args(["test-notification", "--upstream", "postgres://app@127.0.0.1:1/app"]);
        let directory = tempfile::tempdir().unwrap();
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        command.current_dir(directory.path());
        command.env("PGLEASH_EVENTS_SLACK", &slack_url).env("PGLEASH_EVENTS_PAGERDUTY", &pagerduty_url);
        let ran = command.output().unwrap();
        (ran.status.code(), String::from_utf8(ran.stdout).unwrap())
    };
    let run = Arc::new(run);
    let again = Arc::clone(&run);
    let (code, said) = tokio::task::spawn_blocking(move || run()).await.unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.lines().all(|line| line.ends_with("ok")) && said.lines().count() == 2, "{said}");
    assert!(!said.contains("hush") && !said.contains("r0ut1ng"), "{said}");
    let actions: Vec<_> = pagerduty.got().iter().map(|got| got.json()["event_action"].clone()).collect();
    assert_eq!(actions, ["trigger", "resolve"]);

    let (code, said) = tokio::task::spawn_blocking(move || again()).await.unwrap();
    assert_eq!(code, Some(1));
    assert!(said.contains("FAILED: HTTP status 400"), "{said}");
}
