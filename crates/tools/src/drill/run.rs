//! One run of the scenario: pgleash, the service, the watch on both, and the audit.

use std::collections::HashSet;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pgleash_core::Action;
use tokio::task::JoinSet;

use crate::drill::DrillError;
use crate::drill::app::{App, Journal};
use crate::drill::expected::{Audit, Named, TimedEvent, judge};
use crate::drill::progress::Progress;
use crate::drill::report::{Payments, RunReport, Sample, Utilization};
use crate::drill::scenario::{Payment, Phase, Scenario};
use crate::drill::schema::{Schema, SchemaError};
use crate::drill::subprocess::{EventLine, Heard, Pgleash};
use crate::report::findings::Findings;
use crate::report::history::{Story, Window};
use crate::report::parse::Line;

/// How often to look at the pool.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How much longer than its limit the last leak is waited for.
const SETTLE_GRACE: Duration = Duration::from_secs(10);
/// How long the migration and the last backends may take to end once pgleash is gone.
const WIND_DOWN: Duration = Duration::from_secs(20);

/// What a run needs.
#[derive(Debug)]
pub struct Stage {
    /// The binary.
    pub pgleash: PathBuf,
    /// Where pgleash finds the server.
    pub url: String,
    /// Where pgleash serves its live page; port 0 is any that is free.
    pub admin: SocketAddr,
    /// What is played.
    pub scenario: Scenario,
    /// Its payments.
    pub payments: Arc<[Payment]>,
    /// Where to keep the event log of each run, if anywhere: as `observe.log` and `reclaim.log`.
    pub events: Option<PathBuf>,
}

impl Stage {
    fn log(&self, action: Action) -> Result<Option<File>, DrillError> {
        let Some(events) = &self.events else { return Ok(None) };
        let path = events.join(format!("{}.log", action.as_str()));
        let created = std::fs::create_dir_all(events).and_then(|()| File::create(&path));
        created.map(Some).map_err(|error| DrillError::Write { path, error })
    }
}

/// The name of the run in the report.
pub fn name(action: Action) -> &'static str {
    match action {
        Action::Observe => "without the watchdog",
        Action::Reclaim => "with the watchdog",
    }
}

/// Plays the scenario once on a fresh schema.
///
/// # Errors
/// The server or pgleash failed. A leak missed or a healthy checkout killed is not an error: it is in the
/// report.
///
/// Cancel safe: pgleash is killed, the service's connections are closed; the schema stays.
pub async fn play(
    stage: &Stage,
    schema: &mut Schema,
    action: Action,
    progress: &Progress,
) -> Result<RunReport, DrillError> {
    let scenario = &stage.scenario;
    schema.make(scenario).await?;
    let mut pgleash = Pgleash::start(&stage.pgleash, &keys(stage, action), stage.log(action)?).await?;
    let (user, database) = schema.login();
    let app = App::new(pgleash.listen(), &user, &database, scenario);
    let migration = scenario.kind.has_campaign().then(|| Migration::begin(&app, schema, scenario));
    let mut watch =
        Watch { app: &app, scenario, progress, pool: format!("{user}@{database}"), samples: Vec::new() };
    let mut service = JoinSet::new();
    let (server, payments) = (app.clone(), stage.payments.clone());
    let (neighbours, theirs) = (app.clone(), scenario.clone());
    service.spawn(async move {
        tokio::join!(server.serve(&payments), neighbours.others(&theirs));
    });
    watch.until(&mut pgleash, service.join_next()).await?;
    watch.settle(&mut pgleash, action).await?;
    let samples = watch.samples;
    let journal = app.journal().clone();
    let settled = app.elapsed();
    app.quit().await;
    let heard = pgleash.stop().await?;
    let index_drop = match migration {
        Some(migration) => migration.end().await?,
        None => None,
    };
    let audit = audit(schema, &journal).await?;
    let events = events_of(&heard, &app, settled);
    let mut leaks = judge(action, &scenario.limits(), &journal.planted, &journal.cuts, &events);
    leaks.named_first = named_first(&heard);
    Ok(RunReport {
        name: name(action),
        action: action.as_str(),
        payments: Payments::of(&journal, scenario),
        utilization: Utilization::of(&samples, journal.first_refusal(), scenario),
        leaks,
        audit,
        others: journal.others.clone(),
        index_drop_seconds: index_drop
            .filter(|took| scenario.moment(Phase::Index.begins()) + *took < settled)
            .map(|took| took.as_secs_f64()),
        generator_lag_seconds: journal.lag.as_secs_f64(),
    })
}

