//! `coordinator top`: a run on the whole terminal.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossterm::event::{self, Event, KeyCode, KeyModifiers};
use dashboard::{AskError, Curves, Status, Watched, status_lines};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Block, Chart, Dataset, Gauge, GraphType, Paragraph, Wrap};

use super::TopArguments;
use super::status::watched;
use crate::exit::Ending;

/// Points of a curve: more than a terminal has columns, since each cell shows two.
const POINTS: usize = 400;

/// At the foot of the terminal.
const GOES_ON: &str = "q leaves; the run goes on";
const GONE: &str = "no coordinator answers any more, this is how the run stood; q leaves";

/// What the terminal shows.
struct Seen {
    status: Status,
    curves: Curves,
    foot: &'static str,
}

/// Shows the run until a key says that it is enough. The run does not notice.
pub(super) fn run(arguments: &TopArguments) -> Result<Ending> {
    let mut watched = watched(&arguments.whom)?;
    // What cannot be seen at all is said on the ordinary screen.
    let mut seen = look(&mut watched)?;
    let mut terminal =
        ratatui::try_init().context("use this terminal; where there is none, see `coordinator status`")?;
    let interval = Duration::from_secs(arguments.interval_s);
    let outcome = loop {
        if let Err(error) = terminal.draw(|frame| draw(frame, &seen)) {
            break Err(error.into());
        }
        match is_enough(interval) {
            Ok(true) => break Ok(Ending::Done),
            Ok(false) => {}
            Err(error) => break Err(error),
        }
        seen = match look(&mut watched) {
            Ok(news) => news,
            // Where a dashboard was, another coordinator may take charge of the run.
            Err(AskError::NoAnswer { .. }) => Seen { foot: GONE, ..seen },
            Err(error) => break Err(error.into()),
        };
    };
    ratatui::restore();
    outcome
}

fn look(watched: &mut Watched) -> Result<Seen, AskError> {
    let (status, asked) = watched.look()?;
    let curves = watched.curves(&asked, POINTS)?;
    Ok(Seen { status, curves, foot: GOES_ON })
}

/// Whether a key was pressed within `interval` that ends this. When the size of the terminal changes, there is something
/// to be drawn.
fn is_enough(interval: Duration) -> Result<bool> {
    let until = Instant::now() + interval;
    while event::poll(until.saturating_duration_since(Instant::now())).context("wait for a key")? {
        match event::read().context("read a key")? {
            Event::Key(key) if matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) => return Ok(true),
            Event::Key(key) if key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL => {
                return Ok(true);
            }
            Event::Resize(..) => return Ok(false),
            _ => {}
        }
    }
    Ok(false)
}

fn draw(frame: &mut Frame, seen: &Seen) {
    let Seen { status, curves, foot: words } = seen;
    let [head, bar, charts, rest, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Percentage(45),
        Constraint::Min(4),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let mut lines = status_lines(status).into_iter();
    let headline = lines.next().unwrap_or_default();
    frame.render_widget(Line::styled(headline, Style::new().add_modifier(Modifier::BOLD)), head);
    let share = status.step as f64 / status.total_steps.unwrap_or(0).max(1) as f64;
    let gauge = Gauge::default()
        .ratio(share.clamp(0.0, 1.0))
        // The headline says it.
        .label("")
        .gauge_style(Style::new().fg(Color::Cyan))
        .use_unicode(true);
    frame.render_widget(gauge, bar);
    let [left, right] = Layout::horizontal([Constraint::Percentage(50); 2]).areas(charts);
    chart(frame, left, "loss", &curves.loss, [-1.0, 0.0]);
    chart(frame, right, "collapse level", &curves.collapse_level, [0.0, 1.0]);
    let text: Vec<Line> = lines.map(Line::from).collect();
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: false }), rest);
    frame.render_widget(Line::styled(*words, Style::new().add_modifier(Modifier::DIM)), foot);
}

/// A curve over all steps. `usual` is always in sight.
fn chart(frame: &mut Frame, area: Rect, name: &str, points: &[(f64, f64)], usual: [f64; 2]) {
    let values = || points.iter().map(|(_, value)| *value);
    let bounds = [values().fold(usual[0], f64::min), values().fold(usual[1], f64::max)];
    let steps = [points.first().map_or(0.0, |first| first.0), points.last().map_or(1.0, |last| last.0)];
    let data = Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .style(Style::new().fg(Color::Cyan))
        .data(points);
    let labels =
        |bounds: [f64; 2], decimals: usize| bounds.map(|bound| Line::from(format!("{bound:.decimals$}")));
    let chart = Chart::new(vec![data])
        .block(Block::bordered().title(format!(" {name} ")))
        .x_axis(Axis::default().bounds(steps).labels(labels(steps, 0)))
        .y_axis(Axis::default().bounds(bounds).labels(labels(bounds, 2)));
    frame.render_widget(chart, area);
}

#[cfg(test)]
mod tests {
    use dashboard::Credentials;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    /// What is on a terminal of this size.
    fn drawn(width: u16, height: u16, foot: &'static str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        std::fs::write(path.join("recipe.toml"), recipe::QUICKSTART).unwrap();
        let seconds =
            r#"{"data":0.0,"forward":0.1,"backward":0.2,"all_reduce":0.1,"update":0.01,"step":0.5}"#;
        let step = |step: u64| {
            format!(
                r#"{{"step":{step},"epoch":1,"loss":{},"collapse_level":0.9,"learning_rate":0.1,"gradient_norm":1.0,"images_per_second":256.0,"seconds":{seconds},"generation":1}}"#,
                -0.01 * step as f64
            )
        };
        let metrics: String = (1..=48).map(|number| step(number) + "\n").collect();
        std::fs::write(path.join("metrics.jsonl"), metrics).unwrap();
        let seen = look(&mut Watched::of_run(path, Credentials::default())).unwrap();
        assert_eq!((seen.curves.loss.len(), seen.curves.loss[47]), (48, (48.0, -0.48)));
        let seen = Seen { foot, ..seen };
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &seen)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn a_terminal_shows_where_the_run_stands() {
        let shown = drawn(100, 30, GOES_ON);
        for phrase in
            ["run quickstart", "step 48 of 480", " loss ", " collapse level ", "256 images/s", "q leaves"]
        {
            assert!(shown.contains(phrase), "{phrase:?} is not in\n{shown}");
        }
        assert!(
            shown.chars().any(|dot| ('\u{2801}'..='\u{28ff}').contains(&dot)),
            "there is a curve\n{shown}"
        );
    }

    #[test]
    fn a_terminal_keeps_what_was_seen_of_a_run_that_is_gone() {
        let shown = drawn(100, 30, GONE);
        assert!(shown.contains("step 48 of 480") && shown.contains(GONE), "{shown}");
    }

    #[test]
    fn a_terminal_may_be_as_small_as_it_likes() {
        for (width, height) in [(1, 1), (10, 3), (20, 8), (400, 2)] {
            drawn(width, height, GONE);
        }
    }
}
