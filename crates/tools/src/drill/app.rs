//! The payments service: a fresh connection for each payment, through tokio-postgres, and the bug.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use pgleash_core::Moment;
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, Error, NoTls};

use crate::drill::log_tap::Tap;
use crate::drill::scenario::{Leak, Payment, Phase, Scenario};
use crate::drill::schema::SCHEMA;

/// The cause of a payment that failed for want of a connection.
const EXHAUSTED: &str = "53300 pool exhausted";
/// How long a customer waits for a payment.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection that the bug forgot.
#[derive(Clone, Debug, PartialEq)]
pub struct Planted {
    /// The process id that the client was told: pgleash's session number.
    pub session: u32,
    /// How it was forgotten.
    pub leak: Leak,
    /// When, since the beginning of the run.
    pub at: Duration,
}

/// A connection that was ended from the other side with 25P03 or 57P05.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// The process id that the client was told.
    pub session: u32,
    /// SQLSTATE.
    pub code: String,
    /// When, since the beginning of the run.
    pub at: Duration,
}

/// A statement's argument and its type.
type Argument<'a> = (&'a (dyn ToSql + Sync), Type);

/// What became of a payment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Committed and acknowledged.
    Paid,
    /// The bug forgot it in mid-transaction.
    LostToBug,
    /// It failed; SQLSTATE, or what happened.
    Failed(String),
}

/// What the service saw of a run.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// Each finished payment: when its customer arrived, how long it took, what became of it.
    pub payments: Vec<(Duration, Duration, Outcome)>,
    /// Leaks, in the order in which they were planted.
    pub planted: Vec<Planted>,
    /// Connections that were taken away.
    pub cuts: Vec<Cut>,
    /// What others did, by who it was and how it ended.
    pub others: BTreeMap<String, u64>,
    /// Commits that were sent and not answered.
    pub in_doubt: u64,
    /// The latest that a payment began after its time, because this machine was busy.
    pub lag: Duration,
}

impl Journal {
    /// Payments by outcome: paid, lost to the bug, failed.
    pub fn counts(&self) -> (u64, u64, u64) {
        self.payments.iter().fold((0, 0, 0), |(paid, lost, failed), (_, _, outcome)| match outcome {
            Outcome::Paid => (paid + 1, lost, failed),
            Outcome::LostToBug => (paid, lost + 1, failed),
            Outcome::Failed(_) => (paid, lost, failed + 1),
        })
    }

    /// When a payment was first refused for want of a connection.
    pub fn first_refusal(&self) -> Option<Duration> {
        let refused =
            self.payments.iter().filter(|(_, _, outcome)| *outcome == Outcome::Failed(EXHAUSTED.into()));
        refused.map(|(at, took, _)| *at + *took).min()
    }

    /// Failed payments by cause.
    pub fn failures(&self) -> BTreeMap<String, u64> {
        let mut causes = BTreeMap::new();
        for (_, _, outcome) in &self.payments {
            if let Outcome::Failed(cause) = outcome {
                *causes.entry(cause.clone()).or_default() += 1;
            }
        }
        causes
    }
}

/// The service.
#[derive(Debug)]
pub struct App {
    pool: SocketAddr,
    user: String,
    database: String,
    scenario: Scenario,
    began: Moment,
    journal: Mutex<Journal>,
    /// What the bug holds on to: never used, never closed, until the service ends.
    forgotten: Mutex<Vec<Session>>,
}

impl App {
    /// A service whose database is behind `pool`. The run begins now.
    pub fn new(pool: SocketAddr, user: &str, database: &str, scenario: &Scenario) -> Arc<Self> {
        Arc::new(Self {
            pool,
            user: user.to_owned(),
            database: database.to_owned(),
            scenario: scenario.clone(),
            began: pgleash_clock::now(),
            journal: Mutex::default(),
            forgotten: Mutex::default(),
        })
    }

    /// When the run began.
    pub fn began(&self) -> Moment {
        self.began
    }

    /// Time since the run began.
    pub fn elapsed(&self) -> Duration {
        pgleash_clock::now().since(self.began)
    }

