//! A run that is seen and stopped from elsewhere, as a person and a script do it.

use std::io::Write;
use std::net::TcpStream;

use super::*;

#[test]
fn a_run_is_seen_by_its_folder_and_stopped_from_its_dashboard() {
    let place = Place::new();
    let mut command = place.train("seen", "2", &["training.epochs=1000"]);
    let child = command.env("SIMSIAM_TOKEN", TOKEN).spawn().unwrap();
    place.wait_for_steps("seen", 6);
    let status = |arguments: &[&str]| {
        let output = place.coordinator(&[&["status", "runs/seen"], arguments].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", words(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // The workers are looked at once a second.
    let told = wait_for(|| Some(status(&[])).filter(|told| told.contains("shards 0 to 1")));
    for phrase in [
        "run seen: training, step ",
        " of 8000 ",
        "FLOP/s",
        "shards 0 to 1",
        "the page of this run: http://127.0.0.1:",
    ] {
        assert!(told.contains(phrase), "{told:?} lacks {phrase:?}");
    }
    let url = fs::read_to_string(place.run("seen").join("dashboard.url")).unwrap();
    let address = url.trim().strip_prefix("http://").unwrap().to_string();
    let body = r#"{"action":"stop"}"#;
    let request = format!(
        "POST /api/actions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    let phrases = ["dashboard: http://127.0.0.1:", "stopping after step", "go on with --resume"];
    expect(&child.wait_with_output().unwrap(), 143, &phrases);
    assert!(status(&[]).contains("run seen: stopped, step "));
    let json: serde_json::Value = serde_json::from_str(&status(&["--json"])).unwrap();
    assert_eq!((&json["run"], &json["state"]), (&"seen".into(), &"stopped".into()));
    expect(&place.coordinator(&["status"]).output().unwrap(), 0, &["run seen: stopped"]);
}

#[test]
fn completions_and_manual_pages_are_made() {
    let place = Place::new();
    for (shell, phrase) in [
        ("bash", "complete -F _coordinator"),
        ("zsh", "#compdef coordinator"),
        ("fish", "complete -c coordinator"),
    ] {
        expect(
            &place.coordinator(&["completions", shell]).output().unwrap(),
            0,
            &[phrase, "worker", "evaluate"],
        );
    }
    expect(&place.coordinator(&["man", "pages"]).output().unwrap(), 0, &["man pages/coordinator.1"]);
    assert!(place.0.path().join("pages/evaluate-knn.1").exists());
}
