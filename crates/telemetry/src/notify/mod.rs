//! Tells people and programs elsewhere: webhook, Slack, PagerDuty, Grafana.
//!
//! Each receiver has a thread of its own, which reads the journal of events behind everybody else: a receiver
//! that is slow or away holds up neither the data path, nor the log, nor another receiver. What it misses is
//! given up and counted.

pub mod http_client;
pub mod incident;
pub mod payload;
pub mod receiver;
pub mod retry_queue;
pub mod template;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{io, thread};

use pgleash_core::{Channel, Delivery, Event, Moment, Sink};
use ureq::Agent;

use crate::notify::incident::{Incidents, Notice, Severity, Status};
use crate::notify::payload::Payload;
use crate::notify::retry_queue::{Answer, RetryQueue};
use crate::telemetry::{Record, Telemetry};

pub use crate::notify::receiver::Receiver;
pub use crate::notify::template::Template;

/// Who is told, and in which words. The configuration fills it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Receivers {
    targets: Vec<Receiver>,
    /// `events.template`.
    pub template: Template,
}

impl Receivers {
    /// Sets the receiver of one channel, or takes it away.
    pub fn set(&mut self, channel: Channel, target: Option<Receiver>) {
        self.targets.retain(|known| known.channel != channel);
        self.targets.extend(target);
    }

    /// The receiver of one channel.
    pub fn of(&self, channel: Channel) -> Option<&Receiver> {
        self.targets.iter().find(|target| target.channel == channel)
    }
}

/// The threads that tell.
pub struct Notifiers {
    stopping: Arc<AtomicBool>,
    /// Ends when the last thread has.
    ended: mpsc::Receiver<()>,
}

impl Notifiers {
    /// Starts a thread for each receiver. What is emitted from now on is told.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(receivers: &Receivers, telemetry: &Arc<Telemetry>) -> io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let (alive, ended) = mpsc::channel();
        for target in &receivers.targets {
            let courier = Courier::new(target, &receivers.template, telemetry);
            let (alive, stopping) = (alive.clone(), Arc::clone(&stopping));
            thread::Builder::new().name(format!("pgleash-{}", target.channel)).spawn(move || {
                courier.run(&stopping);
                drop(alive);
            })?;
        }
        Ok(Self { stopping, ended })
    }

    /// Tries once more to send what waits. Blocks until that is done, or `within` has passed.
    pub fn finish(self, within: Duration) {
        self.stopping.store(true, Ordering::Release);
        let _ = self.ended.recv_timeout(within);
    }
}

/// Sends each receiver a message that says it is a test. What came of it, receiver by receiver. Blocks for
/// ten seconds for each request at most.
pub fn test(receivers: &Receivers) -> Vec<(&Receiver, Result<(), String>)> {
    let (agent, instance) = (http_client::agent(), instance());
    let send = |target: &Receiver| {
        for payload in test_letters(target, &receivers.template, &instance) {
            match http_client::post(&agent, target, &payload) {
                Answer::Taken => {}
                Answer::Later(why, _) | Answer::Never(why) => return Err(why),
            }
        }
        Ok(())
    };
    receivers.targets.iter().map(|target| (target, send(target))).collect()
}

fn test_letters(target: &Receiver, template: &Template, instance: &str) -> Vec<Payload> {
    let now = pgleash_clock::wall();
    if target.channel == Channel::Webhook {
        let record = Record { seq: 0, time: now, event: Event::TestNotification };
        return vec![payload::cloud_event(instance, &record)];
    }
    let notice = |status| Notice {
        status,
        severity: Severity::Warning,
        key: format!("test//{}", now.as_millis()),
        what: "test",
        pool: String::new(),
        app: String::new(),
        count: 1,
        summary: "this is a test of the notifications of pgleash; there is nothing to do".to_owned(),
        began: now,
        at: now,
    };
    let payload = |status| {
        let notice = notice(status);
        payload::notice(target, instance, &notice, &template.render(instance, &notice))
    };
    match target.channel {
        // What a test triggers it resolves.
        Channel::PagerDuty => vec![payload(Status::Triggered), payload(Status::Resolved)],
        Channel::Webhook | Channel::Slack | Channel::Grafana => vec![payload(Status::Triggered)],
    }
}

