//! The second client. Whenever the first one is at rest, it uses the same server connection, and
//! leaves behind all that a client can leave behind without breaking a rule.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::raw::{self, Raw, rows, tags};
use crate::support::{Endpoint, Leash, tick};

/// How long the first client's connection may take to come back.
const SOON: Duration = Duration::from_secs(5);

/// A client that stays, and what it does next.
pub struct Second {
    endpoint: Endpoint,
    stays: Raw,
    turn: usize,
}

/// What it sends, the tags that must come back, and the first column of every row.
type Act = (fn() -> Vec<u8>, &'static str, &'static [&'static str]);

/// Each leaves something: settings of its own, unnamed statement and portal, an error, a COPY.
const ACTS: [Act; 10] = [
    (|| raw::query("SELECT 'second'"), "TDCZ", &["second"]),
    (|| raw::query("SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'"), "CCSSZ", &[]),
    (|| raw::query("SELECT timestamptz 'epoch'"), "TDCZ", &["01.01.1970 09:00:00 JST"]),
    (
        || {
            let sql = "SELECT 'second, not ' || $1";
            [raw::parse("", sql), raw::bind("", &["first"]), raw::execute(1), raw::sync()].concat()
        },
        "12DsZ",
        &["second, not first"],
    ),
    (|| [raw::parse("", "SELECT 1/0"), raw::bind("", &[]), raw::sync()].concat(), "1EZ", &[]),
    (|| raw::query("BEGIN; SELECT 'mine'; SELECT 1/0"), "CTDCEZ", &["mine"]),
    (|| raw::query("ROLLBACK"), "CZ", &[]),
    (|| raw::query("SET TimeZone = 'Europe/Berlin'; SET DateStyle = 'SQL'"), "CCSSZ", &[]),
    (|| raw::query("SELECT timestamptz 'epoch'"), "TDCZ", &["01/01/1970 01:00:00 CET"]),
    (|| raw::query("COPY (SELECT 1) TO STDOUT"), "HdcCZ", &[]),
];

impl Second {
    /// Logs in.
    pub async fn new(endpoint: &Endpoint) -> Second {
        Second { endpoint: endpoint.clone(), stays: Raw::login(endpoint, "second").await, turn: 0 }
    }

    /// Plays its next act, unless the first client keeps the connection for a reason.
    ///
    /// # Errors
    /// The first client keeps the connection without one, or the second heard what it should not.
    pub async fn play(&mut self, leash: &Leash) -> Result<(), String> {
        if first_client_keeps_it(leash).await? {
            return Ok(());
        }
        loop {
            let act = ACTS[self.turn % ACTS.len()];
            self.turn += 1;
            perform(&mut self.stays, act).await?;
            // A transaction of its own would keep the connection: it ends it first.
            if act.1 != "CTDCEZ" {
                break;
            }
        }
        if self.turn.is_multiple_of(3) {
            self.visit().await?;
        }
        Ok(())
    }

    /// A third client comes, makes a statement and a portal of names that others use as well, and goes.
    async fn visit(&self) -> Result<(), String> {
        let mut visitor = Raw::login(&self.endpoint, "third").await;
        let act: Act = (
            || {
                let sql = "SELECT 'third ' || $1";
                [raw::parse("s1", sql), raw::bind("s1", &["here"]), raw::execute(0), raw::sync()].concat()
            },
            "12DCZ",
            &["third here"],
        );
        perform(&mut visitor, act).await?;
        visitor.close().await;
        Ok(())
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.stays.close().await;
    }
}

async fn perform(client: &mut Raw, (say, expected, column): Act) -> Result<(), String> {
    client.send(&say()).await;
    let heard = client.until_ready().await;
    let seen: Vec<Option<String>> = rows(&heard).into_iter().map(|row| row[0].clone()).collect();
    let wanted: Vec<Option<String>> = column.iter().map(|text| Some((*text).to_owned())).collect();
    if tags(&heard) == expected && seen == wanted {
        Ok(())
    } else {
        let frames: Vec<String> = heard.iter().map(raw::describe).collect();
        Err(format!(
            "the second client heard {} with {seen:?}, not {expected} with {wanted:?}",
            frames.join(", ")
        ))
    }
}

/// Whether the connection stays with the first client, which must have a reason then.
async fn first_client_keeps_it(leash: &Leash) -> Result<bool, String> {
    let deadline = Instant::now() + SOON;
    loop {
        let pool = leash.pool().await;
        let holders = pool["holders"].as_array().cloned().unwrap_or_default();
        if holders.is_empty() {
            return Ok(false);
        }
        if holders.iter().all(|holder| holder["pinned"] != Value::Null) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Err(format!("it is at rest, and keeps the connection without a reason: {holders:?}"));
        }
        tick().await;
    }
}
