//! Who gets in, and who does not: tokens and certificates as a person makes them, and strangers at every port.

use super::*;
use std::io::Write;
use std::net::TcpStream;

/// A run that waits for one worker from elsewhere, and where it listens.
fn leader(place: &Place, name: &str, security: &[&str]) -> (Child, String, std::process::ChildStderr) {
    let mut leader = place.train(name, "1", &[]);
    let mut leader =
        leader.args(["--remote-workers", "1", "--token-file", "token.txt"]).args(security).spawn().unwrap();
    let mut stderr = leader.stderr.take().unwrap();
    let address = told_address(&mut stderr);
    (leader, address, stderr)
}

#[test]
fn a_run_with_token_and_certificates_lets_in_who_has_both() {
    let place = Place::new();
    expect(&place.coordinator(&["token", "token.txt"]).output().unwrap(), 0, &["token.txt"]);
    expect(&place.coordinator(&["token", "token.txt"]).output().unwrap(), 1, &["must not exist yet"]);
    expect(&place.coordinator(&["token", "other.txt"]).output().unwrap(), 0, &[]);
    for folder in ["certs", "other"] {
        let output = place.coordinator(&["certs", folder, "--host", "trainer.example"]).output().unwrap();
        expect(&output, 0, &["--tls-ca", "worker-key.pem"]);
    }
    let own = ["--tls-cert", "certs/coordinator.pem", "--tls-key", "certs/coordinator-key.pem"];
    let authority = ["--tls-ca", "certs/ca.pem"];
    let (mut leader, address, mut stderr) = leader(&place, "secure", &[&own[..], &authority].concat());

    let worker = |arguments: &[&str]| {
        let join = ["--join", &address, "--no-local-files"];
        // A connection that breaks may be whole the next time, so it is tried for as long.
        let patience = ["--connect-timeout-s", "8"];
        place
            .command(env!("CARGO_BIN_EXE_worker"), &[&join[..], &patience, arguments].concat())
            .output()
            .unwrap()
    };
    let (token, shown) = (
        ["--token-file", "token.txt"],
        ["--tls-cert", "certs/worker.pem", "--tls-key", "certs/worker-key.pem"],
    );
    for (arguments, phrases) in [
        (vec![&authority[..], &shown], vec!["needs the token of the run", "--token-file"]),
        (vec![&authority, &shown, &["--token-file", "other.txt"]], vec!["refused", "not that of the run"]),
        (vec![&["--tls-ca", "other/ca.pem"], &shown, &token], vec!["invalid peer certificate", "--tls-ca"]),
        (vec![&token], vec!["broke before the first answer", "--tls-ca"]),
        (vec![&authority, &token], vec!["broke before the first answer", "--tls-cert"]),
    ] {
        let output = worker(&arguments.concat());
        expect(&output, 1, &phrases);
        assert!(!words(&output).contains("panicked"), "{}", words(&output));
    }
    expect(&worker(&[&authority[..], &shown, &token].concat()), 0, &["joined", "finished"]);
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    assert!(leader.wait().unwrap().success(), "{rest}");
    assert!(rest.contains("a call was refused: the token of this worker is not that of the run"), "{rest}");
    expect(&place.train("alone", "1", &[]).output().unwrap(), 0, &[]);
    assert_eq!(place.state_hash("secure"), place.state_hash("alone"));
    check_that_nothing_tells(
        &place,
        &fs::read_to_string(place.0.path().join("token.txt")).unwrap(),
        "secure",
    );
}

/// The secret is in no file of the run.
fn check_that_nothing_tells(place: &Place, secret: &str, run: &str) {
    let mut folders = vec![place.run(run)];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = fs::read(&path).unwrap();
                let tells = content.windows(secret.trim().len()).any(|part| part == secret.trim().as_bytes());
                assert!(!tells, "{} holds the token", path.display());
                files += 1;
            }
        }
    }
    assert!(files > 8, "only {files} files were read");
}

#[test]
fn a_drawn_token_is_in_no_arguments_and_no_file_and_strangers_change_nothing() {
    let place = Place::new();
    let child = place.train("quiet", "2", &[]).spawn().unwrap();
    let workers = place.workers("quiet", 2);
    let of = |process: Pid, file: &str| {
        let path = format!("/proc/{}/{file}", process.as_raw_nonzero());
        String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
    };
    // Its owner may see it there; other people of this machine may not.
    let environment = of(workers[0], "environ");
    let drawn = environment.split('\0').find_map(|entry| entry.strip_prefix("SIMSIAM_TOKEN=")).unwrap();
    assert_eq!(drawn.len(), 64);
    let arguments = of(workers[1], "cmdline");
    for process in [pid(&child), workers[0], workers[1]] {
        assert!(!of(process, "cmdline").contains(drawn));
    }
    assert!(of(workers[1], "environ").contains(drawn), "all of a run have the same");
    // At the coordinator's port and at those of the gradients.
    let journal = fs::read_to_string(place.run("quiet").join("journal.jsonl")).unwrap();
    let ports = journal.lines().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["collective_address"].as_str().map(str::to_owned)
    });
    for address in ports.chain([join_of(&arguments)]) {
        for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"simsiam\n", &[0xff; 4096]] {
            let mut stranger = TcpStream::connect(&address).unwrap();
            // It may be refused before it has said everything.
            let _ = stranger.write_all(garbage);
        }
    }
    // A stranger's worker, in the middle of the run.
    let other = "0".repeat(64);
    let mut worker = place.command(env!("CARGO_BIN_EXE_worker"), &["--join", &join_of(&arguments)]);
    expect(&worker.env("SIMSIAM_TOKEN", other).output().unwrap(), 1, &["not that of the run"]);

    let output = child.wait_with_output().unwrap();
    expect(&output, 0, &["all 96 steps are done"]);
    assert!(!words(&output).contains(drawn));
    check_that_nothing_tells(&place, drawn, "quiet");
    let events = fs::read_to_string(place.run("quiet").join("journal.jsonl")).unwrap();
    assert!(!events.contains("\"lost\""), "{events}");
    expect(&place.train("alone", "1", &[]).output().unwrap(), 0, &[]);
    assert_eq!(place.state_hash("quiet"), place.state_hash("alone"));
}

/// The coordinator's address among the arguments of a worker.
fn join_of(arguments: &str) -> String {
    arguments.split('\0').find_map(|argument| argument.strip_prefix("--join=")).unwrap().to_owned()
}
