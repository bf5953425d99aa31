//! The server: connections with their limits, and the task that reads the run directory.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coordinator::RunDirectory;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use protocol::{Token, TokenError};
use recipe::Recipe;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::access::{Access, Neighbour};
use crate::action::Action;
use crate::address::ADDRESS_FILE;
use crate::live::{Live, Observer, lock};
use crate::rates::Yardsticks;
use crate::record::{Reader, RunRecord};
use crate::site::Site;
use crate::status::Frame;
use crate::{answers, neighbours};

/// How often the run directory is looked at: a glance at two files where nothing has come.
const INTERVAL: Duration = Duration::from_millis(250);

/// Connections at a time; a browser holds one for the events and a few more for a moment.
const MOST_CONNECTIONS: usize = 128;

/// How long a request may take to be written.
const HEADER_LIMIT: Duration = Duration::from_secs(15);

/// How long pages have to take the last words.
const FAREWELL: Duration = Duration::from_secs(1);

/// Draws what the network sees of some images in an epoch, counted from 0, as a PNG.
#[derive(Clone)]
pub struct Views(Arc<dyn Fn(u64) -> Option<Vec<u8>> + Send + Sync>);

impl Views {
    /// By `draw`, which may take a while, and may fail.
    pub fn new(draw: impl Fn(u64) -> Option<Vec<u8>> + Send + Sync + 'static) -> Views {
        Views(Arc::new(draw))
    }

    pub(crate) fn draw(&self, epoch: u64) -> Option<Vec<u8>> {
        (self.0)(epoch)
    }
}

impl fmt::Debug for Views {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Views(…)")
    }
}

/// What a dashboard shows, and to whom.
#[derive(Debug)]
pub struct Settings {
    /// The run directory, of which only files are read.
    pub folder: PathBuf,
    /// Its recipe.
    pub recipe: Recipe,
    /// 16 bytes that no other run has.
    pub run_id: [u8; 16],
    /// Steps in the whole run.
    pub total_steps: u64,
    /// The version of the program.
    pub program_version: String,
    /// The token of the run.
    pub token: Token,
    /// What the workers' rates are measured by.
    pub yardsticks: Yardsticks,
    /// Its views, if they can be drawn.
    pub views: Option<Views>,
}

impl Settings {
    /// Those of the run in `directory`, whose rates are measured by nothing but its recipe, without views.
    pub fn new(directory: &RunDirectory, total_steps: u64, program_version: &str, token: &Token) -> Settings {
        Settings {
            folder: directory.path().to_path_buf(),
            recipe: directory.recipe().clone(),
            run_id: directory.run_id(),
            total_steps,
            program_version: program_version.to_string(),
            token: token.clone(),
            yardsticks: Yardsticks::default(),
            views: None,
        }
    }
}

/// A dashboard that is served.
#[derive(Debug)]
pub struct Dashboard {
    live: Arc<Mutex<Live>>,
    address: SocketAddr,
    /// Where others find it written.
    address_file: PathBuf,
    reader: JoinHandle<()>,
    server: JoinHandle<()>,
    /// Dropped to have the files read for the last time.
    last_read: oneshot::Sender<()>,
    ending: watch::Sender<bool>,
}

/// Why a dashboard cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DashboardError {
    /// Nothing secret can be drawn.
    #[error(transparent)]
    Secret(#[from] TokenError),
    /// The listener is not one.
    #[error("the dashboard has no address: {0}")]
    Address(std::io::Error),
}

