//! What each address of the server answers.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, SET_COOKIE};
use hyper::header::{LOCATION, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::access::{Neighbour, Refusal};
use crate::action::Action;
use crate::site::{NotTaken, Site};
use crate::{events, page, prometheus};

type Body = UnsyncBoxBody<Bytes, Infallible>;
type Answer = Response<Body>;

/// The largest request body: an action, or a form with a token.
const BODY_BYTES: usize = 4096;

/// How long a request body may take.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// How long a question waits for a long run to be read at first.
const READ_LIMIT: Duration = Duration::from_secs(60);

/// Points of a curve, if nothing else is asked for: two for each column of pixels of a chart.
const POINTS: usize = 800;

/// More points than this are asked for by nobody's screen.
const MOST_POINTS: usize = 4000;

/// Before the names of pictures that go with result cards.
const EVALUATIONS: &str = "/evaluations/";

/// Events that wait for a slow page.
const EVENTS_UNDER_WAY: usize = 4;

/// Only the page's own files, nothing from elsewhere, in nobody else's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' \
                      data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// A report is a file of the run directory, which anyone may have changed: its script may draw, and reach nothing.
const REPORT_POLICY: &str = "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src \
                             'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'";

/// The answer to `request`.
pub(crate) async fn answer(site: Arc<Site>, request: Request<Incoming>, neighbour: Neighbour) -> Answer {
    let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
    let path = request.uri().path().to_string();
    // Probes have no token and no name to call by, and learn no more than this.
    match path.as_str() {
        "/healthz" if is_get => return text(StatusCode::OK, "ok\n"),
        "/readyz" if is_get => return readiness(&site),
        _ => {}
    }
    let (host, run) = (site.access.check_host(request.headers()), site.access.check_run(request.headers()));
    if let Err(refusal) = host.and(run) {
        return refused(&refusal);
    }
    match (path.as_str(), is_get) {
        ("/style.css", true) => return file("text/css; charset=utf-8", page::STYLE),
        ("/sign-in", false) if site.access.asks_token() => return sign_in(&site, request).await,
        _ => {}
    }
    // Numbers for a Prometheus of this machine, which runs as a user of its own.
    let neighbour = if path == "/metrics" { Neighbour::Own } else { neighbour };
    match site.access.may_look(request.headers(), neighbour) {
        Err(Refusal::Token) if path == "/" && site.access.asks_token() => {
            return html(StatusCode::UNAUTHORIZED, page::sign_in(false));
        }
        Err(refusal) => return refused(&refusal),
        Ok(()) => {}
    }
    match (path.as_str(), is_get) {
        ("/api/actions", false) if request.method() == Method::POST => act(&site, request).await,
        (_, false) => text(StatusCode::METHOD_NOT_ALLOWED, "expected GET\n"),
        ("/", true) => html(StatusCode::OK, page::render(&site)),
        ("/dashboard.js", true) => file("text/javascript; charset=utf-8", page::SCRIPT),
        ("/report", true) => report(&site),
        ("/views.png", true) => views(&site, request.uri().query().unwrap_or_default()).await,
        (path, true) if path.starts_with(EVALUATIONS) => {
            evaluation_picture(&site, &path[EVALUATIONS.len()..])
        }
        (path, true) => {
            // What follows speaks of the whole run, so a long one is read first.
            let mut is_read = site.is_read.clone();
            let _ = timeout(READ_LIMIT, is_read.wait_for(|is_read| *is_read)).await;
            match path {
                "/metrics" => with_type(StatusCode::OK, prometheus::CONTENT_TYPE, site.metrics()),
                "/api/status" => json(&site.status()),
                "/api/story" => json(&site.story(&site.record())),
                "/api/history" => history(site, request.uri().query().unwrap_or_default()).await,
                "/api/events" => stream(site, &request),
                _ => text(StatusCode::NOT_FOUND, "there is nothing here: the page is at /\n"),
            }
        }
    }
}

fn readiness(site: &Site) -> Answer {
    match site.readiness() {
        Ok(state) => text(StatusCode::OK, &format!("{}\n", state.word())),
        Err(state) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{}\n", state.word())),
    }
}

/// A form with the token, answered by a cookie and the page.
async fn sign_in(site: &Site, request: Request<Incoming>) -> Answer {
    let Some(body) = read(request.into_body()).await else {
        return text(StatusCode::BAD_REQUEST, "expected a form with the token\n");
    };
    // The only characters that a token may have and a form changes are percent-encoded.
    let form = String::from_utf8_lossy(&body);
    let token = form.strip_prefix("token=").map(page::decode_form).unwrap_or_default();
    let Some(cookie) = site.access.sign_in(&token) else {
        return html(StatusCode::UNAUTHORIZED, page::sign_in(true));
    };
    let mut answer = text(StatusCode::SEE_OTHER, "");
    answer.headers_mut().insert(LOCATION, HeaderValue::from_static("/"));
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        answer.headers_mut().insert(SET_COOKIE, cookie);
    }
    answer
}

