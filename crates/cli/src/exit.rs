//! How the programs end, as documented in the README.

use std::io::{self, Write};
use std::process::ExitCode;

/// A run failed, or something that it needs is not as it must be.
const FAILED: u8 = 1;
/// A person stopped the run with Ctrl-C, as shells report it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;
/// The run was stopped with SIGTERM: 128 + SIGTERM.
const TERMINATED: u8 = 143;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All was done.
    Done,
    /// Ctrl-C: the state is saved.
    Interrupted,
    /// SIGTERM: the state is saved.
    Terminated,
}

/// Writes an answer to standard output. Where that fails, this process ends: a reader who has gone away, as `head` does,
/// needs no more of it, and what cannot be written to a file is no success.
pub(crate) fn answer(text: &str) {
    let Err(error) = writeln!(io::stdout(), "{text}") else { return };
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(0);
    }
    say(&format!("error: write the answer to standard output: {error}"));
    std::process::exit(FAILED.into());
}

/// Writes to standard error, beside what is an answer. Where nobody reads it, the exit code says enough.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The exit code, after an error was told to the person.
pub(crate) fn code(ended: anyhow::Result<Ending>) -> ExitCode {
    match ended {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Interrupted) => ExitCode::from(INTERRUPTED),
        Ok(Ending::Terminated) => ExitCode::from(TERMINATED),
        Err(error) => {
            say(&format!("error: {}", sentence(&error)));
            ExitCode::from(FAILED)
        }
    }
}

/// An error with its causes, "read checkpoint: no such file"; a cause that was told already is not told twice.
fn sentence(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told.as_str() {
        "" => cause,
        _ if told.contains(&cause) => told,
        _ => format!("{told}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn causes_are_told_once() {
        let told = |cause: &str, contexts: &[&'static str]| {
            let error = contexts.iter().fold(anyhow!(cause.to_string()), |error, context| {
                Err::<(), _>(error).context(*context).unwrap_err()
            });
            sentence(&error)
        };
        assert_eq!(told("no room", &[]), "no room");
        assert_eq!(told("no room", &["write a", "save"]), "save: write a: no room");
        assert_eq!(told("no room", &["cannot write a: no room", "save"]), "save: cannot write a: no room");
    }
}
