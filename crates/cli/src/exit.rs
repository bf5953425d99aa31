//! How the programs end, as documented in the README.

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

/// The exit code, after an error was told to the person.
pub(crate) fn code(ended: anyhow::Result<Ending>) -> ExitCode {
    match ended {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Interrupted) => ExitCode::from(INTERRUPTED),
        Ok(Ending::Terminated) => ExitCode::from(TERMINATED),
        Err(error) => {
            // With all its causes: "read checkpoint: no such file".
            eprintln!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}
