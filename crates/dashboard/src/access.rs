//! Who may look, and who may act.
//!
//! On an address of this machine alone, its own user may look (see `neighbours.rs`); elsewhere, who shows the run's
//! token, as a header or once in a form that is answered with a cookie. Acting asks for more, so that no other page in
//! the same browser can do it: a secret of this process that only the page holds, in a header that no form can send,
//! from the page's own origin. A name that is not this machine's own is refused where no token is asked for: that is
//! how a page elsewhere would get around the browser's rules, by letting its name point here.

use std::net::IpAddr;

use hyper::header::{AUTHORIZATION, COOKIE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::uri::Authority;
use protocol::{Token, TokenError};

/// The header that an action shows the page's secret in.
pub(crate) const SECRET_HEADER: &str = "x-simsiam-secret";

/// The header by which a program of the own user says that it is none that a page elsewhere commands: a browser sends
/// such a header to another site only after it has asked, which is refused.
pub(crate) const PROGRAM_HEADER: &str = "x-simsiam-program";

/// The header by which a program says which run it means, by its id.
pub(crate) const RUN_HEADER: &str = "x-simsiam-run";

/// By which browsers say where a request comes from.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Why a request is not answered, in a sentence for who sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "this page was asked for as {0:?}, expected an address of this machine, such as 127.0.0.1 or localhost; open \
         it under the address that the coordinator printed"
    )]
    Host(String),
    #[error("the dashboard of another run is here; the one that is meant has ended, or has another address")]
    Run,
    #[error(
        "this needs the token of the run: show it as `Authorization: Bearer TOKEN`, or sign in at / with a browser"
    )]
    Token,
    #[error(
        "{} asks, but the run is that of user {expected}: ask as that user, or show the token of the run as \
         `Authorization: Bearer TOKEN`",
        name(*.found)
    )]
    User { found: Option<u32>, expected: u32 },
    #[error("an action was asked for from another page: use the dashboard's own buttons")]
    Origin,
    #[error("an action needs the secret of the page: reload it, and try again")]
    Secret,
}

/// Who asks, beyond what the request says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// The user of this process, or one that cannot be told from it.
    Own,
    /// Another user of this machine, or one that its tables do not have.
    Other { found: Option<u32>, expected: u32 },
}

fn name(user: Option<u32>) -> String {
    user.map_or_else(
        || "a user that cannot be told".to_string(),
        |user| format!("this machine's user {user}"),
    )
}

/// Who may look, and who may act.
#[derive(Debug)]
pub(crate) struct Access {
    /// The token of the run, which opens everything.
    token: Token,
    /// Whether others than this machine reach the page, so that everyone shows the token.
    asks_token: bool,
    /// What a browser that has shown the token keeps.
    session: Token,
    /// The page's own.
    secret: Token,
    /// 32 hexadecimal digits.
    run_id: String,
    /// Cookies are not told apart by port, so each run has its own.
    cookie: String,
}

impl Access {
    /// Draws the secrets of this process.
    pub(crate) fn new(token: Token, asks_token: bool, run_id: &str) -> Result<Access, TokenError> {
        let cookie = format!("simsiam-{}", &run_id[..run_id.len().min(16)]);
        let (session, secret) = (Token::random()?, Token::random()?);
        Ok(Access { token, asks_token, session, secret, run_id: run_id.to_string(), cookie })
    }

    /// What the page shows when it acts.
    pub(crate) fn secret(&self) -> &str {
        self.secret.secret()
    }

    /// Whether a person can become known by a form.
    pub(crate) fn asks_token(&self) -> bool {
        self.asks_token
    }

    /// Whether the name under which this was asked for is one that it has.
    pub(crate) fn check_host(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = text(headers, &HOST).unwrap_or_default();
        let is_ours = host.parse::<Authority>().is_ok_and(|authority| is_this_machine(authority.host()));
        match self.asks_token || is_ours {
            true => Ok(()),
            false => Err(Refusal::Host(host.chars().take(200).collect())),
        }
    }

    /// Whether this is the run that is meant, where `headers` say which one is. Its id is no secret.
    pub(crate) fn check_run(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        match headers.get(RUN_HEADER).is_none_or(|run_id| run_id == self.run_id.as_str()) {
            true => Ok(()),
            false => Err(Refusal::Run),
        }
    }

    /// Whether `headers` may be answered with what the run is.
    pub(crate) fn may_look(&self, headers: &HeaderMap, neighbour: Neighbour) -> Result<(), Refusal> {
        if self.shows_token(headers) {
            return Ok(());
        }
        match (self.asks_token, neighbour) {
            (true, _) if self.has_session(headers) => Ok(()),
            (true, _) => Err(Refusal::Token),
            (false, Neighbour::Own) => Ok(()),
            (false, Neighbour::Other { found, expected }) => Err(Refusal::User { found, expected }),
        }
    }

    /// Whether an action that is asked for by one who may look is asked for by the page itself, by a program that has
    /// the token, or, where the own user needs none, by one that says that it is no browser.
    pub(crate) fn may_act(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = text(headers, &HOST).unwrap_or_default();
        let is_own = |origin: &str| {
            ["http://", "https://"].iter().any(|scheme| origin.strip_prefix(scheme) == Some(host))
        };
        let comes_from_elsewhere = text(headers, &ORIGIN).is_some_and(|origin| !is_own(origin))
            || headers.get(FETCH_SITE).is_some_and(|site| site != "same-origin")
            || (headers.contains_key(ORIGIN) && text(headers, &ORIGIN).is_none());
        if comes_from_elsewhere {
            return Err(Refusal::Origin);
        }
        let secret = headers.get(SECRET_HEADER);
        let is_page = secret.is_some_and(|secret| self.secret.is(secret.as_bytes()));
        let is_program = !self.asks_token
            && headers.contains_key(PROGRAM_HEADER)
            && !headers.contains_key(ORIGIN)
            && !headers.contains_key(FETCH_SITE);
        match is_page || is_program || self.shows_token(headers) {
            true => Ok(()),
            false => Err(Refusal::Secret),
        }
    }

