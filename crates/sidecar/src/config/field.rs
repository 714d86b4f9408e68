//! What a key may hold: types, ranges, and the way from text to value.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use pgleash_core::{Budget, InvalidValue, Rules};

use crate::config::units::DAY;
use crate::config::{Config, Listen, LogTarget};

/// The type of a key, its range, and its place in [`Config`].
#[allow(missing_docs, reason = "min and max are inclusive; the functions are the way in and out of Config")]
pub enum Field {
    /// A whole number.
    Count { unit: &'static str, min: usize, max: usize, at: fn(&mut Config) -> &mut usize },
    /// A duration.
    Time { min: Duration, max: Duration, at: fn(&mut Config) -> &mut Duration },
    /// One of a few words.
    Choice { of: &'static [Word], show: fn(&Config) -> &'static str },
    /// Text with a form of its own.
    Text {
        form: &'static str,
        set: fn(&mut Config, &str) -> Result<(), InvalidValue>,
        show: fn(&Config) -> String,
    },
}

impl Field {
    /// Sets it, if `given` is of the right type and within its range.
    pub(super) fn set(&self, config: &mut Config, given: &Given) -> Result<(), InvalidValue> {
        match self {
            Field::Count { min, max, at, .. } => count(given, *min, *max).map(|value| *at(config) = value),
            Field::Time { min, max, at } => {
                duration(text(given)?, *min, *max).map(|value| *at(config) = value)
            }
            Field::Choice { of, .. } => {
                let word = text(given)?;
                let (_, choose) = of.iter().find(|(choice, _)| *choice == word).ok_or_else(|| {
                    InvalidValue::new("is not one of the words that are known here", "choose one of them")
                })?;
                choose(config);
                Ok(())
            }
            Field::Text { set, .. } => set(config, text(given)?),
        }
    }

    /// The value as it would be written, with secrets replaced.
    pub fn show(&self, config: &Config) -> String {
        match self {
            Field::Count { at, .. } => at(&mut config.clone()).to_string(),
            Field::Time { at, .. } => show_duration(*at(&mut config.clone())),
            Field::Choice { show, .. } => show(config).to_owned(),
            Field::Text { show, .. } => show(config),
        }
    }
}

/// A word, and what choosing it does.
pub type Word = (&'static str, fn(&mut Config));

/// A value as a layer gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    /// From the environment or a flag, where everything is text.
    Untyped(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer; `None` if it does not fit 64 bits.
    Integer(Option<i64>),
    /// Any other TOML type, by its name.
    Other(&'static str),
}

impl Given {
    /// For an error report.
    pub(super) fn shown(&self) -> String {
        match self {
            // A URL may have been given to the wrong key.
            Given::Untyped(text) | Given::Text(text) if text.contains("://") => "(not shown)".into(),
            Given::Untyped(text) | Given::Text(text) => format!("{text:?}"),
            Given::Integer(Some(number)) => number.to_string(),
            Given::Integer(None) => "(a huge number)".into(),
            Given::Other(name) => format!("({name})"),
        }
    }
}

fn text(given: &Given) -> Result<&str, InvalidValue> {
    match given {
        Given::Untyped(text) if text.is_empty() => {
            Err(InvalidValue::new("is empty", "give it a value or unset it"))
        }
        Given::Untyped(text) | Given::Text(text) => Ok(text),
        Given::Integer(_) => Err(InvalidValue::new(
            "is a number; a string is expected",
            "write it in quotes, and a time with its unit",
        )),
        Given::Other(name) => {
            Err(InvalidValue::new(format!("is {name}; a string is expected"), "write it in quotes"))
        }
    }
}

fn count(given: &Given, min: usize, max: usize) -> Result<usize, InvalidValue> {
    let number = match given {
        Given::Untyped(text) if text.is_empty() => {
            return Err(InvalidValue::new("is empty", "give it a value or unset it"));
        }
        Given::Untyped(text) => text
            .parse::<i64>()
            .map_err(|_| InvalidValue::new("is not a whole number", "write digits only"))?,
        Given::Integer(number) => number.unwrap_or(i64::MAX),
        Given::Text(_) => {
            return Err(InvalidValue::new(
                "is a string; a whole number is expected",
                "write digits without quotes",
            ));
        }
        Given::Other(name) => {
            return Err(InvalidValue::new(
                format!("is {name}; a whole number is expected"),
                "write digits only",
            ));
        }
    };
    match usize::try_from(number) {
        Ok(number) if number > max => Err(InvalidValue::new("is too large", "choose a smaller number")),
        Ok(number) if number >= min => Ok(number),
        _ => Err(InvalidValue::new("is too small", "choose a larger number")),
    }
}

fn duration(text: &str, min: Duration, max: Duration) -> Result<Duration, InvalidValue> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(InvalidValue::new("has no unit", format!("write {text}s if seconds are meant")));
    }
    let duration = humantime::parse_duration(text)
        .map_err(|_| InvalidValue::new("is not a duration", "write a number and its unit, such as 30s"))?;
    if duration < min {
        return Err(InvalidValue::new("is too short", "choose a longer time"));
    }
    if duration > max {
        return Err(InvalidValue::new("is too long", "choose a shorter time"));
    }
    Ok(duration)
}

pub(super) fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

pub(super) fn address(text: &str) -> Result<SocketAddr, InvalidValue> {
    text.parse().map_err(|_| {
        InvalidValue::new(
            "is not an IP address and port",
            "write the address in digits, then a colon and the port",
        )
    })
}

pub(super) fn listen(text: &str) -> Result<Listen, InvalidValue> {
    /// `sun_path` of the system, less its final zero.
    const LONGEST: usize = 107;
    if !text.contains('/') {
        return Ok(Listen::Tcp(address(text)?));
    }
    if text.len() > LONGEST {
        return Err(InvalidValue::new(
            format!("is longer than the {LONGEST} bytes that the path of a Unix socket may have"),
            "choose a shorter path",
        ));
    }
    Ok(Listen::Unix(PathBuf::from(text)))
}

pub(super) fn log_target(text: &str) -> Result<LogTarget, InvalidValue> {
    match text {
        "" => Err(InvalidValue::new("is empty", "write stdout or a path")),
        "stdout" => Ok(LogTarget::Stdout),
        path => Ok(LogTarget::File(PathBuf::from(path))),
    }
}

pub(super) fn rules(text: &str) -> Result<Rules, InvalidValue> {
    Rules::parse(text).map_err(|problem| InvalidValue::new("is no list of rules", problem))
}

pub(super) fn budget(text: &str) -> Result<Budget, InvalidValue> {
    let form = || InvalidValue::new("is not a share per time", "write it as 25%/1m");
    let (share, per) = text.split_once('/').ok_or_else(form)?;
    let percent: f64 = share.strip_suffix('%').and_then(|number| number.parse().ok()).ok_or_else(form)?;
    if !(0.0..=100.0).contains(&percent) {
        return Err(InvalidValue::new("has a share outside 0% to 100%", "choose a share within it"));
    }
    let per = duration(per, Duration::from_secs(1), DAY)
        .map_err(|fault| InvalidValue::new(format!("has a time that {}", fault.what), fault.remedy))?;
    Ok(Budget { share: percent / 100.0, per })
}

pub(super) fn show_budget(budget: Budget) -> String {
    let percent = (budget.share * 1e6).round() / 1e4;
    format!("{percent}%/{}", show_duration(budget.per))
}
