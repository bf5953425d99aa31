//! What the programs make of wrong arguments, foreign variables and outputs that take nothing.

use std::net::TcpListener;

use super::*;

#[test]
fn variables_that_are_empty_or_meant_for_others_do_no_harm() {
    let place = Place::new();
    for (name, token) in [("own.txt", TOKEN), ("others.txt", "fedcba9876543210fedcba9876543210")] {
        fs::write(place.0.path().join(name), token).unwrap();
    }
    let mut run = place.train("own", "1", &["training.epochs=50"]);
    run.args(["--token-file", "own.txt"]);
    run.envs([("SIMSIAM_TOKEN_FILE", "others.txt"), ("SIMSIAM_LISTEN", ""), ("RAYON_NUM_THREADS", "1")]);
    let child = run.spawn().unwrap();
    let worker = place.workers("own", 1)[0].as_raw_nonzero();
    let variables = fs::read_to_string(format!("/proc/{worker}/environ")).unwrap();
    assert!(variables.split('\0').any(|one| one == "RAYON_NUM_THREADS=1"), "threads are the user's to say");
    signal(pid(&child), Signal::TERM);
    expect(&child.wait_with_output().unwrap(), 143, &["worker 1 of 1 joined"]);
}

#[test]
fn an_answer_that_cannot_be_written_is_no_success_unless_nobody_wants_it() {
    let place = Place::new();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let (reader, gone) = std::io::pipe().unwrap();
    drop(reader);
    for (output, code, phrase) in
        [(Stdio::from(full), 1, "No space left on device"), (Stdio::from(gone), 0, "")]
    {
        expect(&place.coordinator(&["check"]).stdout(output).output().unwrap(), code, &[phrase]);
    }
}

#[test]
fn bad_input_gets_a_sentence() {
    let place = Place::new();
    fs::write(place.0.path().join("bad.toml"), "name = 3").unwrap();
    fs::create_dir_all(place.0.path().join("pictures")).unwrap();
    fs::write(place.0.path().join("token.txt"), TOKEN).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap();
    let (listen, dashboard) = (format!("--listen {taken}"), format!("--dashboard {taken}"));
    for (arguments, code, phrases) in [
        (listen.as_str(), 1, &["Address already in use", "another --listen"][..]),
        (&dashboard, 1, &["Address already in use", "another --dashboard"]),
        ("--config nowhere.toml", 1, &["nowhere.toml", "stl10-resnet18"]),
        ("--config bad.toml", 1, &["recipe bad.toml", "line 1"]),
        ("--set training.epohcs=3", 1, &["epohcs", "expected"]),
        ("--set training.batch=130", 1, &["does not divide by 4 shards", "use 128 or 132"]),
        ("--set training.batch=4096", 1, &["data.images", "draw at least 4096"]),
        (
            "--listen 0.0.0.0:0 --insecure-network --token-file token.txt --remote-workers 1",
            1,
            &["--listen 0.0.0.0:0", "add --advertise"],
        ),
        ("--workers 5", 1, &["5 workers cannot share 4 shards", "at most 4"]),
        ("--workers 2 --min-workers 3", 1, &["give 1 to 2 as --min-workers"]),
        ("--workers 0", 1, &["0 workers cannot train"]),
        ("--workers four", 2, &["invalid value 'four'"]),
        ("--peak-tflops 0", 2, &["TFLOP/s above 0"]),
        ("--resume", 1, &["runs/quickstart is not a run directory"]),
        ("--resume elsewhere", 1, &["elsewhere", "leave out --resume"]),
        ("--listen 0.0.0.0:7070", 1, &["other machines", "coordinator token token.txt"]),
        ("--listen 0.0.0.0:7070 --insecure-network", 1, &["other machines", "coordinator token token.txt"]),
        (
            "--listen 0.0.0.0:7070 --token-file token.txt",
            1,
            &["without TLS", "coordinator certs", "--insecure-network"],
        ),
        ("--remote-workers 1", 1, &["coordinator token token.txt"]),
        ("--token-file nowhere", 1, &["read nowhere"]),
        ("--token-file bad.toml", 1, &["bad.toml: the token has 8 characters"]),
        ("--tls-cert token.txt", 2, &["--tls-key"]),
        ("--tls-ca token.txt", 1, &["token.txt: expected PEM", "coordinator certs"]),
        ("--listen here", 1, &["HOST:PORT"]),
        ("--config stl10-resnet18", 1, &["unlabeled_X.bin", "--set data.path", "coordinator fetch stl10"]),
        ("--config imagefolder-resnet18 --set data.path=pictures", 1, &["pictures", ".jpg, .jpeg or .png"]),
        (
            "--set evaluation.every_checkpoints=1 --set evaluation.knn=[{k=1001,temperature=0.1}]",
            1,
            &["evaluation.knn", "synthetic", "at least k = 1001 labelled images", "found 1000"],
        ),
        ("fetch imagenet", 2, &["imagenet", "stl10, cifar10"]),
        ("fetch cifar10 --url nowhere", 1, &["nowhere", "--url"]),
        ("check --workers 9", 1, &["9 workers cannot share 4 shards"]),
        ("worker --join 127.0.0.1:9", 1, &["needs the token", "SIMSIAM_TOKEN"]),
        ("worker --join nowhere --token-file token.txt", 1, &["HOST:PORT", "--join"]),
        ("worker --join 127.0.0.1:9 --listen 0.0.0.0:0 --token-file token.txt", 1, &["--insecure-network"]),
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let output = place.coordinator(&arguments).output().unwrap();
        let words = words(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {words}");
        for phrase in phrases {
            assert!(words.contains(phrase), "{arguments:?}: {words:?} lacks {phrase:?}");
        }
        assert!(!words.contains("panicked"), "{arguments:?}: {words}");
    }
    assert!(!place.0.path().join("runs").exists(), "nothing is left of a run that was refused");
}