impl Dashboard {
    /// Serves the dashboard on `listener`. What a person asks of the run is sent to `actions`.
    ///
    /// # Errors
    /// See [`DashboardError`].
    pub fn start(
        listener: TcpListener,
        settings: Settings,
        actions: mpsc::Sender<Action>,
    ) -> Result<Dashboard, DashboardError> {
        let address = listener.local_addr().map_err(DashboardError::Address)?;
        let run_id = settings.run_id.map(|byte| format!("{byte:02x}")).concat();
        let live = Arc::new(Mutex::new(Live::default()));
        let (first_read, is_read) = watch::channel(false);
        let (ending, is_ending) = watch::channel(false);
        let (last_read, is_last_read) = oneshot::channel();
        let site = Arc::new(Site {
            folder: settings.folder,
            frame: Frame {
                recipe: settings.recipe,
                total_steps: Some(settings.total_steps),
                yardsticks: settings.yardsticks,
            },
            program_version: settings.program_version,
            views: settings.views,
            instance: Token::random()?.secret().chars().take(16).collect(),
            access: Access::new(settings.token, !address.ip().is_loopback(), &run_id)?,
            record: Mutex::new(RunRecord::default()),
            live: Arc::clone(&live),
            actions,
            is_read,
            ending: is_ending.clone(),
        });
        let address_file = site.folder.join(ADDRESS_FILE);
        // Only `coordinator status` is the poorer without it.
        if let Err(error) = fs::write(&address_file, format!("http://{}\n", near(address))) {
            tracing::warn!("write {}: {error}", address_file.display());
        }
        Ok(Dashboard {
            live,
            address,
            address_file,
            reader: tokio::spawn(read(Arc::clone(&site), first_read, is_last_read)),
            server: tokio::spawn(accept(listener, site, is_ending)),
            last_read,
            ending,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the control loop tells.
    pub fn observer(&self) -> Observer {
        Observer(Arc::clone(&self.live))
    }

    /// Shows pages that are open how the run ended, and ends.
    pub async fn end(self) {
        drop(self.last_read);
        // A reader that panicked has nothing more to tell.
        let _ = self.reader.await;
        let _ = self.ending.send(true);
        let _ = self.server.await;
        // It may be gone with its folder.
        let _ = fs::remove_file(self.address_file);
    }
}

/// Where this machine's own programs reach who listens on `address`.
fn near(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Reads the run directory as it grows, until the last time is asked for.
async fn read(site: Arc<Site>, first_read: watch::Sender<bool>, mut last: oneshot::Receiver<()>) {
    let mut reader = Reader::new(&site.folder);
    loop {
        // Asked first, so that what was written before is read.
        let is_last = last.try_recv() != Err(oneshot::error::TryRecvError::Empty);
        let place = Arc::clone(&site);
        let reading = spawn_blocking(move || {
            let result = reader.read(|change| change(&mut lock(&place.record)));
            (reader, result)
        });
        let Ok((back, result)) = reading.await else { return };
        reader = back;
        if let Err(error) = result {
            tracing::debug!("the dashboard cannot read the run directory: {error}");
        }
        first_read.send_if_modified(|is_read| !std::mem::replace(is_read, true));
        if is_last {
            return;
        }
        tokio::select! {
            () = sleep(INTERVAL) => {}
            _ = &mut last => {
                // Once more, for what came meanwhile.
                last = oneshot::channel().1;
            }
        }
    }
}

/// Takes connections until the end.
async fn accept(listener: TcpListener, site: Arc<Site>, mut ending: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place,
            _ = ending.wait_for(|is_ending| *is_ending) => break,
        };
        let Ok(place) = place else { break };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ending.wait_for(|is_ending| *is_ending) => break,
        };
        match stream {
            Ok((stream, peer)) => {
                let (site, ending) = (Arc::clone(&site), ending.clone());
                connections.spawn(async move {
                    serve(stream, peer, site, ending).await;
                    drop(place);
                });
            }
            // Too many open files, say: others may be closed in a moment.
            Err(error) => {
                tracing::debug!("the dashboard cannot take a connection: {error}");
                sleep(INTERVAL).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    let all = async { while connections.join_next().await.is_some() {} };
    let _ = timeout(FAREWELL, all).await;
}

async fn serve(stream: TcpStream, peer: SocketAddr, site: Arc<Site>, mut ending: watch::Receiver<bool>) {
    let neighbour = match stream.local_addr() {
        Ok(own) if own.ip().is_loopback() => neighbours::of(peer, own),
        _ => Neighbour::Own,
    };
    // Events are small and to be there at once.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let site = Arc::clone(&site);
        async move { Ok::<_, std::convert::Infallible>(answers::answer(site, request, neighbour).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // What a stranger sends wrongly is nobody's concern.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = async { drop(ending.wait_for(|is_ending| *is_ending).await) } => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}