/// pgleash's configuration.
fn keys(stage: &Stage, action: Action) -> Vec<(&'static str, String)> {
    let scenario = &stage.scenario;
    let limits = scenario.limits();
    let ms = |limit: Duration| format!("{}ms", limit.as_millis());
    vec![
        ("LISTEN", "127.0.0.1:0".to_owned()),
        ("ADMIN", stage.admin.to_string()),
        ("UPSTREAM_URL", stage.url.clone()),
        ("POOL_MODE", scenario.mode.as_str().to_owned()),
        ("POOL_SIZE", scenario.pool_size().to_string()),
        ("POOL_WAIT_TIMEOUT", ms(limits.wait_timeout)),
        ("POOL_MAX_CLIENTS", "10000".to_owned()),
        ("LEAKS_ACTION", action.as_str().to_owned()),
        ("LEAKS_IDLE_IN_TRANSACTION", ms(limits.idle_in_transaction)),
        ("LEAKS_IDLE_SESSION", ms(limits.idle_session)),
        ("LEAKS_FLOOR", ms(limits.floor)),
        ("LEAKS_BUDGET", format!("25%/{}", ms(limits.budget_window))),
        ("EVENTS_LOG", "stdout".to_owned()),
        ("DRAIN_TIMEOUT", "5s".to_owned()),
    ]
}

/// The release's migration: drops the index at its minute, whatever that waits for. Dropping it aborts it.
struct Migration(JoinSet<Result<Duration, SchemaError>>);

impl Migration {
    fn begin(app: &App, schema: &Schema, scenario: &Scenario) -> Self {
        let at = scenario.moment(Phase::Index.begins());
        let (wait, drop_index) = (at.saturating_sub(app.elapsed()), schema.drop_index());
        let mut task = JoinSet::new();
        task.spawn(async move {
            tokio::time::sleep(wait).await;
            drop_index.await
        });
        Self(task)
    }

    /// How long it took; `None` if it still hangs although nobody uses the table.
    async fn end(mut self) -> Result<Option<Duration>, DrillError> {
        match tokio::time::timeout(WIND_DOWN, self.0.join_next()).await {
            Ok(Some(Ok(took))) => Ok(Some(took?)),
            Ok(_) | Err(_) => Ok(None),
        }
    }
}

/// The watch on the pool while the service runs.
struct Watch<'a> {
    app: &'a Arc<App>,
    scenario: &'a Scenario,
    progress: &'a Progress,
    pool: String,
    samples: Vec<Sample>,
}