    /// What was seen so far.
    pub fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock()
    }

    /// Makes each payment when its customer arrives, whether or not earlier ones are done, and returns
    /// when all are done.
    ///
    /// Cancel safe: payments in the making are dropped and their connections closed.
    pub async fn serve(self: &Arc<Self>, payments: &[Payment]) {
        let mut making = JoinSet::new();
        for payment in payments {
            tokio::time::sleep(payment.at.saturating_sub(self.elapsed())).await;
            let lag = self.elapsed().saturating_sub(payment.at);
            {
                let mut journal = self.journal();
                journal.lag = journal.lag.max(lag);
            }
            let (app, payment) = (self.clone(), payment.clone());
            making.spawn(async move { app.make(&payment).await });
            while making.try_join_next().is_some() {}
        }
        while making.join_next().await.is_some() {}
    }

    /// Ends the service: its connections close, the forgotten ones too.
    pub async fn quit(&self) {
        let forgotten = std::mem::take(&mut *self.forgotten.lock());
        for session in forgotten {
            session.close().await;
        }
    }

    /// One payment, within the customer's patience.
    async fn make(self: &Arc<Self>, payment: &Payment) {
        let mut progress = Progress::default();
        let outcome = match tokio::time::timeout(PATIENCE, self.pay(payment, &mut progress)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(failure)) => {
                if let Failure::Postgres(error) = &failure {
                    self.note_cut(progress.session, error);
                }
                Outcome::Failed(failure.cause())
            }
            Err(_) => Outcome::Failed(format!("no answer in {} s", PATIENCE.as_secs())),
        };
        // From the moment at which the customer arrived: a late start counts as waiting.
        let took = self.elapsed().saturating_sub(payment.at);
        let mut journal = self.journal();
        if progress.committing && matches!(outcome, Outcome::Failed(_)) {
            journal.in_doubt += 1;
        }
        journal.payments.push((payment.at, took, outcome));
    }

    async fn pay(self: &Arc<Self>, payment: &Payment, progress: &mut Progress) -> Result<Outcome, Failure> {
        let session = self.connect(self.release()).await?;
        progress.session = session.id;
        let client = &session.client;
        client.batch_execute("BEGIN").await?;
        let account: [Argument<'_>; 1] = [(&payment.account, Type::INT4)];
        let route = payment.route.comment();
        let balance = format!("SELECT balance FROM {SCHEMA}.accounts WHERE id = $1 {route}");
        client.query_typed(&balance, &account).await?;
        // How much did this account move before? The index that this needs is dropped later.
        let history =
            format!("SELECT count(*), sum(amount) FROM {SCHEMA}.payments WHERE account_id = $1 {route}");
        client.query_typed(&history, &account).await?;
        if !payment.runs.is_zero() {
            let runs = format!("SELECT pg_sleep({}) {route}", payment.runs.as_secs_f64());
            client.batch_execute(&runs).await?;
        }
        tokio::time::sleep(payment.think).await;
        let both: [Argument<'_>; 2] = [(&payment.account, Type::INT4), (&payment.amount, Type::INT8)];
        let insert = format!("INSERT INTO {SCHEMA}.payments (account_id, amount) VALUES ($1, $2) {route}");
        client.query_typed(&insert, &both).await?;
        if payment.leak == Some(Leak::MidTransaction) {
            self.forget(session, Leak::MidTransaction);
            return Ok(Outcome::LostToBug);
        }
        let debit = format!("UPDATE {SCHEMA}.accounts SET balance = balance - $2 WHERE id = $1 {route}");
        client.query_typed(&debit, &both).await?;
        progress.committing = true;
        client.batch_execute("COMMIT").await?;
        progress.committing = false;
        match payment.leak {
            Some(leak) => self.forget(session, leak),
            None => session.close().await,
        }
        Ok(Outcome::Paid)
    }

    /// The service's name and version, as it tells the server.
    fn release(&self) -> &'static str {
        match self.scenario.kind.phase(self.scenario.minute(self.elapsed())) {
            Phase::Baseline => "payments@1.8.2",
            Phase::Deploy | Phase::Spike | Phase::Index => "payments@1.9.0",
        }
    }

    /// A connection of its own, under this name.
    pub(super) async fn connect(self: &Arc<Self>, name: &str) -> Result<Session, Failure> {
        let mut config = Config::new();
        config.user(&self.user).dbname(&self.database).application_name(name);
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        let stream = TcpStream::connect(self.pool).await.map_err(|_| Failure::Unreachable)?;
        let _ = stream.set_nodelay(true);
        let (tap, session) = Tap::new(stream);
        let (client, connection) = config.connect_raw(tap, NoTls).await?;
        let id = session.load(std::sync::atomic::Ordering::Acquire);
        let app = self.clone();
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                app.note_cut(id, &error);
            }
        });
        Ok(Session { id, client, task: Some(task) })
    }

    /// Notes that a connection ended, if it ended because it was taken back.
    pub(super) fn note_cut(&self, session: u32, error: &Error) {
        if let Some(code) = error.code()
            && taken_back(code)
        {
            let at = self.elapsed();
            self.journal().cuts.push(Cut { session, code: code.code().to_owned(), at });
        }
    }

    fn forget(&self, session: Session, leak: Leak) {
        self.journal().planted.push(Planted { session: session.id, leak, at: self.elapsed() });
        self.forgotten.lock().push(session);
    }
}

/// How far a payment came.
#[derive(Default)]
struct Progress {
    session: u32,
    committing: bool,
}

/// A connection of the service. Dropping it closes the socket without a goodbye.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u32,
    pub(super) client: Client,
    task: Option<JoinHandle<()>>,
}

impl Session {
    /// Says goodbye and waits until it is said.
    pub(super) async fn close(mut self) {
        let task = self.task.take();
        drop(self);
        if let Some(task) = task {
            let _ = tokio::time::timeout(PATIENCE, task).await;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

/// Whether this is what a holder is told whose connection was taken back.
fn taken_back(code: &SqlState) -> bool {
    *code == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT || *code == SqlState::from_code("57P05")
}

/// Why a payment failed.
pub(super) enum Failure {
    /// Nobody listens.
    Unreachable,
    /// The server said so, or is gone.
    Postgres(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Postgres(error)
    }
}

impl Failure {
    /// In a code, or a word.
    pub(super) fn cause(&self) -> String {
        let Failure::Postgres(error) = self else { return "connection refused".to_owned() };
        match error.code() {
            Some(code) if *code == SqlState::TOO_MANY_CONNECTIONS => EXHAUSTED.to_owned(),
            Some(code) => code.code().to_owned(),
            None => "connection lost".to_owned(),
        }
    }
}
