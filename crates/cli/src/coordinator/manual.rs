//! What shells complete, and the manual pages: both made from the arguments as they are declared.

use std::fs;
use std::io;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory, ValueEnum};

use super::{Arguments, CompletionsArguments, ManArguments};
use crate::evaluate::EvaluateArguments;
use crate::exit::{Ending, answer};
use crate::worker::WorkerArguments;

/// A shell that completes arguments.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Shell {
    /// `source <(coordinator completions bash)`
    Bash,
    /// Into a file _coordinator of a folder in $fpath
    Zsh,
    /// Into ~/.config/fish/completions/coordinator.fish
    Fish,
}

/// The three programs.
fn programs() -> [Command; 3] {
    [Arguments::command(), WorkerArguments::command(), EvaluateArguments::command()]
}

/// Prints the completions of all three programs.
pub(super) fn completions(arguments: &CompletionsArguments) -> Result<Ending> {
    use clap_complete::Shell as Target;
    let shell = match arguments.shell {
        Shell::Bash => Target::Bash,
        Shell::Zsh => Target::Zsh,
        Shell::Fish => Target::Fish,
    };
    let texts = programs().map(|mut program| {
        let name = program.get_name().to_string();
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut program, name, &mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    answer(&texts.join("\n"));
    Ok(Ending::Done)
}

/// Writes a page for each program and each of its subcommands.
pub(super) fn pages(arguments: &ManArguments) -> Result<Ending> {
    let folder = &arguments.folder;
    let write = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        programs().into_iter().try_for_each(|program| clap_mangen::generate_to(program, folder))
    };
    write().with_context(|| format!("write manual pages into {}", folder.display()))?;
    let folder = folder.display();
    answer(&format!("the pages are in {folder}: `man {folder}/coordinator.1`"));
    Ok(Ending::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_declared_without_contradiction() {
        programs().into_iter().for_each(Command::debug_assert);
    }

    #[test]
    fn every_program_and_subcommand_has_its_page() {
        let folder = tempfile::tempdir().unwrap();
        pages(&ManArguments { folder: folder.path().join("man") }).unwrap();
        for name in
            ["coordinator", "coordinator-status", "coordinator-fetch", "worker", "evaluate", "evaluate-knn"]
        {
            let page = fs::read_to_string(folder.path().join("man").join(format!("{name}.1"))).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{name}");
        }
    }

    #[test]
    fn every_shell_learns_the_programs_arguments() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "coordinator", &mut text);
            let text = String::from_utf8(text).unwrap();
            for word in ["no-dashboard", "status", "resume"] {
                assert!(text.contains(word), "{shell} lacks {word}");
            }
        }
    }
}
