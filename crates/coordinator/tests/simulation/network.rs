//! The simulated network as the coordinator and its workers use it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;

use coordinator::Listener;
use hyper_util::rt::TokioIo;
use protocol::{Access, Client, Token};
use tonic::transport::Uri;
use turmoil::net::{TcpListener, TcpStream};

pub(crate) const COORDINATOR: &str = "coordinator";
pub(crate) const PORT: u16 = 7070;

/// Of a socket in the simulated network.
pub(crate) struct Simulated(TcpListener);

impl Simulated {
    pub(crate) async fn bind(port: u16) -> io::Result<Simulated> {
        Ok(Simulated(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?))
    }
}

impl Listener for Simulated {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

pub(crate) fn token() -> Token {
    Token::parse("0123456789abcdef0123456789abcdef").unwrap()
}

/// A client that connects at its first call, and again whenever its connection has broken.
pub(crate) fn client() -> Client {
    let access = Access { token: token(), tls: None };
    let endpoint = protocol::endpoint(&format!("{COORDINATOR}:{PORT}"), &access).unwrap();
    let connector = tower::service_fn(|to: Uri| {
        let connecting = async move {
            let address = to.authority().unwrap().as_str().to_owned();
            TcpStream::connect(address).await.map(TokioIo::new)
        };
        Box::pin(connecting) as Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>
    });
    protocol::client(endpoint.connect_with_connector_lazy(connector), &access)
}
