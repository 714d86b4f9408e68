use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use pgleash_core::{Action, Budget, PoolMode};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::*;
use crate::config::field::Given;
use crate::config::keys::KEYS;
use crate::config::print;

const URL: &str = "postgres://app:hunter2@db:5433/shop";

fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}

fn flags(pairs: &[&str]) -> Vec<Flag> {
    pairs.iter().map(|pair| Flag::Set((*pair).to_owned())).collect()
}

/// A configuration made from flags alone.
fn with(pairs: &[&str]) -> Result<Loaded, Problems> {
    let mut flags = flags(pairs);
    flags.insert(0, Flag::Named("--upstream", URL.into()));
    load(&Sources { flags, ..Sources::default() })
}

/// The report on a file of this text, as if it were called pgleash.toml.
fn report_on(text: &str, sources: Sources) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pgleash.toml");
    fs::write(&path, text).unwrap();
    let problems = load(&Sources { file: Some(path), ..sources }).unwrap_err();
    problems.to_string().replace(&format!("{}/", directory.path().display()), "")
}

#[test]
fn every_default_in_the_table_is_the_default_of_the_program() {
    let program = Config::new(Upstream::nowhere());
    let mut table = Config::new(Upstream::nowhere());
    // Somewhere else first, so that a key whose setter does nothing is found out.
    table.policy = Policy { size: 1, mode: PoolMode::Session, action: Action::Observe, ..Policy::default() };
    for key in KEYS {
        let Some(default) = key.default else { continue };
        assert_eq!(key.field.set(&mut table, &Given::Untyped(default.into())), Ok(()), "{}", key.name);
        assert_eq!(key.field.show(&table), default, "{} is shown as it is written", key.name);
        assert_eq!(key.field.show(&program), default, "{} in Config::new", key.name);
    }
    assert_eq!(table.policy, Policy::default());
}

#[test]
fn every_key_reaches_its_place() {
    let loaded = with(&[
        "listen=[::1]:7000",
        "admin=0.0.0.0:7001",
        "workers=3",
        "drain_timeout=0s",
        "auth.method=scram-sha-256",
        "auth.users=/etc/pgleash/users.toml",
        "auth.query=SELECT * FROM pgleash.lookup($1)",
        "tls.mode=allow",
        "tls.cert=/etc/pgleash/tls.crt",
        "tls.key=/etc/pgleash/tls.key",
        "tls.client_ca=/etc/pgleash/clients.pem",
        "pool.mode=session",
        "pool.size=7",
        "pool.wait_timeout=1500ms",
        "pool.max_clients=70",
        "pool.max_lifetime=1h",
        "pool.idle_timeout=1m 30s",
        "leaks.action=observe",
        "leaks.idle_in_transaction=2s",
        "leaks.idle_session=3s",
        "leaks.floor=1s",
        "leaks.rules=app=nightly* 10m",
        "leaks.longest_hold=1h",
        "leaks.budget=12.5%/30s",
        "events.log=/var/log/pgleash.jsonl",
    ])
    .unwrap();
    let config = loaded.config;
    assert_eq!(config.listen, Listen::Tcp("[::1]:7000".parse().unwrap()));
    assert_eq!(config.admin, "0.0.0.0:7001".parse().unwrap());
    assert_eq!((config.workers, config.max_clients), (3, 70));
    assert_eq!(config.drain_timeout, Duration::ZERO);
    assert_eq!(
        config.auth,
        Auth {
            method: AuthMethod::Scram,
            users: Some("/etc/pgleash/users.toml".into()),
            query: Some("SELECT * FROM pgleash.lookup($1)".into()),
        }
    );
    assert_eq!(config.tls.mode, ListenerMode::Allow);
    assert_eq!(
        config.tls.files(),
        Some(ListenerFiles {
            cert: "/etc/pgleash/tls.crt".into(),
            key: "/etc/pgleash/tls.key".into(),
            client_ca: Some("/etc/pgleash/clients.pem".into()),
        })
    );
    assert_eq!(config.log, LogTarget::File("/var/log/pgleash.jsonl".into()));
    assert_eq!(
        config.policy,
        Policy {
            action: Action::Observe,
            idle_in_transaction: Duration::from_secs(2),
            idle_session: Duration::from_secs(3),
            floor: Duration::from_secs(1),
            rules: pgleash_core::Rules::parse("app=nightly* 10m").unwrap(),
            longest_hold: Duration::from_secs(3600),
            budget: Budget { share: 0.125, per: Duration::from_secs(30) },
            mode: PoolMode::Session,
            size: 7,
            wait_timeout: Duration::from_millis(1500),
            max_lifetime: Duration::from_secs(3600),
            idle_timeout: Duration::from_secs(90),
        }
    );
}

