//! The drill's own schema on the server: made, changed, audited and dropped over a direct connection.
//!
//! Every name is written with its schema, so nothing depends on a session's settings.

use std::fmt;
use std::time::Duration;

use pgleash_sidecar::config::Upstream;
use pgleash_sidecar::tls::upstream;
use pgleash_sidecar::tls::upstream::TlsError;
use serde::Serialize;
use tokio_postgres::Client;

use crate::drill::scenario::{ACCOUNTS, Scenario};

/// The schema that the drill creates and drops.
pub const SCHEMA: &str = "pgleash_drill";
/// Cents on each account at the beginning.
const OPENING_BALANCE: i64 = 100_000_000;
/// Rows of payment history to measure a sequential scan with.
const SAMPLE_ROWS: i64 = 20_000;
/// Most rows of payment history: about 45 MB.
const MOST_ROWS: i64 = 400_000;
/// What the sequential scans may cost in all, in processors.
const SCAN_LOAD: f64 = 0.40;
/// How long a statement of the drill itself may wait for a lock.
const LOCK_TIMEOUT: &str = "10s";

/// A direct connection to the server, with a schema of its own.
#[derive(Debug)]
pub struct Schema {
    client: Client,
    upstream: Upstream,
    history: i64,
}

/// What the database has in its books after a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Books {
    /// Payments that were booked in the run.
    pub payments: u64,
    /// Whether what was booked and what was debited are the same sum.
    pub sums_agree: bool,
}

impl Schema {
    /// Connects, and checks that the server takes as many connections as the drill will make.
    ///
    /// # Errors
    /// The server cannot be reached, refuses the login, or has too few connections.
    pub async fn connect(url: &str, scenario: &Scenario) -> Result<Self, SchemaError> {
        let upstream = Upstream::parse(url).map_err(|fault| SchemaError::Url(fault.to_string()))?;
        let client = dial(&upstream).await.map_err(|error| error.at(&upstream))?;
        let row = client.query_one("SELECT current_setting('max_connections')::bigint", &[]).await?;
        let (has, needs) = (row.get::<_, i64>(0), i64::try_from(scenario.pool_size()).unwrap_or(i64::MAX));
        if has < needs + 10 {
            return Err(SchemaError::FewConnections { has, needs: needs + 10 });
        }
        client.batch_execute(&format!("SET lock_timeout = '{LOCK_TIMEOUT}'")).await?;
        Ok(Self { client, upstream, history: 0 })
    }

