//! What each side shows the other: a token with every call, and a certificate where TLS is used.

use std::fmt;

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity, ServerTlsConfig};
use tonic::{Request, Status};

use crate::Token;
use crate::v1::coordinator_client::CoordinatorClient;

/// The metadata key of the token.
const AUTHORIZATION: &str = "authorization";

/// What stands before the token.
const SCHEME: &str = "Bearer ";

/// A worker's connection to its coordinator; every call shows the token.
pub type Client = CoordinatorClient<InterceptedService<Channel, ShowToken>>;

/// With what a worker gets in, and by what it knows its coordinator.
#[derive(Debug, Clone)]
pub struct Access {
    /// The run's.
    pub token: Token,
    /// Without it, whoever sees the traffic can read it, the token included.
    pub tls: Option<ClientTls>,
}

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub struct Credentials {
    /// The certificate, and those between it and the authority.
    pub certificates_pem: String,
    /// The secret.
    pub key_pem: String,
}

/// How a worker makes sure of its coordinator.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// Certificates as PEM, one of which has signed the coordinator's.
    pub authority_pem: String,
    /// What the worker shows, where the coordinator asks for it.
    pub own: Option<Credentials>,
}

/// How a coordinator shows who it is.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// What it shows.
    pub own: Credentials,
    /// Certificates as PEM, one of which must have signed a worker's; without it workers need none.
    pub authority_pem: Option<String>,
}

impl fmt::Debug for Credentials {
    /// Leaves out the key: what is printed may end up in a log.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Credentials(secret)")
    }
}

impl Credentials {
    fn identity(&self) -> Identity {
        Identity::from_pem(&self.certificates_pem, &self.key_pem)
    }
}

impl ClientTls {
    pub(crate) fn config(&self) -> ClientTlsConfig {
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.authority_pem));
        match &self.own {
            Some(own) => config.identity(own.identity()),
            None => config,
        }
    }
}

impl ServerTls {
    pub(crate) fn config(&self) -> ServerTlsConfig {
        let config = ServerTlsConfig::new().identity(self.own.identity());
        match &self.authority_pem {
            Some(authority) => config.client_ca_root(Certificate::from_pem(authority)),
            None => config,
        }
    }
}

/// Adds the token to each call.
#[derive(Debug, Clone)]
pub struct ShowToken(MetadataValue<Ascii>);

impl ShowToken {
    pub(crate) fn new(token: &Token) -> ShowToken {
        let text = format!("{SCHEME}{}", token.secret());
        let mut value: MetadataValue<Ascii> = text.parse().expect("a token is printable ASCII");
        // Not to be printed, nor to be kept in the tables by which headers are compressed.
        value.set_sensitive(true);
        ShowToken(value)
    }
}

impl Interceptor for ShowToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(AUTHORIZATION, self.0.clone());
        Ok(request)
    }
}

/// Whether a call shows `token`.
///
/// # Errors
/// `UNAUTHENTICATED` with a sentence for the one who started the worker.
pub fn check_token(metadata: &MetadataMap, token: &Token) -> Result<(), Status> {
    let Some(shown) = metadata.get(AUTHORIZATION) else {
        return Err(Status::unauthenticated(
            "a worker needs the token of the run, and this one showed none: give it the coordinator's token file by \
             --token-file, or the token in SIMSIAM_TOKEN",
        ));
    };
    match shown.as_bytes().strip_prefix(SCHEME.as_bytes()) {
        Some(shown) if token.is(shown) => Ok(()),
        _ => Err(Status::unauthenticated(
            "the token of this worker is not that of the run: give it the coordinator's own token file by \
             --token-file, or the token in SIMSIAM_TOKEN",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_runs_token_opens() {
        let (ours, other) = (Token::random().unwrap(), Token::random().unwrap());
        let check =
            |metadata: &MetadataMap, phrase: Option<&str>| match (check_token(metadata, &ours), phrase) {
                (Ok(()), None) => {}
                (Err(status), Some(phrase)) => {
                    assert_eq!(status.code(), tonic::Code::Unauthenticated);
                    assert!(status.message().contains(phrase), "{status}");
                    assert!(!status.message().contains(ours.secret()), "{status}");
                }
                (result, phrase) => panic!("{metadata:?}: {result:?}, expected {phrase:?}"),
            };
        let shown = |token: &Token| ShowToken::new(token).call(Request::new(())).unwrap();
        check(shown(&ours).metadata(), None);
        check(shown(&other).metadata(), Some("not that of the run"));
        check(&MetadataMap::new(), Some("showed none"));
        for text in ["", "Bearer", "Bearer ", ours.secret(), &format!("Basic {}", ours.secret())] {
            let mut metadata = MetadataMap::new();
            metadata.insert(AUTHORIZATION, text.parse().unwrap());
            check(&metadata, Some("not that of the run"));
        }
        assert!(!format!("{:?}", shown(&ours).metadata()).contains(ours.secret()), "it is not printed");
    }
}
