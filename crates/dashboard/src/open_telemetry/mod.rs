//! Spans of a run for OpenTelemetry, sent to the collector that somebody names and to nobody else.
//!
//! The coordinator sends those of all workers: they tell it where the time of each step went in any case, for the flight
//! recorder, and it alone can bring their clocks together. So workers need no way to the collector, and no call between
//! the programs carries anything for it.
//!
//! What the control loop tells goes into a queue, out of which one task makes spans (`spans.rs`). Another one sends them.
//! Neither is ever waited for, but for a moment at the end: a collector that is slow or gone costs the run nothing, and
//! itself what it missed.

mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use coordinator::{Progress, RunDirectory};
use opentelemetry::KeyValue;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{
    ExporterBuildError, OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL,
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, SpanExporter, WithExportConfig,
    WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use spans::Spans;

/// How often spans are sent: often enough to watch a run by.
const SENT_EVERY: Duration = Duration::from_secs(1);

/// What is told and not yet heard: more than a thousand workers tell in a second.
const TOLD_UNDER_WAY: usize = 4096;

/// Spans in a message, as OpenTelemetry's own programs have it: some 150 kB, where collectors take 4 MB.
const SPANS_IN_MESSAGE: usize = 512;

/// How long a message may take. The exporter's own limit (`OTEL_EXPORTER_OTLP_TIMEOUT`, 10 s) begins only once there is a
/// connection.
const LONGEST_SENDING: Duration = Duration::from_secs(30);

/// How long the last spans may take, when nothing else is left to do.
const FAREWELL: Duration = Duration::from_secs(5);

/// Whose name the spans have, where nobody gives another one.
const SERVICE: &str = "simsiam";

/// When it was told, and what.
type Told = (SystemTime, Progress);

/// Why no spans are sent. It is no reason not to train: the variables may have been set for other programs.
#[derive(Debug, thiserror::Error)]
pub enum OpenTelemetryError {
    /// Collectors speak several protocols, and this program one of them.
    #[error(
        "{variable}={found}: expected grpc; name the port at which the collector speaks it, mostly 4317, and set \
         {variable} to grpc"
    )]
    Protocol {
        /// Where it is asked for.
        variable: &'static str,
        /// What is asked for.
        found: String,
    },
    /// The endpoint is none.
    #[error(
        "{0}; expected http://HOST:PORT, such as http://127.0.0.1:4317, in {OTEL_EXPORTER_OTLP_ENDPOINT}"
    )]
    Endpoint(#[from] ExporterBuildError),
}

/// The collector that OpenTelemetry's own environment variables name, if they do. `variable` reads one of them.
///
/// # Errors
/// [`OpenTelemetryError::Protocol`], where they ask for another one than gRPC.
pub fn collector(variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>, OpenTelemetryError> {
    // One that is empty counts as not set.
    let value =
        |name: &str| variable(name).map(|text| text.trim().to_string()).filter(|text| !text.is_empty());
    let is_off = value("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
        || value("OTEL_TRACES_EXPORTER").is_some_and(|list| list.split(',').all(|one| one.trim() != "otlp"));
    let endpoint = value(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT).or_else(|| value(OTEL_EXPORTER_OTLP_ENDPOINT));
    let Some(endpoint) = endpoint.filter(|_| !is_off) else { return Ok(None) };
    let protocols = [OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, OTEL_EXPORTER_OTLP_PROTOCOL];
    match protocols.into_iter().find_map(|name| Some((name, value(name)?))) {
        Some((variable, found)) if found != "grpc" => Err(OpenTelemetryError::Protocol { variable, found }),
        _ => Ok(Some(endpoint)),
    }
}

/// The spans of a run on their way.
#[derive(Debug)]
pub struct OpenTelemetry {
    tells: mpsc::Sender<Told>,
    gathers: JoinHandle<()>,
    sends: JoinHandle<()>,
    complaint: Complaint,
}

impl OpenTelemetry {
    /// From now on sends what happens in the run to the collector at `endpoint`.
    ///
    /// # Errors
    /// [`OpenTelemetryError::Endpoint`]. Whether a collector is there shows later, and then in the log.
    pub fn start(
        endpoint: &str,
        directory: &RunDirectory,
        program_version: &str,
    ) -> Result<OpenTelemetry, OpenTelemetryError> {
        let mut exporter = exporter(endpoint)?;
        exporter.set_resource(&resource(directory, program_version));
        let complaint = Complaint { endpoint: endpoint.to_string(), is_made: Arc::default() };
        let spans = Spans::new(directory.run_id(), SystemTime::now());
        let (tells, told) = mpsc::channel(TOLD_UNDER_WAY);
        let (gives, given) = mpsc::channel(1);
        Ok(OpenTelemetry {
            tells,
            gathers: tokio::spawn(gather(spans, told, gives)),
            sends: tokio::spawn(send(exporter, given, complaint.clone())),
            complaint,
        })
    }

    /// What the control loop tells.
    pub fn observer(&self) -> SpanObserver {
        SpanObserver(self.tells.clone())
    }

    /// Sends the rest, for a moment. All observers must be gone: the control loop has ended.
    pub async fn end(self) {
        let OpenTelemetry { tells, gathers, sends, complaint } = self;
        drop(tells);
        let both = async {
            // One that panicked has nothing more to send.
            let _ = gathers.await;
            let _ = sends.await;
        };
        if timeout(FAREWELL, both).await.is_err() {
            complaint.make(&format!("the last ones took longer than {} s", FAREWELL.as_secs()));
        }
    }
}

/// That spans do not reach the collector. It is said once: a person can mend it once.
#[derive(Debug, Clone)]
struct Complaint {
    endpoint: String,
    is_made: Arc<AtomicBool>,
}

impl Complaint {
    fn make(&self, reason: &str) {
        if !self.is_made.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "spans do not reach the collector at {} ({reason}): they are missing there, and the run goes on; correct \
                 {OTEL_EXPORTER_OTLP_ENDPOINT}, or unset it",
                self.endpoint
            );
        }
    }
}