#[test]
fn a_unix_socket_may_be_listened_on() {
    let config = with(&["listen=/run/pgleash/.s.PGSQL.6432"]).unwrap().config;
    assert_eq!(config.listen, Listen::Unix("/run/pgleash/.s.PGSQL.6432".into()));
    assert!(with(&[&format!("listen=/{}", "x".repeat(107))]).is_err());
}

#[test]
fn a_flag_wins_over_a_variable_and_a_variable_over_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pgleash.toml");
    fs::write(&path, "workers = 2\n\n[pool]\nsize = 5\nmax_clients = 50\nmode = \"session\"\n").unwrap();
    let loaded = load(&Sources {
        file: Some(path.clone()),
        env: env(&[
            ("PGLEASH_UPSTREAM_URL", URL),
            ("PGLEASH_POOL_SIZE", "6"),
            ("PGLEASH_POOL_MAX_CLIENTS", "60"),
            ("HOME", "/root"),
        ]),
        flags: flags(&["pool.size=7", "pool.size=8"]),
    })
    .unwrap();

    assert_eq!((loaded.config.policy.size, loaded.config.max_clients, loaded.config.workers), (8, 60, 2));
    let origins = ["workers", "pool.mode", "pool.max_clients", "pool.size", "upstream.url", "admin"];
    assert_eq!(
        origins.map(|key| loaded.origin(key).clone()),
        [
            Origin::File { path: path.clone(), line: 1 },
            Origin::File { path, line: 6 },
            Origin::Env("PGLEASH_POOL_MAX_CLIENTS".into()),
            Origin::Flag("--set pool.size".into()),
            Origin::Env("PGLEASH_UPSTREAM_URL".into()),
            Origin::Default,
        ]
    );
}

#[test]
fn a_variable_may_name_the_file_and_a_flag_names_it_louder() {
    let directory = tempfile::tempdir().unwrap();
    let (quiet, loud) = (directory.path().join("quiet.toml"), directory.path().join("loud.toml"));
    fs::write(&quiet, format!("workers = 2\n[upstream]\nurl = \"{URL}\"\n")).unwrap();
    fs::write(&loud, format!("workers = 3\n[upstream]\nurl = \"{URL}\"\n")).unwrap();
    let variable = env(&[(FILE_VARIABLE, quiet.to_str().unwrap())]);
    let workers = |file| {
        let sources = Sources { file, env: variable.clone(), flags: Vec::new() };
        load(&sources).unwrap().config.workers
    };
    assert_eq!(workers(None), 2);
    assert_eq!(workers(Some(loud)), 3);
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let file = r#"
listen = "0.0.0.0:6432"
admin = 9632
worker = 2

[upstream]
url = "postgres://app:hunter2@h@db/shop"
password = "hunter2"

[pool]
size = "20"
mode = "statement"
wait_timeout = 5
idle_timeout = "0s"
max_lifetime = "90d"
max_clients = 99999999999999999999

[leaks]
action = true
idle_in_transaction = "30"
budget = "25%"

[events]
log = ["stdout"]
webhook = "https://hooks.example/hush"
web_hook = "https://hooks.example/hush"

[pol]
size = 3
"#;
    let report = report_on(
        file,
        Sources {
            env: env(&[
                ("PGLEASH_POOL_SIZE", "lots"),
                ("PGLEASH_POOL_WAIT", "5s"),
                ("PGLEASH_LEAKS_BUDGET", "300%/1m"),
                ("PGLEASH_ADMIN", ""),
            ]),
            flags: flags(&["pool.size=0", "pool=3", "leaks.idle_session", "drain_timeout=2h"]),
            ..Sources::default()
        },
    );
    assert!(!report.contains("hunter2") && !report.contains("hush"), "no secret is shown:\n{report}");
    insta::assert_snapshot!(report);
}