    /// The server's version.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn version(&self) -> Result<String, SchemaError> {
        let row = self.client.query_one("SELECT current_setting('server_version')", &[]).await?;
        Ok(row.get(0))
    }

    /// Role and database that the payments service uses.
    pub fn login(&self) -> (String, String) {
        let user = self.upstream.postgres.get_user().unwrap_or("postgres");
        (user.to_owned(), self.upstream.postgres.get_dbname().unwrap_or(user).to_owned())
    }

    /// Rows of payment history that the runs begin with.
    pub fn history(&self) -> i64 {
        self.history
    }

    /// Makes the tables afresh. The history is sized at the first call, so that a sequential scan is
    /// visibly slow on this machine and all of them together leave it most of its processors.
    ///
    /// # Errors
    /// The role may not create a schema, or the connection failed.
    pub async fn make(&mut self, scenario: &Scenario) -> Result<(), SchemaError> {
        self.remove().await?;
        let tables = format!(
            "CREATE SCHEMA {SCHEMA};
             CREATE TABLE {SCHEMA}.accounts (id int PRIMARY KEY, balance bigint NOT NULL);
             CREATE TABLE {SCHEMA}.payments (
                 id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                 account_id int NOT NULL REFERENCES {SCHEMA}.accounts,
                 amount bigint NOT NULL,
                 made_at timestamptz NOT NULL DEFAULT now(),
                 reference text NOT NULL DEFAULT 'card payment, settled by the acquirer at night'
             ) WITH (parallel_workers = 0);
             INSERT INTO {SCHEMA}.accounts SELECT n, {OPENING_BALANCE} FROM generate_series(1, {ACCOUNTS}) AS n"
        );
        self.client.batch_execute(&tables).await?;
        if self.history == 0 {
            self.grow(1, SAMPLE_ROWS).await?;
            self.history = self.measured_history(scenario).await?;
            self.grow(SAMPLE_ROWS + 1, self.history).await?;
        } else {
            self.grow(1, self.history).await?;
        }
        let rest = format!(
            "CREATE INDEX payments_account_id_idx ON {SCHEMA}.payments (account_id);
             VACUUM ANALYZE {SCHEMA}.accounts;
             VACUUM ANALYZE {SCHEMA}.payments"
        );
        for statement in rest.split(';') {
            self.client.batch_execute(statement).await?;
        }
        Ok(())
    }

    /// Drops the index that each payment looks up by, and returns how long that took. The statement is
    /// sent over a connection of its own, and takes effect at once; it returns only when every transaction
    /// that uses the table has ended, which with a leaked transaction is never.
    ///
    /// # Errors
    /// The connection failed.
    ///
    /// Cancel safe: the connection closes; the server ends the statement when it notices.
    pub fn drop_index(&self) -> impl Future<Output = Result<Duration, SchemaError>> + Send + 'static {
        let upstream = self.upstream.clone();
        async move {
            let client = dial(&upstream).await?;
            let begin = pgleash_clock::now();
            client
                .batch_execute(&format!("DROP INDEX CONCURRENTLY {SCHEMA}.payments_account_id_idx"))
                .await?;
            Ok(pgleash_clock::now().since(begin))
        }
    }

    /// What was booked since [`Schema::make`].
    ///
    /// # Errors
    /// The connection failed.
    pub async fn books(&self) -> Result<Books, SchemaError> {
        let audit = format!(
            "SELECT count(*), coalesce(sum(amount), 0)::bigint,
                    (SELECT sum({OPENING_BALANCE} - balance)::bigint FROM {SCHEMA}.accounts)
             FROM {SCHEMA}.payments WHERE id > $1"
        );
        let row = self.client.query_one(&audit, &[&self.history]).await?;
        let payments = u64::try_from(row.get::<_, i64>(0)).unwrap_or(0);
        Ok(Books { payments, sums_agree: row.get::<_, i64>(1) == row.get::<_, i64>(2) })
    }

    /// Drops the schema.
    ///
    /// # Errors
    /// Somebody uses it and did not let go in ten seconds, or the connection failed.
    pub async fn remove(&self) -> Result<(), SchemaError> {
        Ok(self.client.batch_execute(&format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")).await?)
    }

    /// Adds rows of history, spread over the accounts.
    async fn grow(&self, from: i64, to: i64) -> Result<(), SchemaError> {
        let insert = format!(
            "INSERT INTO {SCHEMA}.payments (account_id, amount, made_at)
             SELECT 1 + (n * 7919) % {ACCOUNTS}, 1 + n % 50000, now() - n * interval '1 minute'
             FROM generate_series({from}::bigint, {to}::bigint) AS n"
        );
        Ok(self.client.batch_execute(&insert).await?)
    }

    /// As many rows as the peak rate of sequential scans affords, by the time that one takes here.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "clamped, and small")]
    async fn measured_history(&self, scenario: &Scenario) -> Result<i64, SchemaError> {
        let scan = format!("SELECT count(*), sum(amount) FROM {SCHEMA}.payments WHERE account_id = 1");
        let mut fastest = Duration::MAX;
        for _ in 0..7 {
            let begin = pgleash_clock::now();
            self.client.query_one(&scan, &[]).await?;
            fastest = fastest.min(pgleash_clock::now().since(begin));
        }
        let affordable = SCAN_LOAD / scenario.peak_rate();
        let rows = SAMPLE_ROWS as f64 * affordable / fastest.as_secs_f64();
        Ok((rows as i64).clamp(SAMPLE_ROWS, MOST_ROWS))
    }
}

/// Connects as pgleash itself would, by the URL's `sslmode`.
async fn dial(upstream: &Upstream) -> Result<Client, SchemaError> {
    let tls = upstream::connector(&upstream.tls).map_err(SchemaError::Tls)?;
    let mut config = upstream.postgres.clone();
    config.application_name("pgleash drill");
    let (client, connection) = config.connect(tls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// What went wrong on the server.
#[derive(Debug)]
pub enum SchemaError {
    /// `--upstream` is not a connection string.
    Url(String),
    /// TLS could not be set up.
    Tls(TlsError),
    /// The server's `max_connections` is too low.
    FewConnections {
        /// What it is.
        has: i64,
        /// What the drill needs.
        needs: i64,
    },
    /// The server could not be reached, or refused the login.
    Login {
        /// Its URL, without the password.
        server: String,
        /// Why.
        error: tokio_postgres::Error,
    },
    /// The server refused a statement, or was lost.
    Postgres(tokio_postgres::Error),
}

impl SchemaError {
    /// Names the server that could not be reached.
    fn at(self, upstream: &Upstream) -> Self {
        match self {
            Self::Postgres(error) => Self::Login { server: upstream.redacted().to_owned(), error },
            other => other,
        }
    }
}

impl From<tokio_postgres::Error> for SchemaError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Postgres(error)
    }
}

impl fmt::Display for SchemaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(error) => {
                write!(f, "--upstream {error}")
            }
            Self::Tls(error) => error.fmt(f),
            Self::FewConnections { has, needs } => write!(
                f,
                "the server's max_connections is {has} and the drill needs {needs}: lower --rate (the pool has one \
                 connection for each payment a second) or raise max_connections"
            ),
            Self::Login { server, error } => write!(f, "cannot log in to {server}: {}", explain(error)),
            Self::Postgres(error) => write!(f, "the server failed the drill: {}", explain(error)),
        }
    }
}

/// The server's own words with their SQLSTATE, or what lies at the bottom of a lost connection.
fn explain(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(db), _) => format!("{} ({})", db.message(), db.code().code()),
        (None, Some(cause)) => cause.to_string(),
        (None, None) => error.to_string(),
    }
}

impl std::error::Error for SchemaError {}
