//! Who gets in: the token and the certificates that coordinator and workers are given.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::builder::FalseyValueParser;
use protocol::{Access, ClientTls, Credentials, ServerTls, TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, Token};

/// More than any token or chain of certificates has: another file was named.
const FILE_BYTES: u64 = 1 << 20;

/// Group and everyone else.
const OTHERS: u32 = 0o077;

/// Where Docker and Kubernetes show a container its secrets: nobody outside can open them there, whatever their mode.
const SECRETS_OF_A_CONTAINER: &str = "/run/secrets";

#[derive(Debug, clap::Args)]
pub(crate) struct SecurityArguments {
    /// File with the token of the run, as `coordinator token FILE` makes it; without this it is taken from SIMSIAM_TOKEN
    #[arg(long, value_name = "FILE", env = TOKEN_FILE_VARIABLE)]
    token_file: Option<PathBuf>,
    /// Certificate to show the other side, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key of this certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Authority by which the other side's certificate is checked, as PEM; a coordinator with one lets in only workers
    /// that show a certificate
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Allow addresses that other machines reach without TLS: whoever sees the traffic can then read it, token included
    #[arg(long, env = "SIMSIAM_INSECURE_NETWORK", value_parser = FalseyValueParser::new())]
    pub(crate) insecure_network: bool,
}

impl SecurityArguments {
    /// Reads the files.
    pub(crate) fn read(&self) -> Result<Security> {
        let read = |path: &Option<PathBuf>| path.as_deref().map(read_pem).transpose();
        let own = match (read(&self.tls_cert)?, &self.tls_key) {
            (Some(certificates_pem), Some(key)) => {
                warn_if_others_read(key);
                Some(Credentials { certificates_pem, key_pem: read_pem(key)? })
            }
            _ => None,
        };
        Ok(Security {
            token: read_token(self.token_file.as_deref())?,
            own,
            authority_pem: read(&self.tls_ca)?,
            insecure_network: self.insecure_network,
        })
    }