/// The name of this machine, or of the pod.
fn instance() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// One receiver's thread.
struct Courier {
    target: Receiver,
    template: Template,
    telemetry: Arc<Telemetry>,
    instance: String,
    agent: Agent,
    /// Sequence number of the last event that was taken in.
    heard: u64,
    incidents: Incidents,
    retry_queue: RetryQueue<Payload>,
    /// Since when it fails.
    failing: Option<Moment>,
}

impl Courier {
    /// Looks this often for incidents that are over and for the order to stop.
    const TICK: Duration = Duration::from_millis(500);

    fn new(target: &Receiver, template: &Template, telemetry: &Arc<Telemetry>) -> Self {
        Self {
            target: target.clone(),
            template: template.clone(),
            telemetry: Arc::clone(telemetry),
            instance: instance(),
            agent: http_client::agent(),
            heard: telemetry.newest_event(),
            incidents: Incidents::default(),
            retry_queue: RetryQueue::new(pgleash_clock::now()),
            failing: None,
        }
    }

    fn run(mut self, stopping: &AtomicBool) {
        loop {
            let last = stopping.load(Ordering::Acquire);
            let now = pgleash_clock::now();
            let patience = self.retry_queue.due().map_or(Self::TICK, |due| due.since(now).min(Self::TICK));
            let records =
                self.telemetry.await_events(self.heard, if last { Duration::ZERO } else { patience });
            self.take_in(&records);
            self.send();
            if last {
                break;
            }
        }
    }

    fn take_in(&mut self, records: &[Arc<Record>]) {
        let numbers = records.iter().map(|record| record.seq);
        if numbers.zip(self.heard + 1..).any(|(seq, next)| seq != next) {
            self.incidents.missed();
            self.count(Delivery::Dropped);
        }
        for record in records {
            self.heard = record.seq;
            if self.target.channel == Channel::Webhook {
                if is_news(&record.event) {
                    self.queue(payload::cloud_event(&self.instance, record));
                }
            } else if let Some(notice) = self.incidents.hear(record) {
                self.tell(&notice);
            }
        }
        for notice in self.incidents.quiet(pgleash_clock::wall()) {
            self.tell(&notice);
        }
    }

    fn tell(&mut self, notice: &Notice) {
        let text = self.template.render(&self.instance, notice);
        self.queue(payload::notice(&self.target, &self.instance, notice, &text));
    }

    fn queue(&mut self, payload: Payload) {
        if let Some(delivery) = self.retry_queue.push(payload, pgleash_clock::now()) {
            self.count(delivery);
        }
    }

    /// Sends what may be sent now.
    fn send(&mut self) {
        while let Some(payload) = self.retry_queue.first(pgleash_clock::now()) {
            let answer = http_client::post(&self.agent, &self.target, payload);
            if let Some(delivery) = self.retry_queue.tried(&answer, rand::random(), pgleash_clock::now()) {
                self.count(delivery);
            }
            self.note(answer);
        }
    }

    /// Says once that a receiver fails, and once that it works again.
    fn note(&mut self, answer: Answer) {
        let channel = self.target.channel;
        match (answer, self.failing) {
            (Answer::Taken, Some(since)) => {
                self.failing = None;
                let failed_seconds = pgleash_clock::now().since(since).as_secs_f64();
                self.telemetry.emit(Event::NotificationsRecovered { channel, failed_seconds });
            }
            (Answer::Later(detail, _) | Answer::Never(detail), None) => {
                self.failing = Some(pgleash_clock::now());
                let receiver = self.target.shown();
                self.telemetry.emit(Event::NotificationsFailing { channel, receiver, detail });
            }
            (Answer::Taken, None) | (Answer::Later(..) | Answer::Never(_), Some(_)) => {}
        }
    }

    fn count(&self, outcome: Delivery) {
        self.telemetry.emit(Event::Notified { channel: self.target.channel, outcome });
    }
}

/// Whether a webhook is told of it: not of the coming and going of connections and of those who are turned away,
/// who could push out what matters, and not of notifications.
fn is_news(event: &Event) -> bool {
    !matches!(
        event,
        Event::ConnectionOpened { .. }
            | Event::ConnectionClosed { .. }
            | Event::ClientRefused { .. }
            | Event::NotificationsFailing { .. }
            | Event::NotificationsRecovered { .. }
    )
}
