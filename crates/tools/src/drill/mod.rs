//! `pgleash drill`: plays the incident on a real PostgreSQL, without and with the watchdog.
//!
//! The drill starts a throw-away server ([`pgleash_testkit`]) and pgleash itself as a child process ([`subprocess`]).
//! A payments service ([`app`]) whose every arrival, think time and leak is drawn from a seed
//! ([`scenario`]) runs against it twice. The drill knows what it leaked, so it can judge ([`expected`]) what
//! pgleash found, what it took back, and whom it hit; [`report`], [`table`], [`chart`] and [`html`] show it.

pub mod app;
pub mod chart;
pub mod expected;
pub mod html;
pub mod log_tap;
pub mod progress;
pub mod report;
pub mod run;
pub mod scenario;
pub mod schema;
pub mod stats;
pub mod subprocess;
pub mod table;
pub mod workload;
pub mod workload_apps;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::{fmt, io};

use pgleash_core::{Action, PoolMode};
use pgleash_testkit::{Options, Scratch, ScratchError};
use tokio::signal::unix::{SignalKind, signal};

use crate::drill::progress::Progress;
use crate::drill::report::{Report, Setting};
use crate::drill::run::Stage;
use crate::drill::scenario::Scenario;
use crate::drill::schema::{Schema, SchemaError};
use crate::drill::subprocess::ChildError;
use crate::drill::workload::Kind;

pub use crate::drill::expected::Verdict;

/// Role and database of the payments service on a throw-away server.
const SERVICE: &str = "payments";

/// Play an incident on a real PostgreSQL, without and with the watchdog, and compare.
///
/// A payments service with a connection leak, a campaign that brings 40 % more payments, and a dropped
/// index: fifteen minutes, compressed into one; or another workload (--scenario). Exit code 1 if the watchdog
/// missed a leak, named the wrong cause, or killed a healthy checkout.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which workload: incident, steady, slow-queries, batch, think-time, in-app-pool, storm, cron or lock-convoy.
    #[arg(long, default_value = "incident", value_name = "NAME", value_parser = Kind::named)]
    pub scenario: Kind,
    /// Play slower, in three minutes for each run, and print where the live page is.
    #[arg(long)]
    pub watch: bool,
    /// Real length of each of the two runs, in minutes; fractions are allowed.
    #[arg(long, default_value = "1", default_value_if("watch", "true", "3"), value_name = "N", value_parser = |text: &str| within(text, 0.2, 60.0))]
    pub minutes: f64,
    /// Payments a second before the campaign. The pool gets one server connection for each.
    #[arg(long, default_value = "40", value_name = "N", value_parser = |text: &str| within(text, 10.0, 400.0))]
    pub rate: f64,
    /// Draws every arrival, think time and leak.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,
    /// How pgleash lends: session or transaction. In transaction mode all leaks are in mid-transaction,
    /// as a forgotten session holds nothing there.
    #[arg(long, default_value = "session", value_name = "MODE", value_parser = mode)]
    pub mode: PoolMode,
    /// Use this server, in a schema `pgleash_drill` that is dropped at the end. By default a throw-away
    /// PostgreSQL is started from the machine's binaries.
    #[arg(long, value_name = "URL", conflicts_with = "pg_bin")]
    pub upstream: Option<String>,
    /// Directory of initdb and postgres. By default PATH, then /usr/lib/postgresql/*/bin, newest first.
    #[arg(long, value_name = "DIR")]
    pub pg_bin: Option<PathBuf>,
    /// The pgleash binary to drill. By default this one.
    #[arg(long, value_name = "FILE")]
    pub pgleash: Option<PathBuf>,
    /// Write the report as JSON; `-` is standard output, and the text then goes to standard error.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as a self-contained HTML page.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Keep the event logs of both runs in this directory, as observe.log and reclaim.log, for pgleash report.
    #[arg(long, value_name = "DIR")]
    pub events: Option<PathBuf>,
}

/// Plays the scenario twice and reports. Whatever was started or created is gone when it returns, on error
/// and on Ctrl-C too.
///
/// # Errors
/// The drill could not be held: no server, no pgleash, no permission, an interrupt. A watchdog that failed
/// is not an error but a [`Verdict`].
pub async fn run(args: Args) -> Result<Verdict, DrillError> {
    for path in [&args.json, &args.html].into_iter().flatten().filter(|path| *path != Path::new("-")) {
        // Better to know now than after the drill.
        std::fs::File::create(path).map_err(|error| DrillError::Write { path: path.clone(), error })?;
    }
    let mut ground = Ground::default();
    let held = tokio::select! {
        held = hold(&args, &mut ground) => held,
        stop = interrupted() => Err(stop),
    };
    let cleared = ground.clear().await;
    let report = held?;
    cleared?;
    publish(&args, &report)?;
    Ok(report.verdict)
}

async fn hold(args: &Args, ground: &mut Ground) -> Result<Report, DrillError> {
    let Args { seed, minutes, rate, mode, scenario: kind, .. } = *args;
    let scenario = Scenario { seed, minutes, rate, mode, kind };
    let pgleash = run::program(args.pgleash.as_deref())?;
    eprintln!("pgleash drill: {scenario}");
    let (url, server) = ground.prepare(args, &scenario).await?;
    let admin = if args.watch { announced_page()? } else { SocketAddr::from(([127, 0, 0, 1], 0)) };
    let Some(schema) = ground.schema.as_mut() else { unreachable!("prepare made it") };
    let stage = Stage {
        pgleash,
        url,
        admin,
        payments: scenario.payments().into(),
        scenario,
        events: args.events.clone(),
    };
    let mut verdict = Verdict::default();
    let mut runs = Vec::with_capacity(2);
    for action in [Action::Observe, Action::Reclaim] {
        let progress = Progress::begin(run::name(action), &stage.scenario);
        let run = run::play(&stage, schema, action, &progress).await?;
        progress.end();
        verdict.weigh(run.name, kind, &run.leaks, &run.audit);
        runs.push(run);
    }
    let setting = Setting::of(&stage.scenario, server, schema.history());
    let Ok(runs) = <[_; 2]>::try_from(runs) else { unreachable!("there were two") };
    Ok(Report { setting, runs, verdict })
}

