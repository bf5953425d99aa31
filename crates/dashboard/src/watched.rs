//! A run that is looked at from elsewhere, once or again and again: by its coordinator, or by its files where none answers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use recipe::Recipe;

use crate::address::{Address, Credentials};
use crate::ask::{self, AskError};
use crate::history::Curves;
use crate::live::lock;
use crate::record::{self, Reader, RunRecord};
use crate::status::{Frame, Status};

/// Who answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The coordinator at this address.
    Coordinator(Address),
    /// The files of this run, since no coordinator answered.
    Files(PathBuf),
}

/// A run that is looked at.
#[derive(Debug)]
pub struct Watched {
    place: Place,
    credentials: Credentials,
    /// Once no coordinator has answered.
    files: Option<Files>,
}

#[derive(Debug)]
enum Place {
    Dashboard(Address),
    Folder(PathBuf),
}

impl Watched {
    /// The run of a dashboard.
    pub fn at(whom: Address, credentials: Credentials) -> Watched {
        Watched { place: Place::Dashboard(whom), credentials, files: None }
    }

    /// The run in `folder`.
    pub fn of_run(folder: &Path, credentials: Credentials) -> Watched {
        Watched { place: Place::Folder(folder.to_path_buf()), credentials, files: None }
    }

    /// Where the run stands. May wait for seconds.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn look(&mut self) -> Result<(Status, Asked), AskError> {
        let folder = match &self.place {
            Place::Dashboard(whom) => {
                return Ok((ask::ask(whom, &self.credentials)?, Asked::Coordinator(whom.clone())));
            }
            Place::Folder(folder) => folder,
        };
        if let Ok(whom) = Address::of_run(folder) {
            match ask::ask(&whom, &self.credentials) {
                Ok(status) => return Ok((status, Asked::Coordinator(whom))),
                Err(error @ (AskError::Refused { .. } | AskError::Overheard { .. })) => return Err(error),
                Err(_) => {}
            }
        }
        let files = self.files.get_or_insert_with(|| Files::new(folder));
        Ok((files.look(folder)?, Asked::Files(folder.clone())))
    }

    /// The curves of the run, in at most so many points, from whom it was that answered at the last look. May wait for
    /// seconds.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn curves(&self, asked: &Asked, points: usize) -> Result<Curves, AskError> {
        match asked {
            Asked::Coordinator(whom) => ask::curves(whom, &self.credentials, points),
            Asked::Files(folder) => {
                self.files.as_ref().map_or(Ok(Curves::default()), |files| files.curves(folder, points))
            }
        }
    }
}

/// What was read of a run's files: at the next look only what has come since is.
#[derive(Debug)]
struct Files {
    reader: Reader,
    record: Mutex<RunRecord>,
}

impl Files {
    fn new(folder: &Path) -> Files {
        Files { reader: Reader::new(folder), record: Mutex::default() }
    }

    fn look(&mut self, folder: &Path) -> Result<Status, AskError> {
        let not_a_run = |reason: String| AskError::NotARun { path: folder.to_path_buf(), reason };
        let text =
            fs::read_to_string(folder.join("recipe.toml")).map_err(|error| not_a_run(error.to_string()))?;
        let recipe = Recipe::from_toml(&text, &[]).map_err(|error| not_a_run(error.to_string()))?;
        self.reader
            .read(|change| change(&mut lock(&self.record)))
            .map_err(|source| AskError::Io { path: folder.to_path_buf(), source })?;
        Ok(Status::new(&Frame::of_recipe(recipe), &lock(&self.record), None))
    }

    fn curves(&self, folder: &Path, points: usize) -> Result<Curves, AskError> {
        let found = lock(&self.record).history.find(1, u64::MAX, points);
        let buckets = record::find(folder, found, 1, u64::MAX, points)
            .map_err(|source| AskError::Io { path: folder.to_path_buf(), source })?;
        Ok(Curves::of(&buckets))
    }
}