#[test]
fn what_is_not_toml_is_said_with_its_line_and_hides_nothing_else() {
    let report = report_on("listen = 127.0.0.1:6432\nworkers = \n\n[pool]\nsize = 0\n", Sources::default());
    insta::assert_snapshot!(report);
}

#[test]
fn a_file_that_is_not_there_is_an_error_when_it_was_named() {
    let problems = load(&Sources { file: Some("/nowhere/pgleash.toml".into()), ..Sources::default() });
    let problems = problems.unwrap_err();
    assert_eq!(problems.iter().count(), 1, "{problems}");
    assert!(problems.to_string().contains("/nowhere/pgleash.toml cannot be read"), "{problems}");
}

#[test]
fn upstream_is_required() {
    let problems = load(&Sources::default()).unwrap_err().to_string();
    assert!(problems.contains("upstream.url is required"), "{problems}");
}

#[test]
fn the_ranges_are_inclusive() {
    for right in ["pool.size=1", "pool.size=10000", "drain_timeout=1h", "leaks.idle_session=10ms"] {
        assert!(with(&[right]).is_ok(), "{right}");
    }
    for wrong in [
        "pool.size=0",
        "pool.size=10001",
        "pool.size=-1",
        "drain_timeout=61m",
        "leaks.idle_session=0s",
        "leaks.idle_session=9ms",
        "leaks.budget=101%/1m",
        "leaks.budget=NaN%/1m",
        "leaks.budget=10%/0s",
        "leaks.budget=10/1m",
        "pool.wait_timeout=soon",
    ] {
        assert!(with(&[wrong]).is_err(), "{wrong}");
    }
}

#[test]
fn the_two_listeners_do_not_share_a_port() {
    assert!(with(&["listen=127.0.0.1:7000", "admin=127.0.0.1:7000"]).is_err());
    assert!(with(&["listen=127.0.0.1:7000", "admin=0.0.0.0:7000"]).is_err());
    assert!(with(&["listen=127.0.0.1:0", "admin=127.0.0.1:0"]).is_ok());
    assert!(with(&["listen=127.0.0.1:7000", "admin=127.0.0.2:7000"]).is_ok());
}

/// What is said of a configuration that names files of users and certificates, which are not looked at here.
fn said_together(pairs: &[&str]) -> Vec<String> {
    match with(pairs) {
        Ok(_) => Vec::new(),
        Err(problems) => {
            problems.iter().map(|problem| format!("{}: {}", problem.key, problem.what)).collect()
        }
    }
}

#[test]
fn clients_of_other_machines_are_not_served_without_a_password_and_not_in_the_clear() {
    const SCRAM: [&str; 2] = ["auth.method=scram-sha-256", "auth.users=/etc/users.toml"];
    const TLS: [&str; 2] = ["tls.cert=/etc/tls.crt", "tls.key=/etc/tls.key"];
    for open in ["listen=0.0.0.0:6432", "listen=10.0.0.7:6432", "listen=[::]:6432"] {
        assert_eq!(said_together(&[open]).len(), 2, "{open}");
        let said = said_together(&[&[open], &TLS[..]].concat());
        assert!(said.len() == 1 && said[0].contains("not asked for a password"), "{said:?}");
        let said = said_together(&[&[open], &SCRAM[..]].concat());
        assert!(said.len() == 1 && said[0].contains("not be encrypted"), "{said:?}");
        assert!(
            said_together(&[&[open, "tls.mode=allow"], &SCRAM[..]].concat()).is_empty(),
            "it was told to"
        );
        assert!(said_together(&[&[open], &SCRAM[..], &TLS[..]].concat()).is_empty());
    }
    for near in ["listen=127.0.0.1:6432", "listen=[::1]:6432", "listen=/run/pgleash/.s.PGSQL.6432"] {
        assert!(said_together(&[near]).is_empty(), "{near}");
    }
}

