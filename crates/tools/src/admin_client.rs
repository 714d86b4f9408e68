//! The snapshots and events of a running pgleash, asked for over its admin API by a thread of their own.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

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
    pub stale_growth_per_second: Option<f64>,
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
    #[serde(default)]
    pub pinned_seconds: Option<f64>,
    #[serde(default)]
    pub pinned_by: Option<String>,
    pub suspect: Option<String>,
    pub why: String,
    pub next: String,
}

/// How often a snapshot is asked for.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);
/// How long an answer may take.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);
/// More than ten thousand checkouts.
const LARGEST: u64 = 32 << 20;

/// What one look brings.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The state.
    pub view: View,
    /// Events that were not told before, oldest first.
    pub news: Vec<serde_json::Value>,
    /// It is another process than before: what was known of the one before is over.
    pub anew: bool,
}

/// Asks one pgleash.
pub(crate) struct Feed {
    agent: ureq::Agent,
    base: String,
    /// `seq` of the last event that was told.
    seen: u64,
    uptime_seconds: f64,
}

impl Feed {
    /// For the admin API at `base`, such as `http://127.0.0.1:9632`.
    pub(crate) fn new(base: &str) -> Self {
        let base = base.trim_end_matches('/').to_owned();
        Self { agent: agent(DEADLINE), base, seen: 0, uptime_seconds: 0.0 }
    }

    /// Asks once.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) fn ask(&mut self) -> Result<Answer, String> {
        let view: View = self.read("snapshot", "a snapshot")?;
        let anew = view.uptime_seconds < self.uptime_seconds;
        if anew {
            self.seen = 0;
        }
        let news: Vec<serde_json::Value> =
            self.read(&format!("events?after={}", self.seen), "a list of events")?;
        self.uptime_seconds = view.uptime_seconds;
        self.seen = news.last().and_then(|event| event["seq"].as_u64()).unwrap_or(self.seen);
        Ok(Answer { view, news, anew })
    }

    fn read<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, String> {
        let url = format!("{}/api/v1/{path}", self.base);
        let body = get(&self.agent, &url, LARGEST)?;
        serde_json::from_slice(&body).map_err(|_| format!("what {url} answers is not {what} of pgleash"))
    }
}

/// What is at `url`, up to `limit` bytes.
///
/// # Errors
/// Why there is nothing; in its own words where a pgleash refuses.
pub(crate) fn get(agent: &ureq::Agent, url: &str, limit: u64) -> Result<Vec<u8>, String> {
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
pub(crate) fn agent(deadline: Duration) -> ureq::Agent {
    let config = ureq::Agent::config_builder().timeout_global(Some(deadline)).proxy(None);
    config.http_status_as_error(false).build().new_agent()
}

/// Asks again and again, until nobody listens any more.
///
/// # Errors
/// The system gives no thread.
pub(crate) fn follow(base: &str) -> std::io::Result<mpsc::Receiver<Result<Answer, String>>> {
    let (tell, told) = mpsc::sync_channel(1);
    let mut feed = Feed::new(base);
    thread::Builder::new().name("pgleash-top".into()).spawn(move || {
        while tell.send(feed.ask()).is_ok() {
            thread::sleep(PERIOD);
        }
    })?;
    Ok(told)
}
