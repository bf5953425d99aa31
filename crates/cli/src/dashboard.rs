//! Where a coordinator serves its dashboard.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use coordinator::RunDirectory;
use dashboard::{Action, Dashboard, Settings};
use protocol::Token;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::display::Screen;
use crate::security::Security;
use crate::{PROGRAM_VERSION, network};

/// Beside 7070, at which coordinators of several machines listen, and none of TensorBoard's (6006) or Prometheus' (9090).
const DEFAULT: &str = "127.0.0.1:7080";

/// Where there is another dashboard already.
const ANY_PORT: &str = "127.0.0.1:0";

#[derive(Debug, clap::Args)]
pub(crate) struct DashboardArguments {
    /// Address of the dashboard, a page about the run; port 0 takes a free one. Where other machines reach it, it asks for
    /// the run's token [default: 127.0.0.1:7080, or a free port if that is taken]
    #[arg(long, value_name = "HOST:PORT", env = "SIMSIAM_DASHBOARD")]
    dashboard: Option<String>,
    /// Serve no dashboard, wherever it would be
    #[arg(long)]
    no_dashboard: bool,
}

impl DashboardArguments {
    /// Where it is served, if it is. Others than this machine reach it only where `security` allows that.
    pub(crate) fn place(&self, security: &Security) -> Result<Option<DashboardPlace>> {
        if self.no_dashboard {
            return Ok(None);
        }
        let Some(text) = &self.dashboard else {
            return Ok(Some(DashboardPlace { listen: DEFAULT.to_string(), is_given: false }));
        };
        let addresses = network::listen_addresses("--dashboard", text, security)?;
        let is_open = addresses.iter().any(|address: &SocketAddr| !address.ip().is_loopback());
        ensure!(
            !is_open || security.insecure_network(),
            "--dashboard {text}: the dashboard is served without TLS, so whoever sees the traffic can read the token; \
             leave it at 127.0.0.1 and reach it through an SSH tunnel, or, in a network where that is fine, add \
             --insecure-network"
        );
        Ok(Some(DashboardPlace { listen: text.clone(), is_given: true }))
    }
}

/// Where a dashboard is served.
#[derive(Debug)]
pub(crate) struct DashboardPlace {
    listen: String,
    /// Whether a person named it; else another place is as good, and none is no reason not to train.
    is_given: bool,
}

impl DashboardPlace {
    /// Serves it, and says where.
    pub(crate) async fn serve(
        self,
        directory: &RunDirectory,
        total_steps: u64,
        token: &Token,
        actions: mpsc::Sender<Action>,
        screen: &Screen,
    ) -> Result<Option<Dashboard>> {
        let listener = match TcpListener::bind(&self.listen).await {
            Err(_) if !self.is_given => TcpListener::bind(ANY_PORT).await,
            bound => bound,
        };
        let listener = match listener {
            Err(error) if !self.is_given => {
                tracing::warn!("there is no dashboard, since no port is free: {error}");
                return Ok(None);
            }
            bound => bound.with_context(|| {
                format!(
                    "serve the dashboard at {}; choose another --dashboard, or --no-dashboard",
                    self.listen
                )
            })?,
        };
        let settings = Settings::new(directory, total_steps, PROGRAM_VERSION, token);
        let dashboard = Dashboard::start(listener, settings, actions)?;
        screen.line(&format!("dashboard: http://{}", dashboard.address()));
        Ok(Some(dashboard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_reach_it_only_if_that_was_said() {
        let arguments = |dashboard: Option<&str>, no_dashboard| DashboardArguments {
            dashboard: dashboard.map(str::to_string),
            no_dashboard,
        };
        let (closed, open) = (Security::for_tests(false), Security::for_tests(true));
        for (arguments, security, expected) in [
            (arguments(None, false), &closed, Some("127.0.0.1:7080")),
            (arguments(Some("127.0.0.1:0"), false), &closed, Some("127.0.0.1:0")),
            (arguments(Some("0.0.0.0:7080"), false), &open, Some("0.0.0.0:7080")),
            (arguments(None, true), &closed, None),
        ] {
            let place = arguments.place(security).unwrap();
            assert_eq!(place.map(|place| place.listen).as_deref(), expected, "{arguments:?}");
        }
        for text in ["0.0.0.0:7080", "192.0.2.7:7080"] {
            let error = format!("{:#}", arguments(Some(text), false).place(&closed).unwrap_err());
            assert!(error.contains("--insecure-network") && error.contains(text), "{error}");
        }
    }
}