#[test]
fn what_belongs_together_in_auth_and_tls_is_missed_all_at_once() {
    let problems = with(&[
        "listen=0.0.0.0:6432",
        "auth.query=SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1",
        "tls.key=/etc/tls.key",
        "tls.client_ca=/etc/clients.pem",
        "tls.mode=require",
    ]);
    insta::assert_snapshot!(problems.unwrap_err());
    let said = said_together(&["auth.method=scram-sha-256", "tls.cert=/etc/tls.crt"]);
    assert!(said[0].contains("nobody has one") && said[1].contains("tls.cert: has no key"), "{said:?}");
    assert!(with(&["auth.query=SELECT 1"]).is_err(), "it asks for nobody");
    let nameless = "upstream.url=postgres://db/shop";
    let said = said_together(&["auth.method=scram-sha-256", "auth.query=SELECT f($1)", nameless]);
    assert!(said[0].contains("which names none"), "{said:?}");
}

#[test]
fn the_upstream_is_not_pgleash_itself() {
    for itself in ["postgres://app@127.0.0.1:6432/shop", "postgres://app@db:1,localhost:6432/shop"] {
        let problems = with(&[&format!("upstream.url={itself}")]).unwrap_err().to_string();
        assert!(problems.contains("pgleash itself"), "{problems}");
    }
    assert!(with(&["upstream.url=postgres://app@127.0.0.1:5432/shop"]).is_ok());
}

#[test]
fn the_addresses_of_other_services_in_the_environment_are_not_ours() {
    let links = env(&[
        ("PGLEASH_UPSTREAM_URL", URL),
        ("PGLEASH_SERVICE_HOST", "10.96.0.7"),
        ("PGLEASH_SERVICE_PORT", "6432"),
        ("PGLEASH_SERVICE_PORT_POSTGRES", "6432"),
        ("PGLEASH_PORT", "tcp://10.96.0.7:6432"),
        ("PGLEASH_PORT_6432_TCP", "tcp://10.96.0.7:6432"),
        ("PGLEASH_PORT_6432_TCP_ADDR", "10.96.0.7"),
        ("PGLEASH_METRICS_SERVICE_HOST", "10.96.0.8"),
    ]);
    assert!(load(&Sources { env: links, ..Sources::default() }).is_ok());
    let stray = env(&[("PGLEASH_UPSTREAM_URL", URL), ("PGLEASH_PORT", "6432")]);
    assert!(load(&Sources { env: stray, ..Sources::default() }).is_err());
}

#[test]
fn the_admin_address_is_found_without_the_rest() {
    let sources = |admin: &str| Sources {
        env: env(&[("PGLEASH_ADMIN", admin), ("PGLEASH_POOL_SIZE", "lots"), ("PGLEASH_POOL", "x")]),
        ..Sources::default()
    };
    assert_eq!(load_admin(&sources("127.0.0.1:7001")), Ok("127.0.0.1:7001".parse().unwrap()));
    assert_eq!(load_admin(&sources("7001")).unwrap_err().iter().count(), 1);
}

#[test]
fn the_example_file_sets_every_key_to_its_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pgleash.example.toml");
    let wanted = print::example();
    if fs::read_to_string(&path).unwrap_or_default() != wanted {
        fs::write(&path, &wanted).unwrap();
        panic!("pgleash.example.toml was out of date, and has been written anew: commit it");
    }
    let loaded = load(&Sources { file: Some(path), ..Sources::default() }).unwrap();
    for key in KEYS {
        assert_ne!(loaded.origin(key.name), &Origin::Default, "{} is in the example", key.name);
    }
    assert_eq!(loaded.config.policy, Policy::default());
}

