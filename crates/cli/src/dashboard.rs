//! Where a coordinator serves its dashboard.

use std::net::TcpListener;

use anyhow::{Context, Result, ensure};
use dashboard::{Action, Dashboard, Settings};
use tokio::sync::mpsc;

use crate::display::Screen;
use crate::network;
use crate::security::Security;

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
    /// What the device of each worker computes at most, in TFLOP/s, as its maker or a measurement says: then the dashboard
    /// shows which share of it the network uses
    #[arg(long, value_name = "TFLOPS", env = "SIMSIAM_PEAK_TFLOPS", value_parser = peak)]
    peak_tflops: Option<f64>,
}

fn peak(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(tflops) if tflops > 0.0 && tflops.is_finite() => Ok(tflops),
        _ => Err("expected a number of TFLOP/s above 0, such as 989 of an H100 in bf16".to_string()),
    }
}

impl DashboardArguments {
    /// Where it is served, if it is. Others than this machine reach it only where `security` allows that.
    pub(crate) fn place(&self, security: &Security) -> Result<Option<DashboardPlace>> {
        if self.no_dashboard {
            return Ok(None);
        }
        let Some(text) = &self.dashboard else {
            let listen = DEFAULT.to_string();
            return Ok(Some(DashboardPlace { listen, is_given: false, peak_tflops: self.peak_tflops }));
        };
        let is_open = network::addresses("--dashboard", text)?.iter().any(|at| !at.ip().is_loopback());
        // Before what is asked of every address: certificates, which it would be told to make, do not help here.
        ensure!(
            !is_open || security.insecure_network(),
            "--dashboard {text}: the dashboard is served without TLS, so whoever sees the traffic can read the token; \
             leave it at 127.0.0.1 and reach it through an SSH tunnel, or, in a network where that is fine, add \
             --insecure-network"
        );
        network::listen_addresses("--dashboard", text, security)?;
        Ok(Some(DashboardPlace { listen: text.clone(), is_given: true, peak_tflops: self.peak_tflops }))
    }
}

/// Where a dashboard is served.
#[derive(Debug)]
pub(crate) struct DashboardPlace {
    listen: String,
    /// Whether a person named it; else another place is as good, and none is no reason not to train.
    is_given: bool,
    /// Of each worker's device, if somebody has said.
    peak_tflops: Option<f64>,
}

/// Where a dashboard will be served: nobody else can take it any more.
#[derive(Debug)]
pub(crate) struct DashboardListener {
    listener: TcpListener,
    peak_tflops: Option<f64>,
}

impl DashboardPlace {
    /// Takes the place.
    pub(crate) fn listen(self) -> Result<Option<DashboardListener>> {
        let listener = match network::bind(&self.listen) {
            Err(_) if !self.is_given => network::bind(ANY_PORT),
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
        Ok(Some(DashboardListener { listener, peak_tflops: self.peak_tflops }))
    }
}

impl DashboardListener {
    /// Serves the dashboard within a runtime, and says where.
    pub(crate) fn serve(
        self,
        mut settings: Settings,
        actions: mpsc::Sender<Action>,
        screen: &Screen,
    ) -> Result<Dashboard> {
        settings.yardsticks.peak_flops_per_second = self.peak_tflops.map(|tflops| 1e12 * tflops);
        let listener = tokio::net::TcpListener::from_std(self.listener).context("serve the dashboard")?;
        let dashboard = Dashboard::start(listener, settings, actions)?;
        screen.line(&format!("dashboard: http://{}", dashboard.address()));
        Ok(dashboard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_a_number_above_zero() {
        for (text, expected) in [
            ("989", Some(989.0)),
            ("0.05", Some(0.05)),
            ("0", None),
            ("-1", None),
            ("inf", None),
            ("nan", None),
        ] {
            assert_eq!(peak(text).ok(), expected, "{text}");
        }
        assert!(peak("H100").unwrap_err().contains("such as 989"));
    }

    #[test]
    fn other_machines_reach_it_only_if_that_was_said() {
        let arguments = |dashboard: Option<&str>, no_dashboard| DashboardArguments {
            dashboard: dashboard.map(str::to_string),
            no_dashboard,
            peak_tflops: None,
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
