//! The report of a run: one HTML file that shows what a run leaves behind, with everything it needs inside.
//!
//! [`RunFiles`] reads what is there; `pictures` computes the few things that no file has, from a bounded number
//! of images; `page` writes it down with the charts of `chart`. Everything is a function of the run's files
//! and the images: the same ones give the same bytes.

mod cards;
mod chart;
mod commands;
mod health;
mod journal;
mod lines;
mod map;
mod metrics;
mod page;
mod pictures;
mod run_files;

use std::path::{Path, PathBuf};

use recipe::{Data, Recipe};
use simsiam::Device;

use crate::aside::{self, write_whole};
use crate::encoder::Encoder;
use crate::error::EvaluationError;
use crate::job::Progress;
use pictures::{Gallery, Viewed};
use run_files::RunFiles;

/// What a report is about.
#[derive(Clone, Copy)]
pub struct ReportRequest<'a> {
    /// The runs' folders, at least one. Several are compared: their curves lie over each other.
    pub runs: &'a [PathBuf],
    /// The labelled images of map and neighbours, for a run of this recipe.
    pub data: &'a dyn Fn(&Recipe) -> Data,
    /// Where pictures of folders are packed and synthetic ones are drawn.
    pub cache_dir: &'a Path,
    /// Where the network computes.
    pub device: &'a Device,
}

/// What a page shows.
struct Report {
    runs: Vec<RunFiles>,
    /// Of a single run.
    pictures: Option<Pictures>,
}

/// What was computed, or the sentence that says why not.
struct Pictures {
    gallery: Result<Gallery, String>,
    views: Result<Vec<Viewed>, String>,
}

/// Writes the report of one run, or the comparison of several, as one HTML file: aside, synced, then renamed.
/// Images and checkpoints that cannot be used leave a sentence in their place.
///
/// # Errors
/// Folders that are no run directories, damaged lines in their files, those of the disk.
pub fn write_report(
    request: &ReportRequest<'_>,
    file: &Path,
    progress: &mut Progress<'_>,
) -> Result<(), EvaluationError> {
    let runs = RunFiles::read_all(request.runs)?;
    // Refused now rather than after the pictures, which take most of the time.
    aside::begin(file).map(drop).map_err(EvaluationError::io("write", file))?;
    let pictures = match runs.as_slice() {
        [run] => Some(Pictures::of(run, request, progress)),
        _ => None,
    };
    write_whole(file, page::render(&Report { runs, pictures }).as_bytes())
}

impl Pictures {
    fn of(run: &RunFiles, request: &ReportRequest<'_>, progress: &mut Progress<'_>) -> Pictures {
        let data = (request.data)(&run.recipe);
        let gallery = Encoder::open(&run.folder, None)
            .and_then(|encoder| {
                pictures::gallery(&encoder, &data, request.cache_dir, request.device, progress)
            })
            .map_err(|error| error.to_string());
        let views = pictures::views(&run.recipe, request.cache_dir).map_err(|error| error.to_string());
        Pictures { gallery, views }
    }
}

#[cfg(test)]
mod tests;
