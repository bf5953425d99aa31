//! The live view of a run: a page, numbers for Prometheus, spans for OpenTelemetry, and a status for the command line.
//!
//! It looks at a run and cannot change it: everything it shows is read from the files of the run directory, which are
//! what survives a coordinator, or told by [`Observer`]; all it can do is send an [`Action`] to whoever listens.
//!
//! - `server.rs`, `answers.rs`: HTTP on hyper, as tonic uses it; `access.rs`, `neighbours.rs`: who may look and act
//! - `record.rs`: what the files tell, read as they grow (`lines.rs`): `metrics.rs`, `history.rs` (all steps in a
//!   bounded memory), `timeline.rs`, `cards.rs`
//! - `live.rs`: what the control loop tells
//! - `status.rs`, `health.rs`, `rates.rs`: where the run stands; `words.rs`, `status_lines.rs`: in plain lines
//! - `page/`, `events.rs`: what a browser shows; `prometheus.rs`: what Prometheus fetches
//! - `trace.rs`: the last steps of all workers, piece by piece, on one clock (`clocks.rs`)
//! - `open_telemetry/`: what happens as spans, for a collector that somebody names
//! - `watched.rs`: a run that is looked at from elsewhere, by its coordinator (`ask.rs`) or its files; `address.rs`: whom to
//!   ask, and who is shown the token

mod access;
mod action;
mod address;
mod answers;
mod ask;
mod cards;
mod clocks;
mod events;
mod health;
mod history;
mod lines;
mod live;
mod metrics;
mod neighbours;
mod open_telemetry;
mod page;
mod prometheus;
mod rates;
mod record;
mod server;
mod site;
mod status;
mod status_lines;
mod timeline;
mod trace;
mod watched;
mod words;

pub use action::Action;
pub use address::{Address, Credentials};
pub use ask::{AskError, act};
pub use health::{Health, Judgement};
pub use history::Curves;
pub use live::Observer;
pub use metrics::Step;
pub use open_telemetry::{OpenTelemetry, OpenTelemetryError, SpanObserver, collector};
pub use rates::{Rates, Yardsticks};
pub use server::{Dashboard, DashboardError, Settings, Views};
pub use status::{Recent, State, Status};
pub use status_lines::status_lines;
pub use timeline::{Kind, Moment};
pub use trace::{Lateness, Trace};
pub use watched::{Asked, Watched};
pub use words::{scaled, time_of_end};
