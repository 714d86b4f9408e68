//! What each receiver is sent: the body and the headers of one request. Pure.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use pgleash_core::Channel;
use ring::hmac;
use serde_json::{Value, json};

use crate::notify::incident::{Notice, Status};
use crate::notify::receiver::Receiver;
use crate::telemetry::Record;

/// One request, ready to be posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// JSON.
    pub body: String,
    /// Names, and values without line ends.
    pub headers: Vec<(&'static str, String)>,
    /// By which the receiver knows it again, if each attempt is signed.
    id: Option<String>,
}

impl Payload {
    fn new(content_type: &str, body: &Value) -> Self {
        Self { body: body.to_string(), headers: vec![("content-type", content_type.to_owned())], id: None }
    }

    /// What one attempt to post it to `target` is signed with, at this time since the Unix epoch: a receiver need
    /// not take what was signed long ago. Empty if it is not signed.
    pub fn signature(&self, target: &Receiver, at: Duration) -> Vec<(&'static str, String)> {
        let Some(id) = &self.id else { return Vec::new() };
        let seconds = at.as_secs().to_string();
        let key = hmac::Key::new(hmac::HMAC_SHA256, target.secret.as_bytes());
        let signature = hmac::sign(&key, format!("{id}.{seconds}.{}", self.body).as_bytes());
        vec![
            ("webhook-id", id.clone()),
            ("webhook-timestamp", seconds),
            ("webhook-signature", format!("v1,{}", BASE64.encode(signature))),
        ]
    }
}

/// A fact as a [CloudEvents 1.0](https://cloudevents.io) event in structured mode, to be signed as
/// [Standard Webhooks](https://www.standardwebhooks.com) says: `webhook-signature` is `v1,` and the base64 of an
/// HMAC-SHA256 over `webhook-id`, `.`, `webhook-timestamp`, `.` and the body.
pub fn cloud_event(instance: &str, record: &Record) -> Payload {
    let mut data = serde_json::to_value(record).unwrap_or_default();
    let kind = data.get("event").and_then(Value::as_str).unwrap_or_default().to_owned();
    let subject = data.get("pool").and_then(Value::as_str).map(str::to_owned);
    if let Some(fields) = data.as_object_mut() {
        fields.remove("event");
    }
    // With the time, as sequence numbers begin anew in each process.
    let id = format!("{instance}-{}-{}", record.time.as_millis(), record.seq);
    let mut event = json!({
        "specversion": "1.0",
        "id": id,
        "source": format!("/pgleash/{instance}"),
        "type": format!("pgleash.{kind}"),
        "time": rfc3339(record.time),
        "datacontenttype": "application/json",
        "data": data,
    });
    if let Some(subject) = subject {
        event["subject"] = subject.into();
    }
    let mut payload = Payload::new("application/cloudevents+json; charset=utf-8", &event);
    payload.id = Some(id);
    payload
}

/// A notice for `target`, which is not a webhook; `text` is what its template made of it.
pub fn notice(target: &Receiver, instance: &str, notice: &Notice, text: &str) -> Payload {
    match target.channel {
        Channel::Webhook | Channel::Slack => slack(text),
        Channel::PagerDuty => pagerduty(target, instance, notice, text),
        Channel::Grafana => grafana(target, instance, notice, text),
    }
}

/// An incoming webhook's message. `&`, `<` and `>` are control characters of its markup.
fn slack(text: &str) -> Payload {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Payload::new("application/json", &json!({ "text": text }))
}

/// PagerDuty's Events API v2.
fn pagerduty(target: &Receiver, instance: &str, notice: &Notice, text: &str) -> Payload {
    /// What the API allows, in characters.
    const SUMMARY_MAX: usize = 1024;
    const KEY_MAX: usize = 255;
    let (action, tail) = match notice.status {
        Status::Triggered => ("trigger", format!("{instance}/{}", notice.key)),
        Status::Resolved => ("resolve", format!("{instance}/{}", notice.key)),
    };
    let mut event = json!({
        "routing_key": target.secret,
        "event_action": action,
        "dedup_key": tail.chars().take(KEY_MAX).collect::<String>(),
    });
    if notice.status == Status::Triggered {
        event["payload"] = json!({
            "summary": text.chars().take(SUMMARY_MAX).collect::<String>(),
            "source": instance,
            "severity": notice.severity,
            "timestamp": rfc3339(notice.at),
            "component": "pgleash",
            "group": notice.pool,
            "class": notice.what,
            "custom_details": { "app": notice.app, "summary": notice.summary },
        });
        event["client"] = "pgleash".into();
    }
    Payload::new("application/json", &event)
}

/// A Grafana annotation: a point where an incident begins, a region once it is over.
fn grafana(target: &Receiver, instance: &str, notice: &Notice, text: &str) -> Payload {
    let mut tags = vec!["pgleash".to_owned(), notice.what.to_owned(), format!("instance:{instance}")];
    if !notice.pool.is_empty() {
        tags.push(format!("pool:{}", notice.pool));
    }
    let mut annotation = json!({ "text": text, "tags": tags, "time": milliseconds(notice.began) });
    if notice.status == Status::Resolved {
        annotation["timeEnd"] = milliseconds(notice.at).into();
    }
    let mut payload = Payload::new("application/json", &annotation);
    payload.headers.push(("authorization", format!("Bearer {}", target.secret)));
    payload
}

fn rfc3339(since_epoch: Duration) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + since_epoch).to_string()
}

fn milliseconds(since_epoch: Duration) -> u64 {
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
