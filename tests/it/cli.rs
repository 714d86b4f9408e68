//! The command line: what it says, where, and with which exit code.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread;

use tempfile::TempDir;

/// The program, about to be run in an empty directory with no configuration around it.
pub struct Program {
    command: Command,
    directory: TempDir,
}

/// What came of it.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

pub fn pgleash(args: &[&str]) -> Program {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgleash"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.args(args).current_dir(directory.path()).stdin(Stdio::null());
    Program { command, directory }
}

impl Program {
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    fn file(self, name: &str, text: &str) -> Self {
        fs::write(self.directory.path().join(name), text).unwrap();
        self
    }

    pub fn run(mut self) -> Ran {
        let output = self.command.output().unwrap();
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// Refused for its configuration: exit code 64, and all that was said was said on stderr.
    pub fn is_refused(&self, because: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(64), ""), "{}", self.stderr);
        for part in because {
            assert!(self.stderr.contains(part), "{part:?} is missing:\n{}", self.stderr);
        }
    }
}

#[test]
fn help_and_version_are_answers_not_errors() {
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["check", "--help"],
        &["healthcheck", "--help"],
        &["--version"],
    ] {
        let ran = pgleash(args).run();
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(!ran.stdout.is_empty(), "{args:?}");
    }
    let help = pgleash(&["run", "--help"]).run().stdout;
    for key in ["pool.size (default 20)", "upstream.url (required)", "leaks.budget (default 25%/1m)"] {
        assert!(help.contains(key), "{key}:\n{help}");
    }
}

#[test]
fn a_wrong_command_line_is_64() {
    pgleash(&["--bogus"]).run().is_refused(&["--bogus"]);
    pgleash(&["juggle"]).run().is_refused(&["juggle"]);
    pgleash(&["--set"]).run().is_refused(&["--set"]);
    pgleash(&["--set", "pool.size"]).run().is_refused(&["--set: has no ="]);
}

#[test]
fn every_subcommand_refuses_a_wrong_configuration_with_64() {
    for args in [&[][..], &["run"], &["check"], &["check", "--print"]] {
        pgleash(args).run().is_refused(&["upstream.url is required"]);
    }
    pgleash(&["healthcheck", "--admin", "here"]).run().is_refused(&["--admin: admin = \"here\""]);
}

#[test]
fn a_report_reads_a_log_and_says_what_is_wrong_with_another() {
    let event = r#"{"time":"2026-11-25T10:00:00Z","event":"pool_opened","pool":"app@shop","size":20}"#;
    let ran =
        pgleash(&["report", "events.log"]).file("events.log", &format!("postgres: ready\n{event}\n")).run();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("No connection was leaked") && ran.stdout.contains("1 line not"),
        "{}",
        ran.stdout
    );
    let wrong = [
        (&["report", "nowhere.log"][..], "cannot open nowhere.log"),
        (&["report", "other.log"], "1 lines are something else"),
        (&["report"], "no event in it"),
        (&["report", "other.log", "events.log", "--since", "2027-01-01T00:00:00Z"], "no event of pgleash's"),
        (&["report", "http://127.0.0.1:1"], "cannot ask http://127.0.0.1:1/api/v1/events"),
        (&["report", "events.log", "--html", "no/such/place.html"], "cannot write no/such/place.html"),
    ];
    for (args, why) in wrong {
        let ran = pgleash(args).file("other.log", "LOG: checkpoint\n").file("events.log", event).run();
        assert_eq!(ran.code, Some(1), "{args:?}: {}", ran.stdout);
        assert!(ran.stderr.contains(why), "{args:?}: {}", ran.stderr);
    }
    pgleash(&["report", "--since", "noon"]).run().is_refused(&["must be a time in UTC"]);
}

#[test]
fn errors_of_all_layers_are_reported_together() {
    let ran = pgleash(&["run", "--listen", "0.0.0.0:6432", "--set", "leaks.action=shoot"])
        .file("pgleash.toml", "[pool]\nsize = 0\nsizes = 3\n")
        .env("PGLEASH_UPSTREAM_URL", "postgres://app:hunter2@db?sslmode=maybe")
        .env("PGLEASH_POOL_MODES", "session")
        .run();
    ran.is_refused(&[
        "has 7 errors",
        "pgleash.toml:2: pool.size = 0: is too small",
        "pgleash.toml:3: no such key: pool.sizes",
        "did you mean pool.size?",
        "PGLEASH_UPSTREAM_URL: upstream.url has an sslmode that is not known",
        "PGLEASH_POOL_MODES: no such variable",
        "--set leaks.action: leaks.action = \"shoot\"",
        "--listen: listen = 0.0.0.0:6432",
    ]);
    assert!(!ran.stderr.contains("hunter2"), "{}", ran.stderr);
}

