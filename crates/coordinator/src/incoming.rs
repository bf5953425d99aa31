//! The connections of the server: counted, and closed if nobody shows the token in time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Sleep, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// How long a connection may last before a call on it has shown the token. A worker calls at once, so this is long
/// even over a slow network; a stranger holds its place for no longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Places beside those of workers, so that strangers do not keep workers out at once.
const STRANGERS: usize = 64;

/// Until a new attempt to accept: what the system lacks for another connection (files, memory) may come back.
const PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from: a socket, or a simulated network.
pub trait Listener: Send + 'static {
    /// One connection, before anything was read from it.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection, and where it comes from. What is dropped before it resolves has taken none.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// Where others connect to.
    ///
    /// # Errors
    /// Those of the system.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((stream, from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}

type Incoming<S> = ReceiverStream<io::Result<Connection<S>>>;

/// Accepts up to `most_workers` connections twice over, since one that comes back may be there before its old
/// connection is gone, and some for strangers. Who comes beyond that waits in the system's queue.
pub(crate) fn accept<L: Listener>(listener: L, most_workers: usize) -> Incoming<L::Stream> {
    accept_with(listener, 2 * most_workers + STRANGERS, PATIENCE)
}

fn accept_with<L: Listener>(mut listener: L, places: usize, patience: Duration) -> Incoming<L::Stream> {
    let places = Arc::new(Semaphore::new(places));
    let (connections, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                next = accept_one(&mut listener, &places, patience) => next,
                // The server has ended; the listener goes with this task.
                () = connections.closed() => return,
            };
            match next {
                Ok(connection) => drop(connections.send(Ok(connection)).await),
                Err(error) => {
                    tracing::warn!("accept a connection: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(stream)
}

async fn accept_one<L: Listener>(
    listener: &mut L,
    places: &Arc<Semaphore>,
    patience: Duration,
) -> io::Result<Connection<L::Stream>> {
    let place = Arc::clone(places).acquire_owned().await.expect("the semaphore is never closed");
    let (stream, from) = listener.accept().await?;
    let caller = Caller { from, has_shown_the_token: Arc::default() };
    Ok(Connection { stream, caller, patience: Some(Box::pin(sleep(patience))), _place: place })
}

/// Who is at the other end, as every call sees it.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) from: SocketAddr,
    has_shown_the_token: Arc<AtomicBool>,
}

impl Caller {
    /// From now on the connection may last.
    pub(crate) fn is_known(&self) {
        self.has_shown_the_token.store(true, Ordering::Relaxed);
    }
}

/// A connection that has a place among those accepted.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    caller: Caller,
    /// Until the token was shown.
    patience: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(patience) = &mut this.patience {
            if this.caller.has_shown_the_token.load(Ordering::Relaxed) {
                this.patience = None;
            } else if patience.as_mut().poll(context).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio_stream::StreamExt;

    async fn read(connection: &mut Connection<TcpStream>) -> io::Result<usize> {
        let mut bytes = [0; 8];
        let mut buffer = ReadBuf::new(&mut bytes);
        poll_fn(|context| Pin::new(&mut *connection).poll_read(context, &mut buffer)).await?;
        Ok(buffer.filled().len())
    }

    #[tokio::test]
    async fn a_mute_stranger_loses_its_place_and_who_waits_gets_it() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = accept_with(listener, 1, Duration::from_millis(50));
        let _stranger = TcpStream::connect(address).await.unwrap();
        let worker = TcpStream::connect(address).await.unwrap();
        let mut first = incoming.next().await.unwrap().unwrap();
        let refused = read(&mut first).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        drop(first);

        let mut second = incoming.next().await.unwrap().unwrap();
        assert_eq!(second.caller.from, worker.local_addr().unwrap());
        second.connect_info().is_known();
        // Longer than the patience with strangers.
        sleep(Duration::from_millis(80)).await;
        worker.writable().await.unwrap();
        worker.try_write(b"here").unwrap();
        assert_eq!(read(&mut second).await.unwrap(), 4);
    }

    #[tokio::test]
    async fn the_port_is_free_once_nobody_accepts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(accept(listener, 1));
        while TcpListener::bind(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    }
}
