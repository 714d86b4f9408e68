//! The snapshots of a running pgleash, asked for over its admin API by a thread of their own.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Deserialize;

/// As much of a snapshot as is shown. What an older pgleash does not say is empty.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "named as in the snapshot")]
pub struct View {
    pub version: String,
    pub uptime_seconds: f64,
    pub action: String,
    pub enforcing: bool,
    pub draining: bool,
    pub flow: String,
    pub observation_age_seconds: f64,
    pub clients: usize,
    pub clients_max: usize,
    pub pools: Vec<PoolView>,
}

/// One pool.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "named as in the snapshot")]
pub struct PoolView {
    pub pool: String,
    pub size: usize,
    pub utilization_ratio: f64,
    pub utilization_peak_ratio: f64,
    pub waiting: usize,
    pub oldest_wait_seconds: f64,
    pub oldest_checkout_seconds: f64,
    pub stale: Vec<(String, usize)>,
    pub overdue: usize,
    pub exhaustion_forecast_seconds: Option<f64>,
    pub top_holders: Vec<TopView>,
    pub holders: Vec<HolderView>,
}

/// One kind of work that holds idle connections.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "named as in the snapshot")]
pub struct TopView {
    pub app: String,
    pub route: Option<String>,
    pub stale: usize,
    pub stale_seconds: f64,
}

/// One checkout.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "named as in the snapshot")]
pub struct HolderView {
    pub id: u64,
    pub app: String,
    pub route: Option<String>,
    pub statement: Option<String>,
    pub client: String,
    pub phase: String,
    pub age_seconds: f64,
    pub idle_seconds: f64,
    pub backend_pid: i32,
    pub pinned: Option<String>,
    pub suspect: Option<String>,
    pub why: String,
    pub next: String,
}

/// How often a snapshot is asked for.
pub const PERIOD: Duration = Duration::from_secs(1);
/// How long an answer may take.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// More than ten thousand checkouts.
const LARGEST: u64 = 32 << 20;

/// Asks `base`, such as `http://127.0.0.1:9632`, once.
///
/// # Errors
/// Why there is no snapshot.
pub fn ask(agent: &ureq::Agent, base: &str) -> Result<View, String> {
    let url = format!("{}/api/v1/snapshot", base.trim_end_matches('/'));
    let body = get(agent, &url, LARGEST)?;
    serde_json::from_slice(&body).map_err(|_| format!("what {url} answers is not a snapshot of pgleash"))
}

/// What is at `url`, up to `limit` bytes.
///
/// # Errors
/// Why there is nothing; in its own words where a pgleash refuses.
pub fn get(agent: &ureq::Agent, url: &str, limit: u64) -> Result<Vec<u8>, String> {
    #[derive(Deserialize)]
    struct Refusal {
        error: String,
    }
    let mut response = agent.get(url).call().map_err(|error| error.to_string())?;
    let body = response.body_mut().with_config().limit(limit).read_to_vec();
    let body = body.map_err(|error| error.to_string())?;
    let status = response.status();
    if status.is_success() {
        return Ok(body);
    }
    let said = serde_json::from_slice(&body).map(|Refusal { error }| format!(": {error}"));
    Err(format!("{url} answers {status}{}", said.unwrap_or_default()))
}

/// An HTTP client for an admin API, which no proxy stands before.
pub fn agent(deadline: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder().timeout_global(Some(deadline)).proxy(None);
    config.http_status_as_error(false).build().new_agent()
}

/// Asks again and again, until nobody listens any more.
///
/// # Errors
/// The system gives no thread.
pub fn follow(base: String) -> std::io::Result<mpsc::Receiver<Result<View, String>>> {
    let (tell, told) = mpsc::sync_channel(1);
    thread::Builder::new().name("pgleash-top".into()).spawn(move || {
        let agent = agent(DEADLINE);
        while tell.send(ask(&agent, &base)).is_ok() {
            thread::sleep(PERIOD);
        }
    })?;
    Ok(told)
}
