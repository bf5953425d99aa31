//! The spans of a run as a collector gets them: real OTLP over gRPC, on port 0.

#![expect(clippy::unwrap_used, reason = "helpers of tests, where a panic is the answer")]

use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use coordinator::flight_recorder::{Span as Piece, StepPhase, StepSpans};
use coordinator::{Progress, RunDirectory};
use dashboard::{OpenTelemetry, SpanObserver};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use recipe::{QUICKSTART, Recipe};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

const VERSION: &str = "1.2.3";

/// When the first step began.
const BEGAN_UNIX_US: u64 = 1_795_540_402_000_000;

const WORKERS: u64 = 2;
const STEPS: u64 = 300;

/// Keeps what it gets.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<ResourceSpans>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().extend(request.into_inner().resource_spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Where it listens.
    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let service = TraceServiceServer::new(self.clone());
        tokio::spawn(Server::builder().serve_with_incoming(service, TcpListenerStream::new(listener)));
        endpoint
    }

    fn spans(&self) -> Vec<Span> {
        let got = self.0.lock().unwrap();
        let scopes = got.iter().flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }
}

fn directory(folder: &tempfile::TempDir) -> RunDirectory {
    let recipe = Recipe::from_toml(QUICKSTART, &[]).unwrap();
    RunDirectory::create(&folder.path().join("run"), &recipe, VERSION).unwrap()
}

fn noted(record: serde_json::Value) -> Progress {
    Progress::Noted { record: serde_json::from_value(record).unwrap(), workers: 2, expected: 2 }
}

/// A run of two workers, as the control loop tells it.
fn tell(observer: &SpanObserver) {
    let place = |worker: u64| json!({ "worker": worker, "collective_address": "a:1", "first_shard": 0, "shard_count": 1 });
    let places: Vec<serde_json::Value> = (1..=WORKERS).map(place).collect();
    observer.hear(&noted(json!({ "event": "generation", "generation": 1, "places": places })));
    for step in 1..=STEPS {
        for worker in 1..=WORKERS {
            let piece = |phase, start_us, duration_us| Piece { phase, shard: None, start_us, duration_us };
            observer.hear(&Progress::Spans(StepSpans {
                worker,
                generation: 1,
                step,
                began_unix_us: BEGAN_UNIX_US + 1000 * step,
                spans: vec![piece(StepPhase::Forward, 0, 600), piece(StepPhase::AllReduce, 600, 400)],
            }));
        }
    }
    observer.hear(&noted(json!({ "event": "ended", "outcome": "stopped", "step": STEPS })));
}

fn has(attributes: &[KeyValue], name: &str, expected: &Value) -> bool {
    let values = attributes.iter().filter(|attribute| attribute.key == name);
    values.filter_map(|attribute| attribute.value.as_ref()?.value.as_ref()).any(|value| value == expected)
}

fn nanoseconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_a_run_whole_by_the_time_that_it_has_ended() {
    let collector = Collector::default();
    let endpoint = collector.serve().await;
    let folder = tempfile::tempdir().unwrap();
    let directory = directory(&folder);
    let before = SystemTime::now();
    let traces = OpenTelemetry::start(&endpoint, &directory, VERSION).unwrap();
    tell(&traces.observer());
    traces.end().await;

    let spans = collector.spans();
    let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let counts =
        ["run", "generation", "step", "worker step", "forward", "all-reduce"].map(|name| named(name).len());
    let parts = (WORKERS * STEPS) as usize;
    assert_eq!(counts, [1, 1, STEPS as usize, parts, parts, parts], "in several messages");
    let (run, generation) = (named("run")[0], named("generation")[0]);
    assert_eq!((run.trace_id.as_slice(), run.parent_span_id.len()), (&directory.run_id()[..], 0));
    assert_eq!((&generation.trace_id, &generation.parent_span_id), (&run.trace_id, &run.span_id));
    assert!(has(&run.attributes, "simsiam.outcome", &Value::StringValue("stopped".to_string())));
    assert!(nanoseconds(before) <= run.start_time_unix_nano);
    assert!(run.start_time_unix_nano <= generation.start_time_unix_nano);
    assert!(generation.end_time_unix_nano <= run.end_time_unix_nano);
    assert!(run.end_time_unix_nano <= nanoseconds(SystemTime::now()));

    let last = Value::IntValue(STEPS as i64);
    let last = *named("step").iter().find(|step| has(&step.attributes, "simsiam.step", &last)).unwrap();
    let began = 1000 * (BEGAN_UNIX_US + 1000 * STEPS);
    assert_eq!((last.start_time_unix_nano, last.end_time_unix_nano), (began, began + 1_000_000));
    assert_eq!(last.links[0].span_id, generation.span_id);
    let children =
        |parent: &Span| spans.iter().filter(|span| span.parent_span_id == parent.span_id).collect::<Vec<_>>();
    for part in children(last) {
        assert_eq!((part.name.as_str(), &part.trace_id), ("worker step", &last.trace_id));
        let pieces: Vec<_> = children(part)
            .iter()
            .map(|piece| (piece.name.as_str(), piece.start_time_unix_nano - began))
            .collect();
        assert_eq!(pieces, [("forward", 0), ("all-reduce", 600_000)]);
    }
    assert_eq!(children(last).len() as u64, WORKERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_told_which_run_it_is() {
    let collector = Collector::default();
    let endpoint = collector.serve().await;
    let folder = tempfile::tempdir().unwrap();
    let directory = directory(&folder);
    let traces = OpenTelemetry::start(&endpoint, &directory, VERSION).unwrap();
    traces.end().await;
    let got = collector.0.lock().unwrap();
    let resource = got[0].resource.as_ref().unwrap();
    let run_id = directory.run_id_digits();
    for (name, expected) in [
        ("service.name", "simsiam"),
        ("service.version", VERSION),
        ("simsiam.run", "quickstart"),
        ("simsiam.run_id", run_id.as_str()),
    ] {
        let expected = Value::StringValue(expected.to_string());
        assert!(has(&resource.attributes, name, &expected), "{name} in {:?}", resource.attributes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_collector_that_is_not_there_or_does_not_answer() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoints = [&gone, &silent].map(|listener| format!("http://{}", listener.local_addr().unwrap()));
    drop(gone);
    let folder = tempfile::tempdir().unwrap();
    let directory = directory(&folder);
    let [gone, silent] =
        endpoints.map(|endpoint| OpenTelemetry::start(&endpoint, &directory, VERSION).unwrap());
    let began = Instant::now();
    for traces in [&gone, &silent] {
        tell(&traces.observer());
    }
    let told = began.elapsed();
    tokio::join!(gone.end(), silent.end());
    // Where it was waited for, telling six hundred parts of steps would take as many times as long as the end.
    assert!(told < began.elapsed() / 2, "{told:?} of {:?}", began.elapsed());
}
