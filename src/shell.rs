//! What a shell and `man` are told of the command line. It is made from the definitions in [`crate::args`].

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;
use pgleash_sidecar::config::keys::KEYS;

use crate::args::{Cli, Shell};

/// Writes a page for pgleash and for each of its commands into `directory`, which is made if it is missing.
///
/// # Errors
/// The directory or a page cannot be written.
pub(crate) fn man_pages(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut command = Cli::command();
    // The keys follow this help. Its lines are wrapped for a terminal; a page wraps its own.
    let told: Vec<(String, String)> = command
        .get_subcommands()
        .filter_map(|sub| Some((sub.get_name().to_owned(), sub.get_after_long_help()?.to_string())))
        .collect();
    for (name, _) in &told {
        command = command.mut_subcommand(name, |sub| sub.after_long_help(None::<&'static str>));
    }
    clap_mangen::generate_to(command, directory)?;
    for (name, help) in told {
        let path = directory.join(format!("pgleash-{name}.1"));
        let page = fs::read_to_string(&path)?;
        let how = help.split("\n\n").next().unwrap_or_default();
        fs::write(&path, page + &configuration(how))?;
    }
    Ok(())
}

/// The section of a page that tells `how` keys are set, and of each key.
fn configuration(how: &str) -> String {
    let mut roff = format!(".SH CONFIGURATION\n{}\n", escaped(how));
    for key in KEYS {
        let default = key.default.map_or_else(|| "required".into(), |default| format!("default {default}"));
        let (name, default) = (escaped(key.name), escaped(&default));
        let (doc, allowed) = (escaped(key.doc), escaped(&key.allowed()));
        let _ = writeln!(roff, ".TP\n\\fB{name}\\fR ({default})\n{doc}\n.br\nAllowed: {allowed}");
    }
    roff
}

/// Text that roff takes for nothing else: a backslash is itself, and no line begins like a request.
fn escaped(text: &str) -> String {
    let plain = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = plain.lines().map(|line| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The script that `shell` reads to complete a command line of pgleash.
pub(crate) fn completions(shell: Shell) -> String {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pgleash", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_request_to_roff() {
        assert_eq!(escaped(".SH it\n'tis a-b\\c"), "\\&.SH it\n\\&'tis a\\-b\\ec");
    }
}