#[test]
fn what_is_printed_names_every_origin_and_no_secret() {
    let mut sources = Sources { env: env(&[("PGLEASH_UPSTREAM_URL", URL)]), ..Sources::default() };
    sources.flags = flags(&["pool.size=40"]);
    let printed = print::effective(&load(&sources).unwrap());
    assert!(!printed.contains("hunter2"));
    insta::assert_snapshot!(printed);
}

#[test]
fn a_digest_tells_configurations_apart_but_for_their_secrets() {
    let digest = |password: &str, more: &[&str]| {
        let url = format!("postgres://app:{password}@db/shop?sslmode=disable");
        let sources =
            Sources { env: env(&[("PGLEASH_UPSTREAM_URL", &url)]), flags: flags(more), ..Sources::default() };
        print::digest(&load(&sources).unwrap().config)
    };
    let one = digest("hunter2", &[]);
    assert!(one.len() == 12 && one.bytes().all(|digit| digit.is_ascii_hexdigit()), "{one}");
    assert_eq!(one, digest("another", &["pool.size=20"]), "its default, and another password");
    for other in ["pool.size=21", "leaks.action=observe", "leaks.budget=26%/1m"] {
        assert_ne!(one, digest("hunter2", &[other]), "{other}");
    }
}

mod upstream_url {
    use super::*;

    fn parse(url: &str) -> Upstream {
        Upstream::parse(url).unwrap_or_else(|fault| panic!("{url}: {}", fault.what))
    }

    fn fault(url: &str) -> String {
        let fault = Upstream::parse(url).expect_err(url);
        format!("{}: {}", fault.what, fault.remedy)
    }

