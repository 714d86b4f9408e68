//! What a shell and `man` are told of the command line. It is made from the definitions in [`crate::args`].

use std::fs;
use std::io;
use std::path::Path;

use clap::CommandFactory;

use crate::args::{Cli, Shell};

/// Writes a page for pgleash and for each of its commands into `directory`, which is made if it is missing.
///
/// # Errors
/// The directory or a page cannot be written.
pub(crate) fn man_pages(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    clap_mangen::generate_to(Cli::command(), directory)
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
