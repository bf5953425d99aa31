//! Traces for OpenTelemetry, as its environment variables ask for them. What a collector gets is tested in
//! `crates/dashboard/tests/open_telemetry.rs`.

use std::net::TcpListener;

use super::*;

#[test]
fn a_collector_that_is_not_there_changes_nothing_and_is_told_of_once() {
    let place = Place::new();
    // Whoever had this port has left it.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{address}");
    let train = |name: &str, variable: &str, value: &str| {
        let mut command = place.train(name, "2", &[]);
        command.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT").env(variable, value);
        let output = command.output().unwrap();
        expect(&output, 0, &["all 96 steps are done"]);
        words(&output)
    };
    let without = train("without", "OTEL_SERVICE_NAME", "mine");
    let with = train("with", "OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint);
    assert_eq!(place.state_hash("with"), place.state_hash("without"));
    assert!(!without.contains("traces go to"), "{without}");
    assert!(with.contains(&format!("traces go to {endpoint}; the run's is ")), "{with}");
    assert_eq!(with.matches("spans do not reach the collector").count(), 1, "{with}");
}