/// Where both runs serve their live page: a port that is free now, and that whoever wants to watch is told.
fn announced_page() -> Result<SocketAddr, DrillError> {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let admin = free.map_err(DrillError::Page)?;
    eprintln!("pgleash drill: watch it at http://{admin}/ while a run plays");
    Ok(admin)
}

/// What was started and created, and must go.
#[derive(Default)]
struct Ground {
    scratch: Option<Scratch>,
    schema: Option<Schema>,
}

impl Ground {
    /// Starts or finds the server. Returns where pgleash connects, and what the server is.
    async fn prepare(&mut self, args: &Args, scenario: &Scenario) -> Result<(String, String), DrillError> {
        let (url, kind) = match &args.upstream {
            Some(url) => (url.clone(), "an existing server"),
            None => {
                let options = Options {
                    pg_bin: args.pg_bin.clone(),
                    max_connections: scenario.pool_size() * 2 + 20,
                    ..Options::default()
                };
                let scratch = self.scratch.insert(Scratch::start(options).await?);
                (own_database(scratch).await?, "a throw-away server")
            }
        };
        let schema = self.schema.insert(Schema::connect(&url, scenario).await?);
        let server = format!("PostgreSQL {} ({kind})", schema.version().await?);
        Ok((url, server))
    }

    async fn clear(self) -> Result<(), DrillError> {
        match (self.scratch, self.schema) {
            (Some(scratch), _) => Ok(scratch.stop().await?),
            (None, Some(schema)) => Ok(schema.remove().await?),
            (None, None) => Ok(()),
        }
    }
}

/// Makes the service's role and database on a throw-away server: no superuser, as in life.
async fn own_database(scratch: &Scratch) -> Result<String, DrillError> {
    let (client, connection) =
        tokio_postgres::connect(&scratch.url(), tokio_postgres::NoTls).await.map_err(SchemaError::from)?;
    tokio::spawn(connection);
    for statement in
        [format!("CREATE ROLE {SERVICE} LOGIN"), format!("CREATE DATABASE {SERVICE} OWNER {SERVICE}")]
    {
        client.batch_execute(&statement).await.map_err(SchemaError::from)?;
    }
    Ok(scratch.url_for(SERVICE, SERVICE))
}

/// Returns when the drill is asked to stop.
async fn interrupted() -> DrillError {
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
    DrillError::Interrupted
}

/// Writes the report to where it was asked for.
fn publish(args: &Args, report: &Report) -> Result<(), DrillError> {
    let to_stdout = args.json.as_deref() == Some(Path::new("-"));
    let text = report.to_string();
    let shown = if to_stdout {
        io::stderr().write_all(text.as_bytes())
    } else {
        io::stdout().write_all(text.as_bytes())
    };
    shown.map_err(|error| DrillError::Write { path: PathBuf::from("-"), error })?;
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(report).map_err(io::Error::other);
        let write = |json: String| match to_stdout {
            true => writeln!(io::stdout(), "{json}"),
            false => std::fs::write(path, json),
        };
        json.and_then(write).map_err(|error| DrillError::Write { path: path.clone(), error })?;
    }
    if let Some(path) = &args.html {
        std::fs::write(path, html::page(report))
            .map_err(|error| DrillError::Write { path: path.clone(), error })?;
    }
    Ok(())
}

fn mode(text: &str) -> Result<PoolMode, String> {
    match text {
        "session" => Ok(PoolMode::Session),
        "transaction" => Ok(PoolMode::Transaction),
        _ => Err("must be session or transaction".to_owned()),
    }
}

fn within(text: &str, least: f64, most: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("must be a number from {least} to {most}")),
    }
}

/// Why the drill could not be held.
#[derive(Debug)]
pub enum DrillError {
    /// There is no throw-away server.
    Scratch(ScratchError),
    /// The server failed.
    Schema(SchemaError),
    /// pgleash failed as a process.
    Child(ChildError),
    /// There is no port for the live page.
    Page(io::Error),
    /// The path of the pgleash binary is not known.
    Program(io::Error),
    /// A report could not be written.
    Write {
        /// Where to.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// SIGINT or SIGTERM.
    Interrupted,
}

impl fmt::Display for DrillError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scratch(error) => error.fmt(f),
            Self::Schema(error) => error.fmt(f),
            Self::Child(error) => error.fmt(f),
            Self::Page(error) => write!(f, "there is no free port for the live page: {error}"),
            Self::Program(error) => {
                write!(f, "cannot tell the path of the pgleash binary ({error}): name it with --pgleash")
            }
            Self::Write { path, error } => {
                write!(f, "cannot write the report to {}: {error}", path.display())
            }
            Self::Interrupted => {
                f.write_str("interrupted; everything that was started is stopped and removed")
            }
        }
    }
}

impl std::error::Error for DrillError {}

impl From<ScratchError> for DrillError {
    fn from(error: ScratchError) -> Self {
        Self::Scratch(error)
    }
}

impl From<SchemaError> for DrillError {
    fn from(error: SchemaError) -> Self {
        Self::Schema(error)
    }
}

impl From<ChildError> for DrillError {
    fn from(error: ChildError) -> Self {
        Self::Child(error)
    }
}
