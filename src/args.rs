//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use pgleash_sidecar::config::{Flag, Sources, print};

/// A watchdog for Postgres connection pools: finds leaked checkouts, takes them back, and says who leaked.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Cli {
    /// What to do: `run`, if nothing was said.
    pub(crate) fn into_command(self) -> Command {
        self.command.unwrap_or(Command::Run(self.config))
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Stand between an application and Postgres (the default)
    #[command(after_long_help = print::help())]
    Run(ConfigArgs),
    /// Check the configuration, and that the upstream server can be reached and allows what is needed
    #[command(after_long_help = print::help())]
    Check(CheckArgs),
    /// Ask a running pgleash whether it is well: exit code 0 if so
    Healthcheck(HealthcheckArgs),
    /// Watch a running pgleash in the terminal: pools, checkouts, why each is suspect and what happens next
    Top(TopArgs),
    /// Send each receiver of notifications a test message
    #[command(after_long_help = print::help())]
    TestNotification(ConfigArgs),
    Report(pgleash_tools::report::Args),
    /// Play an incident on a real PostgreSQL, without and with the watchdog, and compare
    Drill(pgleash_tools::drill::Args),
    /// Write the man pages, one for pgleash and one for each of its commands
    Man(ManArgs),
    /// Print the completions for a shell
    Completions(CompletionsArgs),
}

/// Where the configuration comes from.
#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    /// Configuration file; else PGLEASH_CONFIG; else ./pgleash.toml if there is one
    #[arg(short, long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Where Postgres clients connect [default: 127.0.0.1:6432]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Where metrics, health and the page are served [default: 127.0.0.1:9632]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// URL of the Postgres server; one with a password is better set as PGLEASH_UPSTREAM_URL
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Set any key, such as pool.size=40; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    /// With the process's environment.
    pub(crate) fn into_sources(self) -> Sources {
        let named = [("--listen", self.listen), ("--admin", self.admin), ("--upstream", self.upstream)];
        let named = named.into_iter().filter_map(|(flag, value)| Some(Flag::Named(flag, value?)));
        Sources {
            file: self.config,
            env: std::env::vars_os().collect(),
            flags: self.set.into_iter().map(Flag::Set).chain(named).collect(),
        }
    }
}

/// `pgleash check`.
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print the effective value of every key and where it came from, and ask no server
    #[arg(long)]
    pub print: bool,
    /// Print what was found as JSON
    #[arg(long, conflicts_with = "print")]
    pub json: bool,
}

/// `pgleash top`.
#[derive(Args, Debug)]
pub(crate) struct TopArgs {
    /// Address of its admin API, such as http://10.0.0.5:9632; else that of the configuration
    pub url: Option<String>,
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print one screenful as text, and end
    #[arg(long)]
    pub once: bool,
}

/// `pgleash healthcheck`.
#[derive(Args, Debug)]
pub(crate) struct HealthcheckArgs {
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Ask whether clients should be sent to it, rather than whether it is alive
    #[arg(long)]
    pub ready: bool,
}

/// `pgleash man`.
#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// Where the pages go; the directory is made if it is missing
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// `pgleash completions`.
#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    pub shell: Shell,
}

/// A shell that completions are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}
