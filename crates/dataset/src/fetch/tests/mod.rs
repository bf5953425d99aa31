//! Home-made archives from a badly behaved server, through the code that fetches the real ones.

mod server;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{EntryType, Header};
use tempfile::TempDir;

use super::*;
use server::{ALL, Reply, Server, headed, status};

const PARTIAL: &str = ".set.tar.gz.partial";

/// A port on which no machine has a server.
const NOBODY: &str = "http://127.0.0.1:1/set.tar.gz";

/// Bytes that do not compress, so that positions in the archive are positions in the files.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn md5_of(bytes: &[u8]) -> String {
    hex(Md5::new_with_prefix(bytes))
}

/// The files of the archive that the tests fetch.
fn contents() -> [(&'static str, Vec<u8>); 2] {
    [("images.bin", noise(60_000)), ("labels.bin", vec![7; 10])]
}

/// One entry of a tar archive as it is written, however wrong: type, path, link's target, content.
type RawEntry<'a> = (EntryType, &'a str, &'a str, Vec<u8>);

fn file<'a>(path: &'a str, content: Vec<u8>) -> RawEntry<'a> {
    (EntryType::Regular, path, "", content)
}

fn good_entries() -> Vec<RawEntry<'static>> {
    let [images, labels] = contents();
    vec![
        (EntryType::Directory, "set/", "", Vec::new()),
        file("set/images.bin", images.1),
        file("set/readme.html", vec![b' '; 100]),
        file("./set/labels.bin", labels.1),
    ]
}

