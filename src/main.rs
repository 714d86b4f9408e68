//! pgleash, the program: parse, load, do, and say how it went.

mod args;
mod check;
mod healthcheck;
mod shell;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use pgleash_sidecar::config;
use pgleash_sidecar::config::{Loaded, Problems};
use pgleash_telemetry::notify::Notifiers;
use pgleash_telemetry::{Telemetry, notify};
use pgleash_tools::top;

use crate::args::{CheckArgs, Cli, Command, CompletionsArgs, ConfigArgs, HealthcheckArgs, ManArgs, TopArgs};
use crate::healthcheck::Question;

/// `EX_USAGE`: the command line or the configuration is wrong, and nothing was done.
const BAD_CONFIGURATION: u8 = 64;

/// How long the last event lines may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.into_command(),
        Err(answer) => return say(&answer),
    };
    let done = match command {
        Command::Run(args) => run(args),
        Command::Check(args) => check(args),
        Command::Healthcheck(args) => healthcheck(args),
        Command::Top(args) => top(args),
        Command::TestNotification(args) => test_notification(args),
        Command::Report(args) => report(&args),
        Command::Drill(args) => drill(args),
        Command::Man(args) => man(&args),
        Command::Completions(args) => completions(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.say(),
    }
}

/// Serves until it is told to stop.
fn run(args: ConfigArgs) -> Result<(), Failure> {
    let sources = args.into_sources();
    let Loaded { config, .. } = config::load(&sources)?;
    let log = pgleash_telemetry::open_log(&config.log.to_string()).map_err(Failure::of)?;
    let telemetry = Arc::new(Telemetry::start(log).map_err(Failure::of)?);
    let notifiers = Notifiers::start(&config.receivers, &telemetry).map_err(Failure::of)?;
    let served =
        runtime(config.workers)?.block_on(pgleash_sidecar::run(config, sources, Arc::clone(&telemetry)));
    notifiers.finish(LAST_WORDS);
    telemetry.flush(LAST_WORDS);
    served.map(drop).map_err(Failure::of)
}

/// Prints what the configuration amounts to, or whether it would work here.
fn check(CheckArgs { config, print, json }: CheckArgs) -> Result<(), Failure> {
    let sources = config.into_sources();
    let loaded = config::load(&sources)?;
    if print {
        tell(&config::print::effective(&loaded));
        return Ok(());
    }
    let given = check::Given::of(&sources, &loaded);
    let report = runtime(1)?.block_on(check::check(&loaded, &given));
    tell(&if json { format!("{}\n", report.json()) } else { format!("{report}\n") });
    if report.passed() { Ok(()) } else { Err(Failure::Failed("pgleash would not work here".into())) }
}

/// Asks a running pgleash how it is.
fn healthcheck(HealthcheckArgs { config, ready }: HealthcheckArgs) -> Result<(), Failure> {
    let admin = config::load_admin(&config.into_sources())?;
    let question = if ready { Question::Ready } else { Question::Alive };
    let answer = healthcheck::ask(admin, question).map_err(Failure::Failed)?;
    tell(&format!("{answer}\n"));
    Ok(())
}

/// Shows a running pgleash in the terminal.
fn top(TopArgs { url, config, once }: TopArgs) -> Result<(), Failure> {
    /// Of a screenful that nobody's terminal bounds.
    const WIDTH: u16 = 200;
    let base = match url {
        Some(url) if url.contains("://") => url,
        Some(address) => format!("http://{address}"),
        None => format!("http://{}", config::load_admin(&config.into_sources())?),
    };
    if once {
        tell(&top::once(&base, WIDTH).map_err(Failure::Failed)?);
        return Ok(());
    }
    top::run(&base).map_err(Failure::of)
}

/// Sends each receiver a test message, and says what came of it.
fn test_notification(args: ConfigArgs) -> Result<(), Failure> {
    let Loaded { config, .. } = config::load(&args.into_sources())?;
    let tested = notify::test(&config.receivers);
    if tested.is_empty() {
        let why =
            "nobody is to be notified: set events.webhook, events.slack, events.pagerduty or events.grafana";
        return Err(Failure::Failed(why.into()));
    }
    let mut failed = 0;
    for (target, outcome) in tested {
        let said = match outcome {
            Ok(()) => "ok".to_owned(),
            Err(why) => {
                failed += 1;
                format!("FAILED: {why}")
            }
        };
        tell(&format!("{:<9}  {}  {said}\n", target.channel, target.shown()));
    }
    if failed == 0 {
        Ok(())
    } else {
        Err(Failure::Failed(format!("receivers that did not take the test: {failed}")))
    }
}

/// Tells what an event log knows.
fn report(args: &pgleash_tools::report::Args) -> Result<(), Failure> {
    tell(&pgleash_tools::report::run(args).map_err(Failure::Failed)?);
    Ok(())
}

/// Plays the incident; a watchdog that missed a leak or hit a healthy checkout has failed.
fn drill(args: pgleash_tools::drill::Args) -> Result<(), Failure> {
    let verdict = runtime(2)?.block_on(pgleash_tools::drill::run(args)).map_err(Failure::of)?;
    if verdict.passed() { Ok(()) } else { Err(Failure::Failed(verdict.to_string())) }
}

/// Writes the man pages.
fn man(ManArgs { directory }: &ManArgs) -> Result<(), Failure> {
    shell::man_pages(directory).map_err(|error| {
        Failure::Failed(format!("cannot write man pages to {}: {error}", directory.display()))
    })
}

/// Prints what a shell needs to complete a command line of ours.
fn completions(CompletionsArgs { shell }: &CompletionsArgs) -> Result<(), Failure> {
    tell(&shell::completions(*shell));
    Ok(())
}

/// To standard output, whether or not somebody still reads it.
fn tell(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// One worker is the calling thread itself: a relay spends its time in the kernel, and waking another
/// thread for each event would be most of the rest.
fn runtime(workers: usize) -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = match workers {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(workers).enable_all().build();
    runtime.map_err(|error| Failure::Failed(format!("the system refused a thread: {error}")))
}

/// Help, the version, or what is wrong with the command line.
fn say(answer: &clap::Error) -> ExitCode {
    // If the terminal is gone there is nobody left to tell.
    let _ = answer.print();
    if answer.use_stderr() { ExitCode::from(BAD_CONFIGURATION) } else { ExitCode::SUCCESS }
}

/// Why pgleash ends with another code than 0.
enum Failure {
    BadConfiguration(Problems),
    Failed(String),
}

impl Failure {
    fn of(error: impl Display) -> Self {
        Failure::Failed(error.to_string())
    }

    fn say(self) -> ExitCode {
        match self {
            Failure::BadConfiguration(problems) => {
                eprintln!("pgleash: {problems}");
                ExitCode::from(BAD_CONFIGURATION)
            }
            Failure::Failed(why) => {
                eprintln!("pgleash: {why}");
                ExitCode::FAILURE
            }
        }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Failure::BadConfiguration(problems)
    }
}