async fn act(site: &Site, request: Request<Incoming>) -> Answer {
    if let Err(refusal) = site.access.may_act(request.headers()) {
        tracing::warn!("an action was refused: {refusal}");
        return refused(&refusal);
    }
    let body = read(request.into_body()).await.unwrap_or_default();
    let Ok(action) = serde_json::from_slice::<Action>(&body) else {
        let names = Action::OF_THE_RUN.map(Action::name).join(", ");
        return text(
            StatusCode::BAD_REQUEST,
            &format!(
                "expected {{\"action\": NAME}}, where NAME is one of: {names}; or drain, with \"worker\": NUMBER\n"
            ),
        );
    };
    match site.ask(action) {
        Ok(()) => {
            tracing::info!(action = action.name(), "asked for by the dashboard");
            text(StatusCode::ACCEPTED, &format!("{}\n", action.words().answer))
        }
        Err(reason @ (NotTaken::NotPossible | NotTaken::NoSuchWorker)) => {
            text(StatusCode::CONFLICT, &format!("{reason}\n"))
        }
        Err(reason @ NotTaken::NotHeard) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{reason}\n")),
    }
}

/// `from`, `to` and `points`, each of which may be left out.
async fn history(site: Arc<Site>, query: &str) -> Answer {
    let number = |name: &str| {
        let value =
            query.split('&').filter_map(|pair| pair.split_once('=')).find(|(other, _)| *other == name);
        value.map(|(_, value)| value.parse::<u64>()).transpose()
    };
    let (Ok(from), Ok(to), Ok(points)) = (number("from"), number("to"), number("points")) else {
        return text(StatusCode::BAD_REQUEST, "expected whole numbers as from, to and points\n");
    };
    let points = points.map_or(POINTS, |points| points.clamp(1, MOST_POINTS as u64) as usize);
    let (from, to) = (from.unwrap_or(1), to.unwrap_or(u64::MAX));
    // May read tens of megabytes of a file.
    let found = tokio::task::spawn_blocking(move || site.history(from, to, points)).await;
    match found {
        Ok(Ok(found)) => json(&found),
        Ok(Err(error)) => {
            text(StatusCode::INTERNAL_SERVER_ERROR, &format!("metrics.jsonl cannot be read: {error}\n"))
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
    }
}

fn stream(site: Arc<Site>, request: &Request<Incoming>) -> Answer {
    // A browser that connects again says what it has.
    let last = request.headers().get("last-event-id").and_then(|value| value.to_str().ok());
    let asked = request.uri().query().and_then(|query| query.strip_prefix("after="));
    let after = last.or(asked).and_then(|step| step.parse().ok()).unwrap_or(0);
    let (sender, receiver) = mpsc::channel(EVENTS_UNDER_WAY);
    tokio::spawn(events::tell(site, after, sender));
    let frames = ReceiverStream::new(receiver).map(|bytes| Ok(Frame::data(bytes)));
    let body = StreamBody::new(frames).boxed_unsync();
    finished(StatusCode::OK, "text/event-stream", body)
}

/// The views of `epoch`, counted from 0.
async fn views(site: &Site, query: &str) -> Answer {
    let Some(Ok(epoch)) = query.strip_prefix("epoch=").map(str::parse) else {
        return text(StatusCode::BAD_REQUEST, "expected a whole number as epoch\n");
    };
    let Some(views) = site.views.clone() else {
        return text(StatusCode::NOT_FOUND, "there are no views: the images are not here\n");
    };
    match tokio::task::spawn_blocking(move || views.draw(epoch)).await {
        Ok(Some(png)) => with_type(StatusCode::OK, "image/png", png),
        _ => text(StatusCode::INTERNAL_SERVER_ERROR, "the views cannot be drawn\n"),
    }
}

fn evaluation_picture(site: &Site, name: &str) -> Answer {
    match site.evaluation_picture(name) {
        Some(jpeg) => with_type(StatusCode::OK, "image/jpeg", jpeg),
        None => text(StatusCode::NOT_FOUND, "no result card has this picture\n"),
    }
}

fn report(site: &Site) -> Answer {
    match std::fs::read(site.folder.join("report.html")) {
        Ok(content) => {
            let mut answer = with_type(StatusCode::OK, "text/html; charset=utf-8", content);
            let policy = HeaderValue::from_static(REPORT_POLICY);
            answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
            answer
        }
        Err(_) => text(StatusCode::NOT_FOUND, "there is no report yet: `evaluate report RUN` makes one\n"),
    }
}

async fn read(body: Incoming) -> Option<Bytes> {
    let whole = timeout(BODY_LIMIT, Limited::new(body, BODY_BYTES).collect()).await;
    Some(whole.ok()?.ok()?.to_bytes())
}

fn refused(refusal: &Refusal) -> Answer {
    let status = match refusal {
        Refusal::Host(_) => StatusCode::MISDIRECTED_REQUEST,
        Refusal::Run => StatusCode::PRECONDITION_FAILED,
        Refusal::Token => StatusCode::UNAUTHORIZED,
        Refusal::User { .. } | Refusal::Origin | Refusal::Secret => StatusCode::FORBIDDEN,
    };
    text(status, &format!("{refusal}\n"))
}

fn text(status: StatusCode, words: &str) -> Answer {
    with_type(status, "text/plain; charset=utf-8", words.to_string())
}

fn html(status: StatusCode, page: String) -> Answer {
    with_type(status, "text/html; charset=utf-8", page)
}

fn file(kind: &'static str, content: &'static str) -> Answer {
    with_type(StatusCode::OK, kind, content)
}

fn json(value: &impl Serialize) -> Answer {
    let text = serde_json::to_vec(value).expect("what is told can be written as JSON");
    with_type(StatusCode::OK, "application/json", text)
}

fn with_type(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Answer {
    finished(status, kind, Full::new(content.into()).boxed_unsync())
}

fn finished(status: StatusCode, kind: &'static str, body: Body) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, kind),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (CONTENT_SECURITY_POLICY, POLICY),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}