    /// The cookie for a browser that shows `token`; `None` if it is another one.
    pub(crate) fn sign_in(&self, token: &str) -> Option<String> {
        let is_known = self.asks_token && self.token.is(token.trim().as_bytes());
        let cookie =
            || format!("{}={}; Path=/; HttpOnly; SameSite=Strict", self.cookie, self.session.secret());
        is_known.then(cookie)
    }

    fn shows_token(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        shown.is_some_and(|shown| self.token.is(shown))
    }

    fn has_session(&self, headers: &HeaderMap) -> bool {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs =
            cookies.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.any(|(name, value)| name == self.cookie && self.session.is(value.as_bytes()))
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// A name of the network may stand for another machine, so only these are certain.
pub(crate) fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn access(asks_token: bool) -> Access {
        Access::new(Token::random().unwrap(), asks_token, "0123456789abcdef0123456789abcdef").unwrap()
    }

    #[test]
    fn only_names_of_this_machine_are_answered_without_a_token() {
        let (near, open) = (access(false), access(true));
        for (host, is_ours) in [
            ("127.0.0.1:7080", true),
            ("localhost:9000", true),
            ("LOCALHOST", true),
            ("[::1]:7080", true),
            ("127.9.9.9", true),
            ("trainer:7080", false),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com:7080", false),
            ("10.0.0.1:7080", false),
            ("", false),
            ("a b", false),
        ] {
            let headers = headers(&[("host", host)]);
            assert_eq!(near.check_host(&headers).is_ok(), is_ours, "{host}");
            assert!(open.check_host(&headers).is_ok());
        }
        assert!(near.check_host(&HeaderMap::new()).is_err());
    }

    #[test]
    fn who_may_look_is_the_own_user_or_has_the_token() {
        let other = Neighbour::Other { found: Some(1001), expected: 1000 };
        for asks_token in [false, true] {
            let access = access(asks_token);
            let bearer = format!("Bearer {}", access.token.secret());
            let cookie = format!("{}={}", access.cookie, access.session.secret());
            let two = format!("other=1; {cookie}");
            let wrong = format!("{}={}", access.cookie, access.secret.secret());
            for (pairs, own, others) in [
                (vec![], !asks_token, false),
                (vec![("authorization", bearer.as_str())], true, true),
                (vec![("authorization", "Bearer nothing")], !asks_token, false),
                (vec![("cookie", cookie.as_str())], true, asks_token),
                (vec![("cookie", two.as_str())], true, asks_token),
                (vec![("cookie", wrong.as_str())], !asks_token, false),
            ] {
                let headers = headers(&pairs);
                assert_eq!(access.may_look(&headers, Neighbour::Own).is_ok(), own, "{asks_token} {pairs:?}");
                assert_eq!(access.may_look(&headers, other).is_ok(), others, "{asks_token} {pairs:?}");
            }
        }
    }

    #[test]
    fn only_the_page_itself_may_act() {
        let access = access(false);
        let (secret, bearer) = (access.secret().to_string(), format!("Bearer {}", access.token.secret()));
        let page = ("x-simsiam-secret", secret.as_str());
        let host = ("host", "127.0.0.1:7080");
        for (pairs, refusal) in [
            (vec![host, page, ("origin", "http://127.0.0.1:7080")], None),
            (vec![host, page, ("origin", "https://127.0.0.1:7080")], None),
            (vec![host, page], None),
            (vec![host, page, ("sec-fetch-site", "same-origin")], None),
            (vec![host, ("authorization", bearer.as_str())], None),
            (vec![host], Some(Refusal::Secret)),
            (vec![host, ("x-simsiam-secret", "guess")], Some(Refusal::Secret)),
            (vec![host, page, ("origin", "http://127.0.0.1:9999")], Some(Refusal::Origin)),
            (vec![host, page, ("origin", "http://evil.example")], Some(Refusal::Origin)),
            (vec![host, page, ("origin", "null")], Some(Refusal::Origin)),
            (vec![host, page, ("sec-fetch-site", "cross-site")], Some(Refusal::Origin)),
            (vec![host, page, ("sec-fetch-site", "same-site")], Some(Refusal::Origin)),
            // A program of the own user, which a browser that is told to pass for one cannot be.
            (vec![host, (PROGRAM_HEADER, "1")], None),
            (vec![host, (PROGRAM_HEADER, "1"), ("sec-fetch-site", "same-origin")], Some(Refusal::Secret)),
            (vec![host, (PROGRAM_HEADER, "1"), ("origin", "http://127.0.0.1:7080")], Some(Refusal::Secret)),
        ] {
            assert_eq!(access.may_act(&headers(&pairs)).err(), refusal, "{pairs:?}");
        }
    }

    #[test]
    fn a_token_that_was_shown_once_opens_by_its_cookie() {
        let access = access(true);
        assert_eq!(access.sign_in("0123456789abcdef0123456789abcdef"), None);
        let cookie = access.sign_in(&format!(" {}\n", access.token.secret())).unwrap();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"));
        assert!(!cookie.contains(access.token.secret()), "the token itself is not kept");
        let pair = cookie.split(';').next().unwrap();
        assert_eq!(access.may_look(&headers(&[("cookie", pair)]), Neighbour::Own), Ok(()));
    }
}
