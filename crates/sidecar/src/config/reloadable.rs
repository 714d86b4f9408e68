//! What may change while it runs.

use std::path::PathBuf;

use pgleash_core::Policy;

use crate::config::keys::{KEYS, Key};
use crate::config::{Config, Sources, layers};

/// Keys whose new value counts without a restart.
const ONLINE: &[&str] = &[
    "admin_hosts",
    "drain_timeout",
    "upstream.url",
    "pool.size",
    "pool.wait_timeout",
    "pool.max_clients",
    "pool.max_lifetime",
    "pool.idle_timeout",
    "leaks.action",
    "leaks.idle_in_transaction",
    "leaks.idle_session",
    "leaks.floor",
    "leaks.rules",
    "leaks.longest_hold",
    "leaks.budget",
];

/// What a configuration that was read again changes.
#[derive(Clone, Debug)]
pub struct Change {
    /// What is in force from now on.
    pub config: Config,
    /// What is different in it, as `key: old -> new`, with secrets replaced.
    pub changed: Vec<String>,
    /// Keys that differ and stay as they were.
    pub needs_restart: Vec<&'static str>,
}

impl Config {
    /// Takes over what may change while it runs.
    pub fn adopt(&self, read: &Config) -> Change {
        let differing = KEYS.iter().filter(|key| key.differs(self, read));
        let (online, fixed): (Vec<&Key>, Vec<&Key>) = differing.partition(|key| ONLINE.contains(&key.name));
        let describe =
            |key: &&Key| format!("{}: {} -> {}", key.name, key.field.show(self), key.field.show(read));
        let config = Config {
            upstream: read.upstream.clone(),
            policy: Policy { mode: self.policy.mode, ..read.policy.clone() },
            max_clients: read.max_clients,
            drain_timeout: read.drain_timeout,
            admin_hosts: read.admin_hosts.clone(),
            ..self.clone()
        };
        Change {
            config,
            changed: online.iter().map(describe).collect(),
            needs_restart: fixed.iter().map(|key| key.name).collect(),
        }
    }
}

impl Key {
    /// Whether its value is another one, also where a secret is not shown.
    fn differs(&self, one: &Config, other: &Config) -> bool {
        match self.name {
            "upstream.url" => one.upstream != other.upstream,
            "control_token" => one.control_token != other.control_token,
            "events.webhook" | "events.slack" | "events.pagerduty" | "events.grafana" => {
                one.receivers != other.receivers
            }
            _ => self.field.show(one) != self.field.show(other),
        }
    }
}

/// The configuration file that counts now, if there is one.
pub fn file_of(sources: &Sources) -> Option<PathBuf> {
    layers::choose_file(sources).map(|(path, _)| path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flag, load};

    fn config(settings: &[(&str, &str)]) -> Config {
        let with_upstream = [("upstream.url", "postgres://app:old-secret@db/app")];
        let flags = with_upstream.iter().chain(settings);
        let flags = flags.map(|(key, value)| Flag::Set(format!("{key}={value}"))).collect();
        load(&Sources { flags, ..Sources::default() }).unwrap().config
    }

    #[test]
    fn every_key_that_may_change_is_a_key_and_is_taken_over() {
        let values = [
            ("admin_hosts", "seven.test"),
            ("drain_timeout", "7s"),
            ("upstream.url", "postgres://app@elsewhere/app"),
            ("pool.size", "7"),
            ("pool.wait_timeout", "7s"),
            ("pool.max_clients", "77"),
            ("pool.max_lifetime", "7m"),
            ("pool.idle_timeout", "7m"),
            ("leaks.action", "observe"),
            ("leaks.idle_in_transaction", "7s"),
            ("leaks.idle_session", "7m"),
            ("leaks.floor", "7s"),
            ("leaks.rules", "app=batch never"),
            ("leaks.longest_hold", "7m"),
            ("leaks.budget", "7%/1m"),
        ];
        assert_eq!(values.map(|(key, _)| key), ONLINE);
        let (before, read) = (config(&[]), config(&values));
        let change = before.adopt(&read);
        assert_eq!(change.changed.len(), ONLINE.len(), "{:#?}", change.changed);
        assert!(change.needs_restart.is_empty());
        let left: Vec<_> = KEYS.iter().filter(|key| key.differs(&change.config, &read)).collect();
        assert!(left.is_empty(), "{:?}", left.iter().map(|key| key.name).collect::<Vec<_>>());
    }

    #[test]
    fn what_cannot_change_is_named_and_left() {
        let before = config(&[]);
        let change = before.adopt(&config(&[("pool.mode", "session"), ("workers", "3"), ("pool.size", "5")]));
        assert_eq!(change.needs_restart, ["workers", "pool.mode"]);
        assert_eq!(change.changed, ["pool.size: 20 -> 5"]);
        assert_eq!((change.config.workers, change.config.policy.mode), (1, before.policy.mode));
    }

    #[test]
    fn a_new_password_is_noticed_and_not_shown() {
        let change = config(&[]).adopt(&config(&[("upstream.url", "postgres://app:new-secret@db/app")]));
        assert_eq!(change.changed.len(), 1);
        assert!(!change.changed[0].contains("secret"), "{}", change.changed[0]);
    }
}
