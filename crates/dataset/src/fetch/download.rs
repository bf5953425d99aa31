//! The archive from the server into its partial file, however often the connection breaks.

use std::io;
use std::thread;

use ureq::http::{HeaderMap, Uri, header};
use ureq::{Agent, Proxy};

use super::partial::Partial;
use super::{Archive, Event, FetchError, Patience, Phase, Report, read_pieces};

/// Begins every gzipped file (RFC 1952, section 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Mirrors send people on once or twice; more is a circle.
const REDIRECTS: u32 = 5;

/// How one attempt ends before the archive is whole.
enum Failure {
    /// Another attempt may go better; why, as a clause.
    Passing(String),
    /// It will not.
    Final(FetchError),
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Failure {
        Failure::Final(error)
    }
}

/// What an answer means for what is kept.
enum Verdict {
    /// The body goes on where the kept part ends.
    Append,
    /// The body is the whole archive.
    StartOver,
    /// The server cannot go on from the kept part: forget it and ask for the whole.
    Forget(String),
    /// There is no body to take.
    Fail(Failure),
}

/// Downloads what is missing and checks the sum of the whole.
pub(super) fn download(
    archive: &Archive,
    partial: &mut Partial,
    patience: &Patience,
    report: &mut Report<'_>,
) -> Result<(), FetchError> {
    let agent = agent(&archive.url, patience);
    let mut furthest_bytes = partial.bytes();
    let mut retries = 0;
    while partial.bytes() < archive.bytes {
        let reason = match receive(&agent, archive, partial, report) {
            Ok(()) => break,
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(reason)) => reason,
        };
        // A server that cannot resume and always breaks at the same byte makes no progress.
        if partial.bytes() > furthest_bytes {
            furthest_bytes = partial.bytes();
            retries = 0;
        }
        let Some(pause) = patience.retry_pauses.get(retries).copied() else {
            return Err(FetchError::Interrupted {
                url: archive.url.clone(),
                reason,
                retries,
                kept_bytes: partial.bytes(),
                total_bytes: archive.bytes,
            });
        };
        retries += 1;
        report(Event::Interrupted { reason, pause });
        thread::sleep(pause);
    }
    let found = partial.md5();
    if found != archive.md5 {
        let (url, expected) = (archive.url.clone(), archive.md5.clone());
        return Err(FetchError::Checksum { url, expected, found });
    }
    Ok(())
}

fn agent(url: &str, patience: &Patience) -> Agent {
    let host = url.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    // From a proxy, a server on this machine would be another one.
    let is_here = host.is_some_and(|host| ["localhost", "127.0.0.1", "[::1]"].contains(&host.as_str()));
    Agent::config_builder()
        .proxy(if is_here { None } else { Proxy::try_from_env() })
        .http_status_as_error(false)
        .max_redirects(REDIRECTS)
        // The archive as it is, so that positions in it mean the same on both sides.
        .accept_encoding("identity")
        .timeout_resolve(Some(patience.connect_timeout))
        .timeout_connect(Some(patience.connect_timeout))
        .timeout_recv_response(Some(patience.stall_timeout))
        .timeout_per_read(Some(patience.stall_timeout))
        .timeout_per_write(Some(patience.stall_timeout))
        .build()
        .into()
}

/// One request, and its body as far as it comes.
fn receive(
    agent: &Agent,
    archive: &Archive,
    partial: &mut Partial,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let mut request = agent.get(&archive.url);
    if partial.bytes() > 0 {
        request = request.header(header::RANGE, format!("bytes={}-", partial.bytes()));
    }
    let mut response = request.call().map_err(|error| failed_request(archive, &error))?;
    let mut starts_over = partial.bytes() == 0;
    match judge(response.status().as_u16(), response.headers(), partial.bytes(), archive) {
        Verdict::Append => {}
        Verdict::StartOver => starts_over = true,
        Verdict::Forget(reason) => {
            partial.clear()?;
            return Err(Failure::Passing(reason));
        }
        Verdict::Fail(failure) => return Err(failure),
    }
    let mut body = response.body_mut().as_reader();
    let broke = |error| Failure::Passing(format!("the connection broke ({error})"));
    let total_bytes = archive.bytes;
    read_pieces(&mut body, broke, |piece| {
        if starts_over {
            // What is kept must not make room for the page on which a network wants to be paid.
            if !GZIP_MAGIC.iter().zip(piece).all(|(expected, found)| expected == found) {
                return Err(Failure::Passing("the answer is not a gzipped archive".to_owned()));
            }
            partial.clear()?;
            starts_over = false;
        }
        if piece.len() as u64 > total_bytes - partial.bytes() {
            partial.clear()?;
            return Err(Failure::Final(wrong_length(archive, "more".to_owned())));
        }
        partial.append(piece)?;
        report(Event::Progress { phase: Phase::Download, done_bytes: partial.bytes(), total_bytes });
        Ok(())
    })?;
    if partial.bytes() < total_bytes {
        let reason = format!("the answer ended after {} of {total_bytes} bytes", partial.bytes());
        return Err(Failure::Passing(reason));
    }
    Ok(())
}

fn failed_request(archive: &Archive, error: &ureq::Error) -> Failure {
    use ureq::Error;
    let reason = error.to_string();
    match error {
        Error::BadUri(_)
        | Error::Http(_)
        | Error::InvalidProxyUrl
        | Error::TooManyRedirects
        | Error::RedirectFailed
        | Error::Tls(_)
        | Error::Rustls(_) => Failure::Final(FetchError::Address { url: archive.url.clone(), reason }),
        // A certificate that is not accepted, or a server that does not speak TLS.
        Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            Failure::Final(FetchError::Address { url: archive.url.clone(), reason })
        }
        // A name that is not found is one of these: that is how a laptop without a network looks.
        _ => Failure::Passing(format!("the server cannot be reached ({reason})")),
    }
}

/// Decides what to do with an answer.
fn judge(status: u16, headers: &HeaderMap, kept_bytes: u64, archive: &Archive) -> Verdict {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (first_byte, range_total) = parse_content_range(text(header::CONTENT_RANGE));
    let total = match status {
        200 => text(header::CONTENT_LENGTH).parse().ok(),
        206 | 416 => range_total,
        _ => None,
    };
    if let Some(bytes) = total.filter(|bytes| *bytes != archive.bytes) {
        return Verdict::Fail(Failure::Final(wrong_length(archive, format!("{bytes} bytes"))));
    }
    match status {
        200 => Verdict::StartOver,
        206 if first_byte == Some(kept_bytes) => Verdict::Append,
        206 | 416 => {
            Verdict::Forget(format!("the server cannot go on at byte {kept_bytes} (status {status})"))
        }
        408 | 429 | 500..=599 => {
            Verdict::Fail(Failure::Passing(format!("the server answered with status {status}")))
        }
        _ => Verdict::Fail(Failure::Final(FetchError::Status { url: archive.url.clone(), status })),
    }
}

/// The first byte and the length of the whole in `bytes 5-9/10`, as far as they are there: `bytes */10` and
/// `bytes 5-9/*` are allowed.
fn parse_content_range(text: &str) -> (Option<u64>, Option<u64>) {
    let Some((range, total)) = text.strip_prefix("bytes ").and_then(|rest| rest.split_once('/')) else {
        return (None, None);
    };
    let first = range.split_once('-').and_then(|(first, _)| first.parse().ok());
    (first, total.parse().ok())
}

fn wrong_length(archive: &Archive, found: String) -> FetchError {
    FetchError::Length { url: archive.url.clone(), expected_bytes: archive.bytes, found }
}
