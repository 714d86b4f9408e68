//! The three layers, read into a list of assignments, the strongest last.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::config::field::Given;
use crate::config::keys;
use crate::config::keys::{KEYS, Key};
use crate::config::problem::{Origin, Problem};

/// The variable that names the configuration file.
pub const FILE_VARIABLE: &str = "PGLEASH_CONFIG";

/// Read if it is there and no other file is named.
const DEFAULT_FILE: &str = "pgleash.toml";

/// Where configuration may come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// `--config`.
    pub file: Option<PathBuf>,
    /// The environment; only `PGLEASH_*` is looked at.
    pub env: Vec<(OsString, OsString)>,
    /// Flags that set a key, in their order.
    pub flags: Vec<Flag>,
}

/// A flag that sets a key.
#[derive(Clone, Debug)]
pub enum Flag {
    /// `--set`, with its argument, which should be `key=value`.
    Set(String),
    /// The flag of one key, as it is typed, and its value.
    Named(&'static str, String),
}

/// What the layers say.
#[derive(Default)]
pub(super) struct Layers {
    /// In the order of the layers; what is no assignment is a problem.
    pub(super) entries: Vec<Result<Assignment, Problem>>,
    /// A file could not be read whole.
    pub(super) incomplete: bool,
}

/// A value for a key.
pub(super) struct Assignment {
    pub(super) key: &'static Key,
    pub(super) given: Given,
    pub(super) origin: Origin,
}

/// Reads every layer.
pub(super) fn read(sources: &Sources) -> Layers {
    let mut layers = Layers::default();
    if let Some((path, origin)) = choose_file(sources) {
        layers.read_file(&path, &origin);
    }
    layers.read_env(&sources.env);
    layers.read_flags(&sources.flags);
    layers
}

/// The file to read, and who named it.
pub(super) fn choose_file(sources: &Sources) -> Option<(PathBuf, Origin)> {
    if let Some(path) = &sources.file {
        return Some((path.clone(), Origin::Flag("--config".into())));
    }
    if let Some((_, path)) = sources.env.iter().find(|(name, _)| name == FILE_VARIABLE) {
        return Some((path.into(), Origin::Env(FILE_VARIABLE.into())));
    }
    let path = PathBuf::from(DEFAULT_FILE);
    path.exists().then(|| (path.clone(), Origin::File { path, line: 0 }))
}

impl Layers {
    fn read_file(&mut self, path: &Path, named_by: &Origin) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.read_toml(path, &text),
            Err(error) => {
                self.incomplete = true;
                let what = format!("{} cannot be read: {error}", path.display());
                self.refuse(Problem::at(named_by.clone(), what, "name a file that exists and may be read"));
            }
        }
    }

    fn read_toml(&mut self, path: &Path, text: &str) {
        let at = |offset: usize| {
            let line = 1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
            Origin::File { path: path.to_owned(), line }
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut broken = Vec::new();
        for error in errors {
            self.incomplete = true;
            let origin = at(error.span().map_or(0, |span| span.start));
            broken.push(origin.clone());
            let remedy = "correct the line; strings, addresses and durations are written in quotes";
            self.refuse(Problem::at(origin, format!("not TOML: {}", error.message()), remedy));
        }
        let mut leaves = Vec::new();
        flatten("", table.get_ref(), &mut leaves);
        leaves.sort_by_key(|leaf| leaf.offset);
        for leaf in leaves {
            let origin = at(leaf.offset);
            // What is left of a broken line is not what was meant.
            if !broken.contains(&origin) {
                self.assign(&leaf.name, leaf.given, origin);
            }
        }
    }

    fn read_env(&mut self, env: &[(OsString, OsString)]) {
        let is_ours = |(name, _): &&(OsString, OsString)| name.to_string_lossy().starts_with("PGLEASH_");
        let mut ours: Vec<_> = env.iter().filter(is_ours).collect();
        ours.sort();
        for (name, value) in ours {
            let name = name.to_string_lossy();
            let origin = Origin::Env(name.to_string());
            let Some(value) = value.to_str() else {
                self.refuse(Problem::at(origin, "is not UTF-8", "correct its encoding"));
                continue;
            };
            if name == FILE_VARIABLE || is_service_link(&name, value) {
                continue;
            }
            match KEYS.iter().find(|key| key.variable() == name) {
                Some(key) => self.give(key, Given::Untyped(value.into()), origin),
                None => self.refuse(unknown_variable(&name, origin)),
            }
        }
    }

    fn read_flags(&mut self, flags: &[Flag]) {
        for flag in flags {
            match flag {
                Flag::Named(flag, value) => {
                    let origin = Origin::Flag((*flag).into());
                    match KEYS.iter().find(|key| key.flag == Some(flag)) {
                        Some(key) => self.give(key, Given::Untyped(value.clone()), origin),
                        None => self.refuse(unknown_key(flag, origin)),
                    }
                }
                Flag::Set(pair) => match pair.split_once('=') {
                    Some((name, value)) => {
                        let origin = Origin::Flag(format!("--set {}", name.trim()));
                        self.assign(name.trim(), Given::Untyped(value.into()), origin);
                    }
                    None => self.refuse(Problem::at(
                        Origin::Flag("--set".into()),
                        "has no = in its argument",
                        "write it as --set key=value, such as --set pool.size=40",
                    )),
                },
            }
        }
    }

    fn assign(&mut self, name: &str, given: Given, origin: Origin) {
        match keys::find(name) {
            Some(key) => self.give(key, given, origin),
            None => self.refuse(unknown_key(name, origin)),
        }
    }

    fn give(&mut self, key: &'static Key, given: Given, origin: Origin) {
        self.entries.push(Ok(Assignment { key, given, origin }));
    }

    fn refuse(&mut self, problem: Problem) {
        self.entries.push(Err(problem));
    }
}