fn packed(entries: &[RawEntry<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (kind, path, target, content) in entries {
        let mut header = Header::new_gnu();
        // Written directly, because the library refuses the paths that are to be refused here.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// The description of `content` as an archive of the files that the tests fetch.
fn description(content: &[u8], url: String) -> Archive {
    let files = contents().map(|(name, bytes)| ArchivedFile {
        name: name.to_owned(),
        bytes: bytes.len() as u64,
        md5: Some(md5_of(&bytes)),
    });
    Archive {
        url,
        bytes: content.len() as u64,
        md5: md5_of(content),
        folder: "set".to_owned(),
        files: files.to_vec(),
    }
}

/// Three further attempts, told apart by their pauses.
fn patience() -> Patience {
    Patience {
        connect_timeout: Duration::from_secs(5),
        // Long enough for a machine that is busy with other things.
        stall_timeout: Duration::from_millis(300),
        retry_pauses: [0, 1, 2].map(Duration::from_micros).to_vec(),
    }
}

fn attempt(archive: &Archive, parent: &TempDir) -> (Result<Fetched, FetchError>, Vec<Event>) {
    let mut events = Vec::new();
    let outcome = fetch(archive, parent.path(), &patience(), &mut |event| events.push(event));
    (outcome, events)
}

fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The folder holds exactly the files, and nothing else is left beside it.
fn assert_whole(parent: &TempDir, case: &str) {
    assert_eq!(names(parent.path()), ["set"], "{case}");
    let folder = parent.path().join("set");
    assert_eq!(names(&folder).len(), contents().len(), "{case}");
    for (name, content) in contents() {
        assert!(fs::read(folder.join(name)).unwrap() == content, "{case}: {name} differs");
    }
}

fn assert_phrases(error: &FetchError, phrases: &[&str], case: &str) {
    let error = error.to_string();
    for phrase in phrases {
        assert!(error.contains(phrase), "{case}: {error:?} lacks {phrase:?}");
    }
}

#[test]
fn what_was_fetched_is_not_fetched_again() {
    let content = packed(&good_entries());
    let server = Server::start(content.clone(), vec![Reply::Part(ALL)]);
    let archive = description(&content, server.url());
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("set");

    let (first, events) = attempt(&archive, &parent);
    assert_eq!(first.unwrap(), Fetched { folder: folder.clone(), was_there: false });
    assert_whole(&parent, "the first time");
    for (phase, total_bytes) in [(Phase::Download, archive.bytes), (Phase::Extract, 60_010)] {
        let end = Event::Progress { phase, done_bytes: total_bytes, total_bytes };
        assert!(events.contains(&end), "{events:?} lacks {end:?}");
    }

    // As if the first process had been killed just before its last step.
    fs::write(parent.path().join(PARTIAL), &content).unwrap();
    let (second, events) = attempt(&archive, &parent);
    assert_eq!(second.unwrap(), Fetched { folder, was_there: true });
    assert_whole(&parent, "the second time");
    let end = Event::Progress { phase: Phase::Check, done_bytes: 60_010, total_bytes: 60_010 };
    assert_eq!(events.last(), Some(&end));
    assert_eq!(server.asked(), ["set"]);
}

/// As an earlier process would have left it.
fn keep(parent: &TempDir, bytes: &[u8]) {
    if !bytes.is_empty() {
        fs::write(parent.path().join(PARTIAL), bytes).unwrap();
    }
}

/// Each: how much an earlier process kept, what the server does, and what it must be asked.
#[test]
fn broken_downloads_are_completed() {
    let content = packed(&good_entries());
    let total = content.len();
    let not_http = Reply::Raw("\0\0nonsense\r\n\r\n".to_owned(), ALL);
    let not_chunked = headed("200 OK\nTransfer-Encoding: chunked", ALL);
    let another_part = headed("206 Part\nContent-Range: bytes 4-9/*", ALL);
    for (kept, script, asked) in [
        (0, vec![Reply::Part(5000), Reply::Part(ALL)], vec!["set", "set 5000"]),
        (
            0,
            vec![Reply::Part(100), Reply::Part(200), Reply::Part(300), Reply::Part(400), Reply::Part(ALL)],
            vec!["set", "set 100", "set 300", "set 600", "set 1000"],
        ),
        (5000, vec![Reply::Part(ALL)], vec!["set 5000"]),
        (5000, vec![Reply::Whole(ALL)], vec!["set 5000"]),
        (5000, vec![Reply::Whole(7000), Reply::Part(ALL)], vec!["set 5000", "set 7000"]),
        (5000, vec![headed("200 OK", ALL)], vec!["set 5000"]),
        (0, vec![headed("200 OK", 5000), Reply::Part(ALL)], vec!["set", "set 5000"]),
        (0, vec![Reply::Stall(5000), Reply::Part(ALL)], vec!["set", "set 5000"]),
        (0, vec![Reply::Raw(String::new(), 0), Reply::Part(ALL)], vec!["set", "set"]),
        (0, vec![not_http, Reply::Part(ALL)], vec!["set", "set"]),
        (0, vec![not_chunked, Reply::Part(ALL)], vec!["set", "set"]),
        (5000, vec![status("503 Busy"), status("429 Slower"), Reply::Part(ALL)], vec!["set 5000"; 3]),
        (5000, vec![status("416 No"), Reply::Part(ALL)], vec!["set 5000", "set"]),
        (5000, vec![headed("206 Part", ALL), Reply::Part(ALL)], vec!["set 5000", "set"]),
        (5000, vec![another_part, Reply::Part(ALL)], vec!["set 5000", "set"]),
        (
            5000,
            vec![status("302 Found\nLocation: /moved.tar.gz"), Reply::Part(ALL)],
            vec!["set 5000", "moved 5000"],
        ),
        (total, vec![Reply::Part(ALL)], vec![]),
        (total + 1, vec![Reply::Part(ALL)], vec!["set"]),
    ] {
        let case = format!("{kept} bytes kept, then {script:?}");
        let server = Server::start(content.clone(), script);
        let parent = tempfile::tempdir().unwrap();
        keep(&parent, &[content.as_slice(), &[0]].concat()[..kept]);
        let (outcome, events) = attempt(&description(&content, server.url()), &parent);
        assert_eq!(server.asked(), asked, "{case}");
        let outcome = outcome.unwrap_or_else(|error| panic!("{case}: {error}, after {events:?}"));
        assert!(!outcome.was_there, "{case}");
        assert_whole(&parent, &case);
    }
}

#[test]
fn pauses_grow_until_there_is_progress() {
    let content = packed(&good_entries());
    let script = vec![
        status("500 Oh"),
        status("500 Oh"),
        Reply::Part(100),
        status("500 Oh"),
        status("500 Oh"),
        Reply::Part(ALL),
    ];
    let server = Server::start(content.clone(), script);
    let parent = tempfile::tempdir().unwrap();
    let (outcome, events) = attempt(&description(&content, server.url()), &parent);
    outcome.unwrap();
    let pauses: Vec<_> = events
        .into_iter()
        .filter_map(|event| match event {
            Event::Interrupted { pause, .. } => Some(pause.as_micros()),
            Event::Progress { .. } => None,
        })
        .collect();
    assert_eq!(pauses, [0, 1, 0, 1, 2]);
}

/// Each: what was kept, what the server does, what the error must say, how often the server is asked, and
/// how much is kept for the next call.
#[test]
fn bad_servers_leave_nothing_under_the_final_name() {
    let content = packed(&good_entries());
    let total = content.len();
    let whole = format!("expected {total} bytes");
    let longer = headed(&format!("200 OK\nContent-Length: {}", total + 1), ALL);
    let shorter = headed(&format!("200 OK\nContent-Length: {}", total - 1), ALL);
    let more = [content.as_slice(), b"more"].concat();
    let page = b"<html>Welcome to our network</html>".to_vec();
    let another_total = headed("206 Part\nContent-Range: bytes 9-99/100", ALL);
    let mut wrong = content.clone();
    wrong[5] ^= 1;
    let sums = [format!("expected MD5 {}", md5_of(&content)), format!("found {}", md5_of(&wrong))];
    let kept_sum = md5_of(&[&wrong[..9], &content[9..]].concat());
    let none: &[u8] = &[];
    for (kept, served, reply, phrases, asked, kept_after) in [
        (none, &content, status("404 Not Found"), ["status 404", "--url"], 1, 0),
        (none, &content, status("403 Forbidden"), ["status 403", "browser"], 1, 0),
        (&content[..9], &content, status("404 Not Found"), ["status 404", "--url"], 1, 9),
        (&content[..9], &content, status("500 Oh"), ["status 500", "3 retries"], 4, 9),
        (none, &content, longer, [&whole, &format!("found {} bytes", total + 1)], 1, 0),
        (none, &content, shorter.clone(), [&whole, &format!("found {} bytes", total - 1)], 1, 0),
        (&content[..9], &content, shorter, [&whole, "--url"], 1, 9),
        (none, &more, headed("200 OK", ALL), [&whole, "found more"], 1, 0),
        (none, &page, headed("200 OK", ALL), ["not a gzipped archive", "3 retries"], 4, 0),
        (&content[..9], &page, headed("200 OK", ALL), ["not a gzipped archive", "3 retries"], 4, 9),
        (&content[..9], &content, another_total, [&whole, "found 100 bytes"], 1, 9),
        (&content[..9], &content, status("416 No\nContent-Range: bytes */8"), [&whole, "found 8"], 1, 9),
        (none, &wrong, Reply::Part(ALL), [&sums[0], &sums[1]], 1, 0),
        (&wrong[..9], &content, Reply::Part(ALL), [&sums[0], &kept_sum], 1, 0),
        (&wrong, &content, Reply::Part(ALL), [&sums[0], &sums[1]], 0, 0),
        (none, &content, Reply::Whole(99), ["connection broke", "99 of"], 4, 99),
        (none, &content, Reply::Stall(0), ["timeout", "3 retries"], 4, 0),
        (&content[..9], &content, Reply::Raw(String::new(), 0), ["9 of", "fetch again"], 4, 9),
        (none, &content, status("302 Found\nLocation: /set.tar.gz"), ["redirect", "--url"], 6, 0),
        (none, &content, status("304 Not Modified"), ["status 304", "--url"], 1, 0),
    ] {
        let case = format!("{} bytes kept, then {reply:?}", kept.len());
        let server = Server::start(served.clone(), vec![reply]);
        let parent = tempfile::tempdir().unwrap();
        keep(&parent, kept);
        let (outcome, _) = attempt(&description(&content, server.url()), &parent);
        let error = outcome.expect_err(&case);
        assert_phrases(&error, &phrases, &case);
        assert_eq!(server.asked().len(), asked, "{case}");
        if kept_after == 0 {
            assert!(names(parent.path()).is_empty(), "{case}");
        } else {
            assert_eq!(names(parent.path()), [PARTIAL], "{case}");
            assert!(fs::read(parent.path().join(PARTIAL)).unwrap() == content[..kept_after], "{case}");
        }
    }
}

#[test]
fn bad_addresses_are_named() {
    let content = packed(&good_entries());
    let server = Server::start(content.clone(), vec![Reply::Part(ALL)]);
    for (url, phrases) in [
        ("not an address".to_owned(), ["not an address", "--url"]),
        (String::new(), ["cannot download", "--url"]),
        ("ftp://127.0.0.1/set.tar.gz".to_owned(), ["ftp://127.0.0.1/set.tar.gz", "--url"]),
        (server.url().replace("http:", "https:"), ["https://127.0.0.1", "--url"]),
        (NOBODY.to_owned(), ["refused", "3 retries"]),
    ] {
        let parent = tempfile::tempdir().unwrap();
        let (outcome, _) = attempt(&description(&content, url.clone()), &parent);
        assert_phrases(&outcome.unwrap_err(), &phrases, &url);
        assert!(names(parent.path()).is_empty(), "{url}");
    }
}

/// Archives whose sums are right, so that extraction has to find what is wrong. Each: the entries after the
/// good ones, or in place of them, and what the error must say.
#[test]
fn bad_archives_are_refused() {
    let [images, labels] = contents();
    let extra = |entry| [good_entries(), vec![entry]].concat();
    let (larger, smaller) = (noise(60_001), noise(59_999));
    let other = noise(60_001)[1..].to_vec();
    let long = vec![0; 1 << 21];
    for (entries, phrases) in [
        (extra(file("../evil", vec![1])), ["../evil", "leads out of it"]),
        (extra(file("set/../../evil", vec![1])), ["set/../../evil", "leads out of it"]),
        (extra(file("/evil", vec![1])), ["/evil", "leads out of it"]),
        (extra((EntryType::Symlink, "set/evil", "/etc", vec![])), ["set/evil", "found Symlink"]),
        (extra((EntryType::Link, "set/evil", "set/images.bin", vec![])), ["set/evil", "found Link"]),
        (extra((EntryType::Fifo, "set/evil", "", vec![])), ["set/evil", "found Fifo"]),
        (extra(file("set/images.bin", images.1.clone())), ["set/images.bin", "a second time"]),
        (extra(file("set/large", long)), ["set/large", "at most"]),
        (vec![file("set/images.bin", larger)], ["expected 60000 bytes", "found 60001 bytes"]),
        (vec![file("set/images.bin", smaller)], ["expected 60000 bytes", "found 59999 bytes"]),
        (vec![file("set/images.bin", other)], ["set/images.bin", "expected MD5"]),
        (vec![file("set/images.bin", images.1)], ["set/labels.bin", "found nothing"]),
        (vec![file("labels.bin", labels.1)], ["set/images.bin", "found nothing"]),
        (vec![], ["set/images.bin", "found nothing"]),
    ] {
        assert_refused(&packed(&entries), &phrases);
    }
    let good = packed(&good_entries());
    assert_refused(&good[..good.len() / 2], &["cannot be extracted", "fetch again"]);
    assert_refused(&good[1..], &["cannot be extracted", "gzip"]);
    assert_refused(&[], &["cannot be extracted"]);
}

fn assert_refused(content: &[u8], phrases: &[&str]) {
    let case = format!("{phrases:?}");
    let outside = tempfile::tempdir().unwrap();
    let parent = tempfile::tempdir_in(&outside).unwrap();
    keep(&parent, content);
    let (outcome, _) = attempt(&description(content, NOBODY.to_owned()), &parent);
    assert_phrases(&outcome.expect_err(&case), phrases, &case);
    assert!(names(parent.path()).is_empty(), "{case}");
    assert_eq!(names(outside.path()).len(), 1, "{case}");
}

/// Whatever is in an archive, extraction ends with an answer, and what it calls right is right.
#[test]
fn damaged_archives_do_not_panic() {
    let [images, labels] = contents();
    let entries = [file("set/labels.bin", labels.1), file("set/images.bin", images.1[..600].to_vec())];
    let content = packed(&entries);
    let mut archive = description(&content, String::new());
    archive.files[0].bytes = 600;
    archive.files[0].md5 = Some(md5_of(&images.1[..600]));
    for position in (0..content.len()).step_by(11) {
        let mut damaged = content.clone();
        damaged[position] ^= 1 << (position % 8);
        let folder = tempfile::tempdir().unwrap();
        let outcome = extract::extract(&archive, damaged.as_slice(), folder.path(), &mut |_| {});
        if outcome.is_ok() {
            assert!(is_there(&archive, folder.path(), &mut |_| {}).unwrap(), "byte {position}");
        }
    }
}

#[test]
fn a_folder_that_differs_is_left_alone() {
    let content = packed(&good_entries());
    let server = Server::start(content.clone(), vec![Reply::Part(ALL)]);
    let [images, labels] = contents();
    for (images, labels, phrases) in [
        (&images.1[1..], Some(labels.1.as_slice()), ["images.bin", "60000 bytes, found 59999 bytes"]),
        (&images.1, Some(&[1; 10]), ["labels.bin", "expected MD5"]),
        (&images.1, None, ["labels.bin", "found nothing; move its folder away"]),
    ] {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("set");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("images.bin"), images).unwrap();
        if let Some(labels) = labels {
            fs::write(folder.join("labels.bin"), labels).unwrap();
        }
        let (outcome, _) = attempt(&description(&content, server.url()), &parent);
        assert_phrases(&outcome.unwrap_err(), &phrases, "");
        assert!(fs::read(folder.join("images.bin")).unwrap() == images);
        assert_eq!(names(parent.path()), ["set"]);
    }
    assert!(server.asked().is_empty());

    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join("set")).unwrap();
    attempt(&description(&content, server.url()), &parent).0.unwrap();
    assert_whole(&parent, "an empty folder");
}

#[test]
fn the_disk_is_asked_before_the_server() {
    let content = packed(&good_entries());
    let server = Server::start(content.clone(), vec![Reply::Part(ALL)]);
    let parent = tempfile::tempdir().unwrap();
    keep(&parent, &content[..9]);
    // As an extraction that was killed leaves it: what it takes is not missing.
    fs::create_dir(parent.path().join(".aside-killed")).unwrap();
    fs::write(parent.path().join(".aside-killed/images.bin"), "half").unwrap();
    let mut archive = description(&content, server.url());
    archive.files[0].bytes = 1 << 60;
    let needed = format!("needs {} free bytes", (1 << 60) + 10 + content.len() - 9);
    let (outcome, _) = attempt(&archive, &parent);
    let path = parent.path().display().to_string();
    assert_phrases(&outcome.unwrap_err(), &[&path, &needed, "make room"], "");
    assert_eq!(names(parent.path()), [PARTIAL]);
    assert!(server.asked().is_empty());
}

#[test]
fn of_two_processes_one_downloads() {
    let content = packed(&good_entries());
    let server = Server::start(content.clone(), vec![Reply::Part(ALL)]);
    let parent = tempfile::tempdir().unwrap();
    let other = File::create(parent.path().join(PARTIAL)).unwrap();
    other.lock().unwrap();
    let (outcome, _) = attempt(&description(&content, server.url()), &parent);
    assert_phrases(&outcome.unwrap_err(), &[PARTIAL, "another process"], "");
    assert!(server.asked().is_empty());
    drop(other);
    attempt(&description(&content, server.url()), &parent).0.unwrap();
    assert_whole(&parent, "after the other process");
}

#[test]
fn the_public_archives_are_described_as_their_formats_are_read() {
    for (archive, image_files, record_bytes, images) in
        [(Archive::stl10(), "_X.bin", 27_648, 113_000), (Archive::cifar10(), ".bin", 3_073, 60_000)]
    {
        let sums = archive.files.iter().filter_map(|file| file.md5.as_ref()).chain([&archive.md5]);
        for sum in sums {
            assert_eq!(sum.len(), 32);
            assert!(sum.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')), "{sum}");
        }
        let image_files = archive.files.iter().filter(|file| file.name.ends_with(image_files));
        let image_bytes: u64 = image_files.map(|file| file.bytes).sum();
        assert_eq!(image_bytes, record_bytes * images, "{}", archive.folder);
    }
}