#[test]
fn a_named_file_is_read_instead_of_the_one_that_lies_around() {
    let program = |args: &[&str]| {
        pgleash(args)
            .file("pgleash.toml", "workers = 2\n[upstream]\nurl = \"postgres://db\"\n")
            .file("other.toml", "workers = 3\n[upstream]\nurl = \"postgres://db\"\n")
    };
    let workers = |ran: Ran| {
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let line = ran.stdout.lines().find(|line| line.starts_with("workers")).unwrap().to_owned();
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let found = program(&["check", "--print"]).run();
    assert_eq!(workers(found), ["workers", "2", "pgleash.toml:1"]);
    let by_variable = program(&["check", "--print"]).env("PGLEASH_CONFIG", "other.toml").run();
    assert_eq!(workers(by_variable), ["workers", "3", "other.toml:1"]);
    let by_flag = program(&["check", "--print", "--config", "other.toml"]).run();
    assert_eq!(workers(by_flag), ["workers", "3", "other.toml:1"]);
    program(&["check", "--config", "absent.toml"])
        .run()
        .is_refused(&["--config: absent.toml cannot be read"]);
}

#[test]
fn what_is_printed_holds_no_password() {
    let ran = pgleash(&["check", "--print"])
        .env("PGLEASH_UPSTREAM_URL", "postgres://app:hunter2@db/shop?password=hunter2")
        .run();
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(
        ran.stdout.contains("postgres://app:***@db/shop?password=***  PGLEASH_UPSTREAM_URL"),
        "{}",
        ran.stdout
    );
    assert!(!ran.stdout.contains("hunter2"), "{}", ran.stdout);
}

#[test]
fn every_command_has_a_man_page() {
    let place = tempfile::tempdir().unwrap();
    let into = place.path().join("not/there/yet");
    let ran = pgleash(&["man", into.to_str().unwrap()]).run();
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{}", ran.stderr);
    let page = |name: &str| fs::read_to_string(into.join(name)).unwrap();
    assert!(page("pgleash.1").contains("finds leaked checkouts"));
    assert!(page("pgleash-run.1").contains("pool.size"));
    for command in
        ["check", "healthcheck", "top", "report", "test-notification", "drill", "man", "completions"]
    {
        assert!(page(&format!("pgleash-{command}.1")).contains(".TH"), "{command}");
    }

    let taken = pgleash(&["man", "a-file"]).file("a-file", "").run();
    assert_eq!(taken.code, Some(1), "{}", taken.stdout);
    assert!(taken.stderr.starts_with("pgleash: cannot write man pages to a-file: "), "{}", taken.stderr);
    pgleash(&["man"]).run().is_refused(&["<DIR>"]);
}

#[test]
fn three_shells_complete_commands_and_options() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = pgleash(&["completions", shell]).run();
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{shell}");
        for word in ["healthcheck", "test-notification", "upstream"] {
            assert!(ran.stdout.contains(word), "{shell} does not know {word}");
        }
    }
    pgleash(&["completions", "csh"]).run().is_refused(&["csh", "bash, zsh, fish"]);
}

#[test]
fn a_healthcheck_is_0_if_well_and_1_if_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || {
        ["200 OK\r\n\r\nok", "503 Service Unavailable\r\n\r\ndraining"].map(|answer| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 256];
            let length = stream.read(&mut request).unwrap();
            write!(stream, "HTTP/1.1 {answer}").unwrap();
            String::from_utf8_lossy(&request[..length]).lines().next().unwrap_or_default().to_owned()
        })
    });

    // The rest of the configuration is not its business.
    let well = pgleash(&["healthcheck"]).env("PGLEASH_ADMIN", &admin).run();
    assert_eq!((well.code, well.stdout.as_str()), (Some(0), "ok\n"), "{}", well.stderr);
    let unwell = pgleash(&["healthcheck", "--ready", "--admin", &admin]).run();
    assert_eq!(unwell.code, Some(1));
    assert!(unwell.stderr.contains("answered 503: draining"), "{}", unwell.stderr);
    assert_eq!(server.join().unwrap(), ["GET /healthz HTTP/1.1", "GET /readyz HTTP/1.1"]);

    let gone = pgleash(&["healthcheck", "--admin", &admin]).run();
    assert_eq!(gone.code, Some(1));
    assert!(gone.stderr.contains("cannot be asked"), "{}", gone.stderr);
}
