//! `evaluate report`: a page about runs.

use std::path::PathBuf;

use anyhow::Result;
use evaluation::{DataSource, ReportRequest, write_report};

use super::parse_data;
use crate::cache::CacheArguments;
use crate::device::DeviceArguments;

#[derive(Debug, clap::Args)]
pub(super) struct ReportArguments {
    /// The run's folder; several are compared
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The file to write [default: report.html in the run's folder, or here for several]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Labelled images for the map and the neighbours, if the run's own have no labels
    #[arg(long, value_name = "SOURCE:FOLDER", value_parser = parse_data)]
    data: Option<DataSource>,
    #[command(flatten)]
    device: DeviceArguments,
    #[command(flatten)]
    cache: CacheArguments,
}

impl ReportArguments {
    pub(super) fn run(&self, progress: &mut evaluation::Progress<'_>) -> Result<String> {
        const NAME: &str = "report.html";
        let out = match (&self.out, self.runs.as_slice()) {
            (Some(out), _) => out.clone(),
            (None, [run]) => run.join(NAME),
            (None, _) => NAME.into(),
        };
        let request = ReportRequest {
            runs: &self.runs,
            data: &|recipe| {
                self.data.as_ref().map_or_else(|| recipe.labelled_data().clone(), |data| data.of(recipe))
            },
            cache_dir: &self.cache.folder(),
            device: &self.device.open(&self.cache.folder())?,
        };
        write_report(&request, &out, progress)?;
        Ok(out.display().to_string())
    }
}
