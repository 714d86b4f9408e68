//! Who else uses the pool in some scenarios: a batch, an application's own pool, crowds, jobs, a long lock. None of
//! them leaks, and whoever of them loses a connection was wronged.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;

use crate::drill::app::{App, Failure, Session};
use crate::drill::scenario::{CONVOY_ACCOUNT, Scenario};
use crate::drill::schema::SCHEMA;
use crate::drill::workload::Kind;

/// Scenario minutes at which a crowd comes, or a row is locked.
const MOMENTS: [f64; 4] = [3.0, 6.0, 9.0, 12.0];

impl App {
    /// Plays the others until the run is over.
    ///
    /// Cancel safe: their connections are closed.
    pub async fn others(self: &Arc<Self>, scenario: &Scenario) {
        match scenario.kind {
            Kind::Batch => self.batch(scenario).await,
            Kind::InAppPool => self.pool_of_its_own(scenario).await,
            Kind::Storm => self.at_moments(scenario, &MOMENTS, App::storm).await,
            Kind::Cron => {
                let minutes: Vec<f64> = (1..15).map(f64::from).collect();
                self.at_moments(scenario, &minutes, App::jobs).await;
            }
            Kind::LockConvoy => self.at_moments(scenario, &MOMENTS, App::convoy).await,
            Kind::Incident | Kind::Steady | Kind::SlowQueries | Kind::ThinkTime => {}
        }
    }

    /// Runs `what` for each moment, all of it to its end.
    async fn at_moments<F>(
        self: &Arc<Self>,
        scenario: &Scenario,
        moments: &[f64],
        what: impl Fn(Arc<App>, Scenario) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut running = JoinSet::new();
        for moment in moments {
            tokio::time::sleep(scenario.moment(*moment).saturating_sub(self.elapsed())).await;
            running.spawn(what(Arc::clone(self), scenario.clone()));
        }
        running.join_all().await;
    }

    /// One transaction that works, and pauses as long as the healthy may, until the run is over.
    async fn batch(self: &Arc<Self>, scenario: &Scenario) {
        let mut dice = Xoshiro256PlusPlus::seed_from_u64(scenario.seed);
        let worked = async {
            let session = self.connect("nightly-batch").await?;
            session.client.batch_execute("BEGIN").await.map_err(|error| self.failed(&session, error))?;
            let sum =
                format!("SELECT sum(amount) FROM {SCHEMA}.payments WHERE id % 97 = 1 /*route='night'*/");
            while self.elapsed() < scenario.length() {
                let summed = session.client.batch_execute(&sum).await;
                summed.map_err(|error| self.failed(&session, error))?;
                tokio::time::sleep(scenario.longest_think().mul_f64(dice.random())).await;
            }
            session.client.batch_execute("COMMIT").await.map_err(|error| self.failed(&session, error))?;
            session.close().await;
            Ok::<_, Failure>(())
        };
        self.note("nightly-batch", worked.await);
    }

    /// A fifth of the pool's connections in an application's own pool, each used now and then.
    async fn pool_of_its_own(self: &Arc<Self>, scenario: &Scenario) {
        let mut kept = JoinSet::new();
        for seed in 0..(scenario.pool_size() / 5).max(2) as u64 {
            let (app, scenario) = (Arc::clone(self), scenario.clone());
            kept.spawn(async move {
                let mut dice = Xoshiro256PlusPlus::seed_from_u64(scenario.seed ^ seed);
                let gap = scenario.limits().idle_session.mul_f64(Scenario::THINK_CAP_SHARE);
                let used = async {
                    let session = app.connect("web-pool").await?;
                    while app.elapsed() < scenario.length() {
                        let looked = session.client.batch_execute("SELECT 1 /*route='GET%20%2F'*/").await;
                        looked.map_err(|error| app.failed(&session, error))?;
                        tokio::time::sleep(gap.mul_f64(dice.random())).await;
                    }
                    session.close().await;
                    Ok::<_, Failure>(())
                };
                let used = used.await;
                app.note("web-pool", used);
            });
        }
        kept.join_all().await;
    }

    /// Three times as many clients as the pool has connections, all at once.
    async fn storm(self: Arc<Self>, scenario: Scenario) {
        let mut crowd = JoinSet::new();
        for _ in 0..scenario.pool_size() * 3 {
            let app = Arc::clone(&self);
            crowd.spawn(async move { app.once("crowd", "SELECT 1 /*route='GET%20%2Fhealth'*/", None).await });
        }
        crowd.join_all().await;
    }

    /// A quarter of the pool at the full minute, each with a pause of its own.
    async fn jobs(self: Arc<Self>, scenario: Scenario) {
        let pause = scenario.longest_think().mul_f64(0.8);
        let mut jobs = JoinSet::new();
        for _ in 0..(scenario.pool_size() / 4).max(2) {
            let app = Arc::clone(&self);
            jobs.spawn(async move { app.once("cron", "SELECT 1 /*route='cron'*/", Some(pause)).await });
        }
        jobs.join_all().await;
    }

    /// A row is kept locked by a statement that runs for longer than any limit on idleness, and a quarter of the
    /// pool waits for it.
    async fn convoy(self: Arc<Self>, scenario: Scenario) {
        let length = scenario.long_statement();
        let mut waiting = JoinSet::new();
        let touch = format!("UPDATE {SCHEMA}.accounts SET balance = balance WHERE id = {CONVOY_ACCOUNT}");
        let lock = format!("{touch}; SELECT pg_sleep({}) /*route='POST%20%2Fclose'*/", length.as_secs_f64());
        let app = Arc::clone(&self);
        waiting.spawn(async move { app.once("closing", &lock, None).await });
        tokio::time::sleep(length / 10).await;
        for _ in 0..(scenario.pool_size() / 4).max(2) {
            let app = Arc::clone(&self);
            let wait = format!("{touch} /*route='PUT%20%2Faccount'*/");
            waiting.spawn(async move { app.once("accounts", &wait, None).await });
        }
        waiting.join_all().await;
    }

    /// One transaction of one client: a statement, and a pause.
    async fn once(self: &Arc<Self>, name: &str, statement: &str, pause: Option<Duration>) {
        let done = async {
            let session = self.connect(name).await?;
            let failed = |error| self.failed(&session, error);
            session.client.batch_execute("BEGIN").await.map_err(failed)?;
            session.client.batch_execute(statement).await.map_err(failed)?;
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            session.client.batch_execute("COMMIT").await.map_err(failed)?;
            session.close().await;
            Ok::<_, Failure>(())
        };
        self.note(name, done.await);
    }

    /// Notes that a connection was taken from a healthy client, if that is what happened.
    fn failed(&self, session: &Session, error: tokio_postgres::Error) -> Failure {
        self.note_cut(session.id, &error);
        Failure::Postgres(error)
    }

    /// Counts what an other did, by who it is and how it ended.
    fn note(&self, name: &str, done: Result<(), Failure>) {
        let ended = match done {
            Ok(()) => "done".to_owned(),
            Err(failure) => failure.cause(),
        };
        *self.journal().others.entry(format!("{name}: {ended}")).or_default() += 1;
    }
}
