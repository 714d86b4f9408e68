//! The command to type next.

use pgleash_core::Action;
use pgleash_sidecar::config::keys::find;
use pgleash_sidecar::config::{Flag, Loaded, Origin, Sources};

/// The options that a check was given, to be typed again. A URL is not repeated: it may hold a password.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    options: String,
    observes_first: bool,
}

impl Given {
    /// Of `sources`, which were loaded into `loaded`.
    pub(crate) fn of(sources: &Sources, loaded: &Loaded) -> Self {
        let mut options = String::new();
        let mut add = |option: &str, value: &str| {
            options.push_str(&format!(" {option} {}", quoted(value)));
        };
        if let Some(file) = &sources.file {
            add("--config", &file.display().to_string());
        }
        for flag in &sources.flags {
            match flag {
                Flag::Named("--upstream", _) => add("--upstream", "URL"),
                Flag::Named(option, value) => add(option, value),
                Flag::Set(setting) => add("--set", &without_secret(setting)),
            }
        }
        let chosen = !matches!(loaded.origin("leaks.action"), Origin::Default);
        Given { options, observes_first: !chosen && loaded.config.policy.action == Action::Reclaim }
    }

    /// Checks again.
    pub(super) fn again(&self) -> String {
        format!("pgleash check{}", self.options)
    }

    /// Starts it; if nobody chose what is done about leaks, first without touching them.
    pub(super) fn start(&self) -> String {
        let observe = if self.observes_first { " --set leaks.action=observe" } else { "" };
        format!("pgleash run{}{observe}", self.options)
    }
}

/// Of a key that holds a secret only the name is repeated.
fn without_secret(setting: &str) -> String {
    let (name, _) = setting.split_once('=').unwrap_or((setting, ""));
    let name = name.trim();
    let is_secret = find(name).is_some_and(|key| key.secret);
    if is_secret { format!("{name}=VALUE") } else { setting.to_owned() }
}

/// As one word of a shell.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,%@+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(flags: Vec<Flag>) -> Given {
        let url = ("PGLEASH_UPSTREAM_URL".into(), "postgres://app@db".into());
        let sources = Sources { file: None, env: vec![url], flags };
        let loaded = pgleash_sidecar::config::load(&sources).unwrap();
        Given::of(&sources, &loaded)
    }

    #[test]
    fn what_was_typed_is_typed_again() {
        let listen = Flag::Named("--listen", "127.0.0.1:7000".into());
        let rule = Flag::Set("pool.size=40".into());
        let given = given(vec![rule, listen]);
        assert_eq!(given.again(), "pgleash check --set pool.size=40 --listen 127.0.0.1:7000");
        assert_eq!(
            given.start(),
            "pgleash run --set pool.size=40 --listen 127.0.0.1:7000 --set leaks.action=observe"
        );
    }

    #[test]
    fn a_choice_of_action_is_respected() {
        let given = given(vec![Flag::Set("leaks.action=reclaim".into())]);
        assert_eq!(given.start(), "pgleash run --set leaks.action=reclaim");
    }

    #[test]
    fn a_url_is_not_repeated() {
        let flag = Flag::Named("--upstream", "postgres://app:hunter2@db".into());
        assert_eq!(given(vec![flag]).again(), "pgleash check --upstream URL");
        let setting = Flag::Set("upstream.url=postgres://app:hunter2@db".into());
        assert_eq!(given(vec![setting]).again(), "pgleash check --set upstream.url=VALUE");
        let hook = Flag::Set(" events.slack=https://hooks.example/hunter2".into());
        assert_eq!(given(vec![hook]).again(), "pgleash check --set events.slack=VALUE");
    }

    #[test]
    fn a_word_with_a_space_is_quoted() {
        assert_eq!(quoted("a/b.toml"), "a/b.toml");
        assert_eq!(quoted("it's here"), r"'it'\''s here'");
    }
}
