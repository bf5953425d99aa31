//! Where `tracing` events go: all to a log file, warnings to the person too.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, fmt};

use crate::display::Screen;

/// A log file that is opened later than the first event: which folder it lies in is known only then.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogFile(Arc<OnceLock<File>>);

impl LogFile {
    /// From now on events are written to the end of `path`.
    pub(crate) fn open(&self, path: &Path) -> Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.with_context(|| format!("open the log {}", path.display()))?;
        // A second file would be a second run of the same program, which there is not.
        let _ = self.0.set(file);
        Ok(())
    }
}

/// Events for a person go to the screen from WARN on, and to the log file as `RUST_LOG` says (INFO if it does
/// not).
pub(crate) fn start(screen: &Screen) -> LogFile {
    let file = LogFile::default();
    let for_file = fmt::layer().with_ansi(false).with_writer(file.clone()).with_filter(filter());
    let for_person = fmt::layer()
        .without_time()
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(screen.clone())
        .with_filter(LevelFilter::from_level(Level::WARN));
    tracing_subscriber::registry().with(for_file).with(for_person).init();
    file
}

/// All events go to standard error, which a coordinator that started this process keeps in a file.
pub(crate) fn start_plain() {
    tracing_subscriber::registry()
        .with(
            fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).with_filter(filter()),
        )
        .init();
}

fn filter() -> EnvFilter {
    EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy()
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = &'a LogFile;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

impl Write for &LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.get() {
            Some(mut file) => file.write(bytes),
            None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