/// What the control loop calls: see [`SpanObserver::hear`].
#[derive(Debug, Clone)]
pub struct SpanObserver(mpsc::Sender<Told>);

impl SpanObserver {
    /// Takes note, and never waits.
    pub fn hear(&self, progress: &Progress) {
        // What comes with the time and not with an event is no span.
        if !matches!(progress, Progress::Seen(_)) {
            // Full only where this machine stands still; a span less is the smaller harm.
            let _ = self.0.try_send((SystemTime::now(), progress.clone()));
        }
    }
}

fn exporter(endpoint: &str) -> Result<SpanExporter, ExporterBuildError> {
    let builder = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
    // One that names no scheme is meant with TLS, by OpenTelemetry's rules.
    if endpoint.starts_with("https://") || !endpoint.contains("://") {
        // Authorities as browsers know them.
        builder.with_tls_config(ClientTlsConfig::new().with_webpki_roots()).build()
    } else {
        builder.build()
    }
}

/// What all spans come from. What OpenTelemetry's own variables say counts.
fn resource(directory: &RunDirectory, program_version: &str) -> Resource {
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", SERVICE),
            KeyValue::new("service.version", program_version.to_string()),
            KeyValue::new("simsiam.run", directory.recipe().name.clone()),
            KeyValue::new("simsiam.run_id", directory.run_id_digits()),
        ])
        .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())]);
    match std::env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name).build(),
        _ => resource.build(),
    }
}

/// Makes spans of what is told, until nobody is left to tell anything.
async fn gather(mut spans: Spans, mut told: mpsc::Receiver<Told>, gives: mpsc::Sender<Vec<SpanData>>) {
    let mut ticks = interval(SENT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            next = told.recv() => match next {
                Some((at, progress)) => spans.hear(progress, at),
                None => break,
            },
            _ = ticks.tick() => {
                // While the last ones are still being sent, these become more, within bounds.
                if let Ok(place) = gives.try_reserve() {
                    place.send(spans.take());
                }
            }
        }
    }
    spans.finish(SystemTime::now());
    if spans.steps_left_out() > 0 {
        tracing::info!("{} steps are in no trace: the collector was too slow", spans.steps_left_out());
    }
    // Who sends goes after this one.
    let _ = gives.send(spans.take()).await;
}

/// Sends what is given, until nobody is left to give anything. What cannot be sent is lost.
async fn send(exporter: SpanExporter, mut given: mpsc::Receiver<Vec<SpanData>>, complaint: Complaint) {
    while let Some(spans) = given.recv().await {
        let mut spans = spans.into_iter();
        loop {
            let message: Vec<SpanData> = spans.by_ref().take(SPANS_IN_MESSAGE).collect();
            if message.is_empty() {
                break;
            }
            match timeout(LONGEST_SENDING, exporter.export(message)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => complaint.make(&error.to_string()),
                Err(_) => complaint.make(&format!("no answer within {} s", LONGEST_SENDING.as_secs())),
            }
            // The rest would meet the same, and others come in a second.
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_unless_a_collector_is_named() {
        const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4317");
        for (variables, expected) in [
            (&[ENDPOINT][..], Ok(Some("http://a:4317"))),
            (&[], Ok(None)),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")], Ok(None)),
            (&[("OTEL_SERVICE_NAME", "mine"), ("OTEL_TRACES_EXPORTER", "otlp")], Ok(None)),
            (&[ENDPOINT, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:4317")], Ok(Some("http://b:4317"))),
            (&[ENDPOINT, ("OTEL_SDK_DISABLED", "True")], Ok(None)),
            (&[ENDPOINT, ("OTEL_SDK_DISABLED", "false")], Ok(Some("http://a:4317"))),
            (&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")], Ok(None)),
            (&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "console, otlp")], Ok(Some("http://a:4317"))),
            (&[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], Ok(Some("http://a:4317"))),
            (
                &[ENDPOINT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
                Err("OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf: expected grpc"),
            ),
            (
                &[
                    ENDPOINT,
                    ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
                    ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
                ],
                Ok(Some("http://a:4317")),
            ),
            (&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], Ok(None)),
        ] {
            let read = |name: &str| {
                let found = variables.iter().find(|(other, _)| *other == name);
                found.map(|(_, value)| (*value).to_string())
            };
            let found = collector(read).map_err(|error| error.to_string());
            match (found.as_ref().map(Option::as_deref), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{variables:?}"),
                (Err(error), Err(expected)) => assert!(error.starts_with(expected), "{error}"),
                _ => panic!("{variables:?}: {found:?}"),
            }
        }
    }

    #[tokio::test]
    async fn an_endpoint_is_an_address_with_or_without_tls() {
        for endpoint in
            ["http://127.0.0.1:4317", "http://otel_collector:4317", "https://a.example:443", "a:4317"]
        {
            assert!(exporter(endpoint).is_ok(), "{endpoint}");
        }
        let error = OpenTelemetryError::from(exporter("http://a b").unwrap_err()).to_string();
        assert!(error.contains("http://a b") && error.contains("expected http://HOST:PORT"), "{error}");
    }
}