    #[test]
    fn several_hosts_and_their_choice_are_libpqs() {
        let upstream = parse(
            "postgresql://app:p%40ss@one:5433,two:5434/shop?target_session_attrs=read-write&connect_timeout=2",
        );
        assert_eq!(
            upstream.addresses().collect::<Vec<_>>(),
            [(&Host::Tcp("one".into()), 5433), (&Host::Tcp("two".into()), 5434)]
        );
        let postgres = &upstream.postgres;
        assert_eq!(postgres.get_user(), Some("app"));
        assert_eq!(postgres.get_password(), Some(&b"p@ss"[..]));
        assert_eq!(postgres.get_dbname(), Some("shop"));
        assert_eq!(postgres.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
        assert_eq!(postgres.get_connect_timeout(), Some(&Duration::from_secs(2)));
    }

    #[test]
    fn without_options_it_prefers_tls_and_waits_five_seconds() {
        let upstream = parse("postgres://app@db/shop");
        assert_eq!(upstream.tls, UpstreamTls { mode: TlsMode::Prefer, root_cert: None, own_cert: None });
        assert_eq!(upstream.postgres.get_ssl_mode(), SslMode::Prefer);
        assert_eq!(upstream.postgres.get_connect_timeout(), Some(&Duration::from_secs(5)));
    }

    #[test]
    fn tls_options_are_taken_off_and_obeyed() {
        for (mode, postgres) in [
            (TlsMode::Disable, SslMode::Disable),
            (TlsMode::Prefer, SslMode::Prefer),
            (TlsMode::Require, SslMode::Require),
            (TlsMode::VerifyCa, SslMode::Require),
            (TlsMode::VerifyFull, SslMode::Require),
        ] {
            let upstream = parse(&format!("postgres://db?sslmode={mode}&sslrootcert=%2Fetc%2Fmy%20ca.pem"));
            assert_eq!(
                upstream.tls,
                UpstreamTls { mode, root_cert: Some("/etc/my ca.pem".into()), own_cert: None }
            );
            assert_eq!(upstream.postgres.get_ssl_mode(), postgres);
        }
    }

    #[test]
    fn a_certificate_of_ones_own_has_a_key_and_allow_is_refused_by_name() {
        let own = parse("postgres://db?sslmode=require&sslcert=/etc/me.crt&sslkey=/etc/me.key").tls.own_cert;
        assert_eq!(own, Some(("/etc/me.crt".into(), "/etc/me.key".into())));
        assert!(fault("postgres://db?sslcert=/etc/me.crt").contains("one of sslcert and sslkey"));
        let said = fault("postgres://db?sslmode=allow");
        assert!(said.contains("sslmode=allow, which is not supported") && said.contains("prefer"), "{said}");
    }

    #[test]
    fn the_systems_authorities_demand_full_verification() {
        let full = UpstreamTls { mode: TlsMode::VerifyFull, root_cert: None, own_cert: None };
        assert_eq!(parse("postgres://db?sslrootcert=system").tls, full);
        assert_eq!(parse("postgres://db?sslrootcert=system&sslmode=verify-full").tls, full);
        assert!(fault("postgres://db?sslrootcert=system&sslmode=require").contains("sslrootcert=system"));
    }

    #[test]
    fn unix_sockets_speak_no_tls() {
        for url in [
            "postgres://%2Frun%2Fpostgresql/shop?sslmode=require",
            "postgres:///shop?host=/run/postgresql&sslmode=verify-full",
        ] {
            let upstream = parse(url);
            assert_eq!(upstream.tls.mode, TlsMode::Disable, "{url}");
            assert_eq!(upstream.postgres.get_ssl_mode(), SslMode::Disable, "{url}");
        }
    }

    #[test]
    fn an_at_sign_in_an_option_is_not_the_end_of_a_password() {
        let upstream = parse("postgres://db/shop?application_name=me@here");
        assert_eq!(upstream.postgres.get_application_name(), Some("me@here"));
        assert_eq!(upstream.postgres.get_user(), None);
    }

    #[test]
    fn the_password_is_never_shown() {
        for (url, shown) in [
            ("postgres://app:hunter2@db/shop", "postgres://app:***@db/shop"),
            ("postgresql://app@db/shop", "postgres://app@db/shop"),
            ("postgres://db/shop?password=hunter2&user=app", "postgres://db/shop?password=***&user=app"),
            (
                "postgres://app:hunter2@db?sslmode=require&password=hunter2",
                "postgres://app:***@db?sslmode=require&password=***",
            ),
        ] {
            let upstream = parse(url);
            assert_eq!(upstream.redacted(), shown);
            assert!(!format!("{upstream:?}").contains("hunter2"), "{upstream:?}");
        }
    }

    #[test]
    fn no_fault_repeats_what_may_be_a_password() {
        for url in [
            "hunter2",
            "host=db password=hunter2",
            "http://app:hunter2@db",
            "postgres://app:hunter2@hunter2@db/shop",
            "postgres://app:hun/hunter2@db/shop",
            "postgres://app:hun?hunter2@db/shop",
            "postgres://app:hun?hunter2=x@db/shop",
            "postgres://app:hunter2",
            "postgres://app@db:hunter2/shop",
            "postgres://app:hunter2@db?sslmode=hunter2",
            "postgres://app:hunter2@/shop",
        ] {
            assert!(!fault(url).contains("hunter2"), "{}", fault(url));
        }
    }

    #[test]
    fn what_is_not_known_is_said() {
        assert!(fault("postgres://db?ssl_mode=require").contains("did you mean sslmode?"));
        assert!(fault("postgres://db?sslmode=maybe").contains("choose one of disable, prefer"));
        assert!(fault("postgres://db?sslmode").contains("without a value"));
        assert!(fault("postgres://db?sslnegotiation=direct").contains("sslnegotiation=direct"));
        assert!(fault("postgres://db:x/").contains("port"));
        assert!(fault("postgres:///shop").contains("names no host"));
        assert!(fault("postgres://one,two,three/shop?port=1,2").contains("ports"));
        assert!(fault("postgres://db?target_session_attrs=master").contains("target_session_attrs"));
    }
}
