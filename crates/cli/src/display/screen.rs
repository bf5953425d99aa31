//! The terminal: a bar at its bottom and lines above it, or only lines where it is none.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::fmt::MakeWriter;

/// Where lines and the bar go. Clones are the same screen.
#[derive(Clone)]
pub(crate) struct Screen {
    bar: Option<ProgressBar>,
    write_line: Arc<dyn Fn(&str) + Send + Sync>,
}

/// Redrawn often enough to look alive, seldom enough to cost nothing.
const DRAWS_PER_SECOND: u8 = 8;

impl Screen {
    /// Standard error, with a bar if it is a terminal.
    pub(crate) fn stderr() -> Screen {
        let bar = io::stderr().is_terminal().then(|| {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND))
        });
        // A person who closed the terminal needs no line.
        let write_line = Arc::new(|line: &str| drop(writeln!(io::stderr(), "{line}")));
        Screen { bar, write_line }
    }

    /// No terminal: lines only, each handed to `write_line`.
    #[cfg(test)]
    pub(crate) fn plain(write_line: impl Fn(&str) + Send + Sync + 'static) -> Screen {
        Screen { bar: None, write_line: Arc::new(write_line) }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.bar.is_some()
    }

    /// A line that stays.
    pub(crate) fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| (self.write_line)(line)),
            None => (self.write_line)(line),
        }
    }

    /// Moves the bar, and shows `message` beside it. Without a terminal it does nothing.
    pub(crate) fn position(&self, done: u64, total: u64, message: String) {
        self.show("{bar:24} {pos}/{len} {wide_msg}", done, total, message);
    }

    /// The same for an action whose end only its pace tells: also shows how long the rest takes.
    pub(crate) fn action(&self, done: u64, total: u64, message: String) {
        self.show("{bar:24} {percent}% {eta} left  {wide_msg}", done, total, message);
    }

    fn show(&self, template: &'static str, done: u64, total: u64, message: String) {
        let Some(bar) = &self.bar else { return };
        // Who begins anew, or at less, does something else now, with a pace of its own.
        if bar.is_finished() || done < bar.position() {
            bar.reset();
        }
        if bar.length() != Some(total) {
            bar.set_length(total);
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.expect("the template is a constant and correct"));
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        bar.set_message(message);
        bar.set_position(done);
    }

    /// Removes the bar; the next position brings it back.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl MakeWriter<'_> for Screen {
    type Writer = Screen;

    fn make_writer(&self) -> Screen {
        self.clone()
    }
}

impl Write for Screen {
    /// `tracing` writes one event at a time, with its line end.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line(String::from_utf8_lossy(bytes).trim_end());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