impl Watch<'_> {
    /// Looks at the pool until `done`, or fails if pgleash ends before.
    /// `done` is not polled while a look is taken, so it must be no more than a wait.
    async fn until<T>(
        &mut self,
        pgleash: &mut Pgleash,
        done: impl Future<Output = T>,
    ) -> Result<(), DrillError> {
        let mut done = std::pin::pin!(done);
        loop {
            tokio::select! {
                _ = &mut done => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => self.look(pgleash).await?,
                ended = pgleash.ended() => return Err(ended.into()),
            }
        }
    }

    /// Keeps looking until every leak was met, or the last should long have been.
    async fn settle(&mut self, pgleash: &mut Pgleash, action: Action) -> Result<(), DrillError> {
        let deadline = self.app.elapsed() + self.scenario.limits().longest() + SETTLE_GRACE;
        self.progress.settling();
        while self.app.elapsed() < deadline && self.outstanding(pgleash, action) > 0 {
            self.until(pgleash, tokio::time::sleep(LOOK_EVERY * 2)).await?;
        }
        Ok(())
    }

    /// Leaks that were not yet met: found, or when reclaiming, taken back.
    fn outstanding(&self, pgleash: &Pgleash, action: Action) -> usize {
        let (found, reclaimed) = self.met(pgleash);
        let met = if action == Action::Reclaim { reclaimed } else { found };
        self.app.journal().planted.len() - met
    }

    /// How many of the planted leaks pgleash has named, and how many it has taken back.
    fn met(&self, pgleash: &Pgleash) -> (usize, usize) {
        let told = |named: fn(&EventLine) -> bool| -> HashSet<u32> {
            pgleash.heard(|heard| heard.line.session.filter(|_| named(&heard.line))).into_iter().collect()
        };
        let found = told(|line| line.event == "leak_detected");
        let reclaimed = told(|line| line.resolution.as_deref() == Some("reclaimed"));
        let journal = self.app.journal();
        let among =
            |met: &HashSet<u32>| journal.planted.iter().filter(|leak| met.contains(&leak.session)).count();
        (among(&found), among(&reclaimed))
    }

    async fn look(&mut self, pgleash: &mut Pgleash) -> Result<(), DrillError> {
        let at = self.app.elapsed();
        let pools = match pgleash.look().await {
            Ok(pools) => pools,
            // That it ended says more than that it does not answer.
            Err(silent) => {
                let ended = tokio::time::timeout(LOOK_EVERY * 5, pgleash.ended()).await;
                return Err(ended.unwrap_or(silent).into());
            }
        };
        // There is no pool before the first payment.
        let sample = pools.iter().find(|pool| pool.pool == self.pool).map_or(
            Sample { at, utilization: 0.0, peak: 0.0, waiting: 0 },
            |pool| Sample {
                at,
                utilization: pool.utilization_ratio,
                peak: pool.utilization_peak_ratio,
                waiting: pool.waiting,
            },
        );
        self.samples.push(sample);
        let (found, reclaimed) = self.met(pgleash);
        self.progress.show(self.scenario, &sample, &self.app.journal(), found, reclaimed);
        Ok(())
    }
}

/// The events up to the moment at which the service was told to end: what came of the leaks after that is
/// no merit of the watchdog.
fn events_of(heard: &[Heard], app: &App, settled: Duration) -> Vec<TimedEvent> {
    let since = |heard: &Heard| heard.at.since(app.began());
    heard.iter().map(|heard| (since(heard), heard.line.clone())).filter(|(at, _)| *at <= settled).collect()
}

/// Who leaked most, as `pgleash report` tells it from the event log.
fn named_first(heard: &[Heard]) -> Option<Named> {
    let mut story = Story::new(Window::default());
    heard.iter().for_each(|heard| story.hear(Line::of(&heard.text)));
    let first = Findings::of(&story).holders.into_iter().find(|holder| holder.leaked > 0)?;
    Some(Named { app: first.app, route: first.route })
}

/// Waits until nobody is in the tables any more, and compares the books.
async fn audit(schema: &Schema, journal: &Journal) -> Result<Audit, DrillError> {
    let (acknowledged, _, _) = journal.counts();
    let begin = pgleash_clock::now();
    loop {
        let audit = Audit { books: schema.books().await?, acknowledged, in_doubt: journal.in_doubt };
        // A backend whose client is gone may still be about to roll back, or to finish its commit.
        if audit.balances() || pgleash_clock::now().since(begin) > WIND_DOWN {
            return Ok(audit);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The binary to run: as given, or this one.
///
/// # Errors
/// The path of this program is not known.
pub fn program(given: Option<&Path>) -> Result<PathBuf, DrillError> {
    match given {
        // pgleash runs in a directory of its own.
        Some(given) => std::path::absolute(given).map_err(DrillError::Program),
        None => std::env::current_exe().map_err(DrillError::Program),
    }
}
