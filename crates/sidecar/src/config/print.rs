//! The table of keys, as people read it.

use std::fmt::Write;

use crate::config::field::Field;
use crate::config::keys::{KEYS, Key};
use crate::config::{Config, Loaded};

/// What stands for `upstream.url` in the example; no server has this name.
const EXAMPLE_URL: &str = "postgres://app@db.internal:5432/app?sslmode=verify-full";

/// `pgleash run --help`: every key with its default, its range and what it is for.
pub fn help() -> String {
    let mut text = String::from(
        "Configuration is read from pgleash.toml, then from PGLEASH_* variables, then from flags; the later \
         wins, key by key.\nA variable is named PGLEASH_ and the key, with _ for its dot: pool.size is \
         PGLEASH_POOL_SIZE.\n\nKeys:\n",
    );
    for key in KEYS {
        let default = key.default.map_or_else(|| "required".into(), |default| format!("default {default}"));
        let _ = writeln!(text, "  {} ({default})", key.name);
        for line in
            wrapped(key.doc, 90).into_iter().chain(wrapped(&format!("Allowed: {}", key.allowed()), 90))
        {
            let _ = writeln!(text, "      {line}");
        }
    }
    text
}

/// `pgleash.example.toml`: a file that sets every key to its default, with all there is to know of it.
pub fn example() -> String {
    let mut text = String::from(
        "# Every key of pgleash.toml, with its default. Only upstream.url is required.\n\
         # A PGLEASH_* variable wins over this file, and a flag wins over both.\n\
         # This file is made from the table in src/config/keys.rs.\n",
    );
    let mut section = "";
    for key in KEYS {
        let (own_section, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if own_section != section {
            section = own_section;
            let _ = write!(text, "\n[{section}]");
        }
        text.push('\n');
        for line in
            wrapped(key.doc, 96).into_iter().chain(wrapped(&format!("Allowed: {}", key.allowed()), 96))
        {
            let _ = writeln!(text, "# {line}");
        }
        let _ = writeln!(text, "# {}", ways(key));
        let value = key.default.unwrap_or(EXAMPLE_URL);
        let _ = match key.field {
            Field::Count { .. } => writeln!(text, "{name} = {value}"),
            _ => writeln!(text, "{name} = {value:?}"),
        };
    }
    text
}

/// `pgleash check --print`: the effective values, without secrets, and where each came from.
pub fn effective(loaded: &Loaded) -> String {
    let row = |key: &Key| (key.name, key.field.show(&loaded.config), loaded.origin(key.name).to_string());
    let rows: Vec<_> = KEYS.iter().map(row).collect();
    let names = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or_default();
    let values = rows.iter().map(|(_, value, _)| value.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (name, value, origin) in rows {
        let _ = writeln!(text, "{name:names$}  {value:values$}  {origin}");
    }
    text
}

/// Twelve hexadecimal digits that tell one configuration from another by what [`effective`] prints of it: whoever has
/// the same ones has the same values, but for secrets.
pub fn digest(config: &Config) -> String {
    let mut text = String::new();
    for key in KEYS {
        let _ = writeln!(text, "{} = {}", key.name, key.field.show(config));
    }
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(6).fold(String::new(), |mut digits, byte| {
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

fn ways(key: &Key) -> String {
    match key.flag {
        Some(flag) => format!("Variable: {}. Flag: {flag}", key.variable()),
        None => format!("Variable: {}", key.variable()),
    }
}

fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let full = lines.last().is_some_and(|line| !line.is_empty() && line.len() + 1 + word.len() > width);
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
