//! Whom to ask about a run, and whether they may be shown the token.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use hyper::Uri;
use protocol::Token;

use crate::access::is_this_machine;
use crate::ask::AskError;
use crate::timeline::Timeline;

/// The file of a run directory that says where its dashboard is, while there is one.
pub(crate) const ADDRESS_FILE: &str = "dashboard.url";

/// More than the line that a journal begins with.
const LINE_BYTES: u64 = 4096;

/// Where the dashboard of a run is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub(crate) url: String,
    /// The run that is meant, where that is known. A coordinator that was killed leaves its address behind, and by now
    /// another run may have its dashboard there.
    pub(crate) run_id: Option<String>,
}

impl Address {
    /// Of whichever run is served at `url` (`http://HOST:PORT`).
    pub fn new(url: &str) -> Address {
        Address { url: url.trim().trim_end_matches('/').to_string(), run_id: None }
    }

    /// Of the run in `folder`, as its coordinator wrote it down.
    ///
    /// # Errors
    /// [`AskError::NoDashboard`], and [`AskError::NotARun`] for a folder that does not say which run it is.
    pub fn of_run(folder: &Path) -> Result<Address, AskError> {
        let url = fs::read_to_string(folder.join(ADDRESS_FILE))
            .map_err(|_| AskError::NoDashboard { path: folder.to_path_buf() })?;
        let run_id = run_id(folder).ok_or_else(|| AskError::NotARun {
            path: folder.to_path_buf(),
            reason: "its journal.jsonl does not begin with the id of a run".to_string(),
        })?;
        Ok(Address { run_id: Some(run_id), ..Address::new(&url) })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.url)
    }
}

/// As the first line of the journal has it.
fn run_id(folder: &Path) -> Option<String> {
    let mut line = Vec::new();
    let file = File::open(folder.join("journal.jsonl")).ok()?;
    BufReader::new(file.take(LINE_BYTES)).read_until(b'\n', &mut line).ok()?;
    let mut timeline = Timeline::default();
    timeline.hear(&line);
    timeline.run_id
}

/// What a coordinator is shown.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// The token of the run.
    pub token: Option<Token>,
    /// Whether it may go to another machine without TLS.
    pub insecure_network: bool,
}

impl Credentials {
    /// The token for who answers at `url`, if there is one. It is shown only where nobody overhears it.
    pub(crate) fn token_for(&self, url: &str) -> Result<Option<&Token>, AskError> {
        // Read as the client reads it, which connects to what it takes for the host.
        let uri = url.parse::<Uri>().unwrap_or_default();
        let is_safe = uri.scheme_str() == Some("https") || uri.host().is_some_and(is_this_machine);
        match self.token.is_none() || is_safe || self.insecure_network {
            true => Ok(self.token.as_ref()),
            false => Err(AskError::Overheard { url: url.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_only_where_nobody_overhears_it() {
        let known = Credentials { token: Some(Token::random().unwrap()), insecure_network: false };
        let careless = Credentials { insecure_network: true, ..known.clone() };
        for (url, is_safe) in [
            ("http://127.0.0.1:7080", true),
            ("http://[::1]:7080/", true),
            ("http://localhost:7080", true),
            ("https://trainer:1/a:b", true),
            ("http://trainer", false),
            ("http://192.0.2.7:7080", false),
            // Its host is the other machine, by a user of this name.
            ("http://127.0.0.1:7080@192.0.2.7/", false),
            ("http://192.0.2.7#127.0.0.1", false),
            ("127.0.0.1", true),
            ("no address", false),
            ("", false),
        ] {
            assert_eq!(known.token_for(url).is_ok(), is_safe, "{url}");
            assert_eq!(careless.token_for(url).unwrap(), known.token.as_ref(), "{url}");
            assert_eq!(Credentials::default().token_for(url).unwrap(), None, "{url}");
        }
        let error = known.token_for("http://192.0.2.7:7080").unwrap_err().to_string();
        assert!(error.contains("--insecure-network"), "{error}");
    }

    #[test]
    fn a_run_says_who_it_is_and_where() {
        let folder = tempfile::tempdir().unwrap();
        let found = || Address::of_run(folder.path());
        assert!(matches!(found(), Err(AskError::NoDashboard { .. })));
        fs::write(folder.path().join(ADDRESS_FILE), "http://127.0.0.1:7080/\n").unwrap();
        for journal in ["", "{}\n", "\u{1}", r#"{"unix_time_ms":1,"event":"opened","step":1}"#] {
            fs::write(folder.path().join("journal.jsonl"), journal).unwrap();
            assert!(matches!(found(), Err(AskError::NotARun { .. })), "{journal:?}");
        }
        let created = r#"{"unix_time_ms":1,"event":"created","run_id":"ab","program_version":"1"}"#;
        fs::write(folder.path().join("journal.jsonl"), format!("{created}\n{{}}\n")).unwrap();
        let expected = Address { url: "http://127.0.0.1:7080".to_string(), run_id: Some("ab".to_string()) };
        assert_eq!(found().unwrap(), expected);
    }
}