    /// The flags by which a worker of this coordinator gets in, for one on this machine: it shows the coordinator's own
    /// certificate. Its token comes in its environment.
    pub(crate) fn for_local_worker(&self) -> Vec<OsString> {
        [("--tls-ca", &self.tls_ca), ("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key)]
            .into_iter()
            .filter_map(|(flag, file)| Some([flag.into(), file.as_ref()?.into()]))
            .flatten()
            .collect()
    }

    /// The same as a person types them elsewhere, with files of that machine.
    pub(crate) fn for_remote_worker(&self) -> String {
        [
            (" --token-file FILE", self.token_file.is_some()),
            (" --tls-ca FILE", self.tls_cert.is_some()),
            (" --tls-cert FILE --tls-key FILE", self.tls_ca.is_some()),
        ]
        .into_iter()
        .filter_map(|(flag, is_needed)| is_needed.then_some(flag))
        .collect()
    }
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Security {
    token: Option<Token>,
    own: Option<Credentials>,
    authority_pem: Option<String>,
    insecure_network: bool,
}

impl Security {
    /// Whether an address that others reach may be listened on.
    pub(crate) fn allow_others(&self, ip: IpAddr) -> Result<()> {
        ensure!(
            self.token.is_some(),
            "{ip} can be reached from other machines, so workers must show a token; make one with `coordinator token \
             token.txt`, and give --token-file token.txt to the coordinator and to each worker"
        );
        ensure!(
            self.is_encrypted() || self.insecure_network,
            "{ip} can be reached from other machines, and without TLS whoever sees the traffic can read it, token \
             included; make certificates with `coordinator certs certs --host NAME`, or, in a network where that is \
             fine, add --insecure-network"
        );
        Ok(())
    }

    /// Whether traffic that others may read was allowed.
    pub(crate) fn insecure_network(&self) -> bool {
        self.insecure_network
    }

    fn is_encrypted(&self) -> bool {
        self.own.is_some() || self.authority_pem.is_some()
    }

    /// What a coordinator with so many workers asks for and shows. A token that nobody was given is drawn, and handed to
    /// the workers of this machine.
    pub(crate) fn of_coordinator(self, local: u32, remote: u32) -> Result<(Token, Option<ServerTls>)> {
        ensure!(
            remote == 0 || self.token.is_some(),
            "--remote-workers {remote}: they must show a token; make one with `coordinator token token.txt`, and give \
             --token-file token.txt to the coordinator and to each worker"
        );
        let token = self.token.map_or_else(Token::random, Ok)?;
        let tls = match (self.own, self.authority_pem) {
            (None, None) => None,
            (None, Some(_)) => bail!(
                "--tls-ca: a coordinator that checks certificates shows one too; give --tls-cert and --tls-key"
            ),
            (Some(_), None) if local > 0 => bail!(
                "--tls-cert: the workers of this machine need --tls-ca to check it; give the authority that has signed \
                 it, or start no workers here (--workers 0)"
            ),
            (Some(own), authority_pem) => Some(ServerTls { own, authority_pem }),
        };
        Ok((token, tls))
    }

    /// With what a worker gets in at `coordinator` (HOST:PORT).
    pub(crate) fn of_worker(self, coordinator: &str) -> Result<Access> {
        let is_open = coordinator.rsplit_once(':').is_some_and(|(host, _)| !is_this_machine(host));
        ensure!(
            !is_open || self.is_encrypted() || self.insecure_network,
            "--join {coordinator}: without TLS whoever sees the traffic can read the token; give --tls-ca, or, in a \
             network where that is fine, add --insecure-network"
        );
        let token = self.token.with_context(|| {
            format!(
                "a worker needs the token of the run: give the coordinator's token file by --token-file, or the token in \
                 {TOKEN_VARIABLE}"
            )
        })?;
        let tls = match (self.authority_pem, self.own) {
            (Some(authority_pem), own) => Some(ClientTls { authority_pem, own }),
            (None, None) => None,
            (None, Some(_)) => bail!(
                "--tls-cert: a worker that shows a certificate checks the coordinator's too; give --tls-ca"
            ),
        };
        Ok(Access { token, tls })
    }
}

/// The token in `file`, or in the environment. No argument holds it: those of a process can be read by everyone on its
/// machine.
pub(crate) fn read_token(file: Option<&Path>) -> Result<Option<Token>> {
    if let Some(path) = file {
        warn_if_others_read(path);
        let token = Token::parse(&read_text(path)?);
        return Ok(Some(token.with_context(|| path.display().to_string())?));
    }
    match std::env::var(TOKEN_VARIABLE) {
        Ok(text) => Ok(Some(Token::parse(&text).context(TOKEN_VARIABLE)?)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        // The error itself would show it.
        Err(std::env::VarError::NotUnicode(_)) => bail!("{TOKEN_VARIABLE}: expected text in UTF-8"),
    }
}

/// A name of the network may stand for another machine, so only these are certain.
pub(crate) fn is_this_machine(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn read_pem(path: &Path) -> Result<String> {
    let text = read_text(path)?;
    ensure!(
        text.contains("-----BEGIN "),
        "{}: expected PEM, a text with a line that begins with -----BEGIN; make certificates with `coordinator certs`",
        path.display()
    );
    Ok(text)
}

/// The text of a small file, which no error repeats.
fn read_text(path: &Path) -> Result<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let user = rustix::process::geteuid().as_raw();
    let bytes = read().map_err(|error| {
        let advice = advice(error.kind(), user);
        anyhow::Error::new(error).context(format!("read {}{advice}", path.display()))
    })?;
    String::from_utf8(bytes).map_err(|_| anyhow::anyhow!("{}: expected text in UTF-8", path.display()))
}

/// What is to be done about a file that cannot be read, if that is known. In a container the user is another than outside.
fn advice(error: std::io::ErrorKind, user: u32) -> String {
    match error {
        std::io::ErrorKind::PermissionDenied => {
            format!(" (let user {user}, as whom this process runs, read it and look into its folder)")
        }
        _ => String::new(),
    }
}

fn warn_if_others_read(path: &Path) {
    // A file that cannot be looked at cannot be read either, which is said then.
    let mode = path.metadata().map_or(0, |metadata| metadata.permissions().mode());
    if is_open_to_others(path, mode) {
        let path = path.display();
        tracing::warn!("{path} holds a secret, and others of this machine may read it: chmod 600 {path}");
    }
}

fn is_open_to_others(path: &Path, mode: u32) -> bool {
    mode & OTHERS != 0 && !path.starts_with(SECRETS_OF_A_CONTAINER)
}

#[cfg(test)]
impl Security {
    /// With a token, and with or without the waiver of TLS.
    pub(crate) fn for_tests(insecure_network: bool) -> Security {
        let token = Some(Token::random().expect("this system has randomness"));
        Security { token, own: None, authority_pem: None, insecure_network }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_not_read_a_file_is_told_which_user_must() {
        assert!(advice(std::io::ErrorKind::PermissionDenied, 10001).contains("let user 10001"));
        assert_eq!(advice(std::io::ErrorKind::NotFound, 10001), "");
    }

    fn security(token: bool, tls: bool, insecure_network: bool) -> Security {
        Security {
            token: token.then(|| Token::random().unwrap()),
            own: None,
            authority_pem: tls.then(String::new),
            insecure_network,
        }
    }

    fn check<T>(result: Result<T>, problem: Option<&str>) {
        match (result.err().map(|error| format!("{error:#}")), problem) {
            (None, None) => {}
            (Some(sentence), Some(problem)) => assert!(sentence.contains(problem), "{sentence}"),
            (error, problem) => panic!("{error:?}, expected {problem:?}"),
        }
    }

    #[test]
    fn other_machines_need_a_token_and_tls_or_a_waiver() {
        for (token, tls, insecure_network, problem) in [
            (false, false, false, Some("coordinator token")),
            (false, true, true, Some("coordinator token")),
            (true, false, false, Some("--insecure-network")),
            (true, false, true, None),
            (true, true, false, None),
        ] {
            check(security(token, tls, insecure_network).allow_others([10, 0, 0, 1].into()), problem);
        }
    }

    #[test]
    fn a_worker_shows_its_token_only_where_nobody_overhears_it() {
        for (join, token, tls, insecure_network, problem) in [
            ("127.0.0.1:7070", true, false, false, None),
            ("[::1]:7070", true, false, false, None),
            ("localhost:7070", true, false, false, None),
            ("127.0.0.1:7070", false, false, false, Some("needs the token")),
            ("10.0.0.1:7070", true, false, false, Some("--tls-ca")),
            ("trainer:7070", true, false, false, Some("--tls-ca")),
            ("trainer:7070", true, false, true, None),
            ("trainer:7070", true, true, false, None),
        ] {
            check(security(token, tls, insecure_network).of_worker(join), problem);
        }
    }

    #[test]
    fn secrets_are_for_their_owner_or_in_a_container() {
        for (path, mode, is_open) in [
            ("token.txt", 0o100_600, false),
            ("token.txt", 0o100_640, true),
            ("token.txt", 0o100_604, true),
            ("/run/secrets/token", 0o100_644, false),
            ("/run/secrets/simsiam/token", 0o100_440, false),
            ("/run/secrets-of-mine/token", 0o100_644, true),
        ] {
            assert_eq!(is_open_to_others(Path::new(path), mode), is_open, "{path} {mode:o}");
        }
    }

    #[test]
    fn a_coordinator_draws_the_token_of_its_own_workers_only() {
        check(security(false, false, false).of_coordinator(2, 0), None);
        check(security(false, false, false).of_coordinator(2, 1), Some("coordinator token"));
        check(security(true, false, false).of_coordinator(0, 1), None);
        check(security(true, true, false).of_coordinator(0, 1), Some("--tls-cert"));
        let own = || Some(Credentials { certificates_pem: String::new(), key_pem: String::new() });
        let shown = |local| Security { own: own(), ..security(true, false, false) }.of_coordinator(local, 1);
        check(shown(1), Some("--tls-ca"));
        check(shown(0), None);
    }
}