/// A value of the file, with its dotted name.
struct Leaf {
    name: String,
    given: Given,
    offset: usize,
}

fn flatten(prefix: &str, table: &DeTable<'_>, leaves: &mut Vec<Leaf>) {
    for (key, value) in table.iter() {
        let name =
            if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        let given = match value.get_ref() {
            DeValue::Table(inner) if inner.is_empty() && is_section(&name) => continue,
            DeValue::Table(inner) if !inner.is_empty() => {
                flatten(&name, inner, leaves);
                continue;
            }
            DeValue::Table(_) => Given::Other("a section"),
            DeValue::String(text) => Given::Text(text.to_string()),
            DeValue::Integer(number) => {
                Given::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok())
            }
            DeValue::Float(_) => Given::Other("a number with a fraction"),
            DeValue::Boolean(_) => Given::Other("a boolean"),
            DeValue::Datetime(_) => Given::Other("a date"),
            DeValue::Array(_) => Given::Other("a list"),
        };
        leaves.push(Leaf { name, given, offset: key.span().start });
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.split_once('.').is_some_and(|(section, _)| section == name))
}

fn unknown_key(name: &str, origin: Origin) -> Problem {
    let inside = KEYS.iter().find(|key| key.name.split_once('.').is_some_and(|(section, _)| section == name));
    match inside {
        Some(key) => Problem::at(
            origin,
            format!("{name} is a section, not a key"),
            format!("set one of its keys, such as {}", key.name),
        ),
        None => {
            let nearest = nearest(name, |key| key.name.to_owned());
            Problem::at(origin, format!("no such key: {name}"), remedy_for_unknown(nearest, "it"))
        }
    }
}

fn unknown_variable(name: &str, origin: Origin) -> Problem {
    let nearest = nearest(name, Key::variable);
    Problem::at(origin, "no such variable", remedy_for_unknown(nearest, "the variable"))
}

fn remedy_for_unknown(nearest: Option<String>, it: &str) -> String {
    match nearest {
        Some(nearest) => format!("did you mean {nearest}? Otherwise remove {it}"),
        None => format!("remove {it}"),
    }
}

/// The known name that `name` was probably meant to be: alike as a whole, alike in its last part, or
/// cut short.
fn nearest(name: &str, written: impl Fn(&Key) -> String) -> Option<String> {
    const ALIKE: f64 = 0.7;
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |known: &str| {
        let whole = strsim::normalized_damerau_levenshtein(name, known);
        let part = strsim::normalized_damerau_levenshtein(&last(name), &last(known));
        let cut_short = if known.starts_with(name) && !name.is_empty() { 0.9 } else { 0.0 };
        (whole.max(part).max(cut_short), whole)
    };
    KEYS.iter()
        .map(written)
        .map(|known| (likeness(&known), known))
        .filter(|((alike, _), _)| *alike >= ALIKE)
        .max_by(|(one, _), (other, _)| one.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal))
        .map(|(_, known)| known)
}

/// Kubernetes and Docker put the addresses of other services into the environment. One that is named
/// `pgleash` or `pgleash-...` makes variables like `PGLEASH_SERVICE_HOST` and `PGLEASH_PORT_6432_TCP_ADDR`,
/// which are not meant for us.
fn is_service_link(name: &str, value: &str) -> bool {
    let after_port = |(_, rest): (&str, &str)| rest.starts_with(|first: char| first.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.split_once("_PORT_").is_some_and(after_port)
        || (name.ends_with("_PORT")
            && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme)))
}
