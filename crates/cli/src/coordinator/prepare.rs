//! What a run needs before it begins, checked in full.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use coordinator::{
    Past, RunDirectory, check_certificates, check_max_workers, check_min_workers, check_workers,
};
use dataset::{Deal, Manifest};
use protocol::{ServerTls, Token};
use recipe::Recipe;
use simsiam::DeviceName;

use super::TrainArguments;
use super::resume::{is_begun, resume};
use crate::dashboard::{DashboardListener, DashboardPlace};
use crate::deal::{deal, dealt, warn_of_pictures};
use crate::display::Screen;
use crate::logging::LogFile;
use crate::needs::Needs;
use crate::{PROGRAM_VERSION, needs, network, start};

/// All that can be known, and refused, before a worker is started. The listeners are not served yet.
pub(super) struct Prepared {
    pub(super) directory: RunDirectory,
    pub(super) listener: TcpListener,
    pub(super) deal: Deal,
    pub(super) total_steps: u64,
    pub(super) needs: Needs,
    /// What each worker of this machine computes on.
    pub(super) worker_devices: Vec<DeviceName>,
    pub(super) cluster: Cluster,
    pub(super) dashboard: Option<DashboardListener>,
    pub(super) token: Token,
    pub(super) tls: Option<ServerTls>,
}

impl Prepared {
    /// Says which run this is, and what it takes.
    pub(super) fn announce(&self, screen: &Screen) {
        let (recipe, manifest) = (self.directory.recipe(), self.deal.manifest());
        screen.line(&format!(
            "run {} in {}: {} images of {}, {} steps of {} images, {} shards",
            recipe.name,
            self.directory.path().display(),
            manifest.images,
            manifest.name,
            self.total_steps,
            recipe.training.batch,
            manifest.shards
        ));
        let size = self.needs.size(self.total_steps);
        tracing::info!("the run takes {size}");
        screen.line(&format!("it takes {size}"));
    }
}

/// Where the workers find the coordinator, and how many they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cluster {
    listen: String,
    local_workers: u32,
    pub(super) remote_workers: u32,
    /// Places for workers.
    pub(super) max_workers: u32,
}

impl Cluster {
    /// What the arguments leave open is as under the coordinator before: its own workers in any case, those of other machines
    /// and the address if workers may be looking for it.
    fn new(arguments: &TrainArguments, past: Option<&Past>) -> Cluster {
        let own_before = past.map_or(0, |past| past.local_workers);
        let past = past.filter(|past| past.has_left_workers());
        let none_given = arguments.workers.is_none() && arguments.remote_workers.is_none();
        let (local_workers, remote_workers) = match past.filter(|_| none_given) {
            Some(past) => (own_before, past.workers.saturating_sub(own_before)),
            None if none_given => (own_before.max(1), 0),
            None => (arguments.workers.unwrap_or(1), arguments.remote_workers.unwrap_or(0)),
        };
        let listen = arguments.listen.clone().or_else(|| past?.address.clone());
        let listen = listen.unwrap_or_else(|| "127.0.0.1:0".to_string());
        // Too many are refused later, with a sentence.
        let workers = local_workers.saturating_add(remote_workers);
        let max_workers = arguments.losses.max_workers.unwrap_or(workers);
        Cluster { listen, local_workers, remote_workers, max_workers }
    }

    /// How many are waited for.
    pub(super) fn workers(&self) -> u32 {
        self.local_workers.saturating_add(self.remote_workers)
    }
}

/// Finds out all of it, in the order in which it can be refused, and makes or opens the run's directory last.
pub(super) fn prepare(arguments: &TrainArguments, screen: &Screen, log: &LogFile) -> Result<Prepared> {
    let security = arguments.security.read()?;
    if let Some(listen) = &arguments.listen {
        network::listen_addresses("--listen", listen, &security)?;
    }
    let (resumed, resumed_recipe) = resumed(arguments)?.unzip();
    let cluster = Cluster::new(arguments, resumed.as_ref().map(RunDirectory::past));
    let addresses = network::listen_addresses("--listen", &cluster.listen, &security)?;
    let advertise = arguments.advertise.advertise.as_deref();
    network::check_advertised(&cluster.listen, &addresses, cluster.local_workers, advertise)?;
    let dashboard = arguments.dashboard.place(&security)?;
    let (token, tls) = security.of_coordinator(cluster.local_workers, cluster.remote_workers)?;
    check_certificates(tls.as_ref())?;
    let mut recipe = match resumed_recipe {
        Some(recipe) => recipe,
        None => arguments.recipe.load()?,
    };
    check_workers(cluster.workers(), recipe.training.shards)?;
    check_min_workers(arguments.losses.min_workers, cluster.workers())?;
    check_max_workers(cluster.max_workers, cluster.workers(), recipe.training.shards)?;
    let worker_devices = arguments.device.of_workers(cluster.local_workers)?;
    let path = arguments.out.join(&recipe.name);
    if resumed.is_none() {
        RunDirectory::refuse_unless_free(&path)?;
    }
    let first_state = match &resumed {
        Some(directory) => start::read_again(directory)?,
        None => start::read(&mut recipe)?,
    };
    let deal = deal(&recipe, &arguments.cache, screen)?;
    let total_steps = total_steps(&recipe, deal.manifest())?;
    if resumed.is_none() && recipe.evaluation.every_checkpoints > 0 {
        evaluation::check_votes(&recipe, &arguments.cache.folder()).context(
            "evaluation.knn of the recipe cannot be used; with evaluation.every_checkpoints=0 nothing is evaluated meanwhile",
        )?;
    }
    // Before the directory, so that the same command with another address is not refused for what this one left.
    let listener = network::bind(&cluster.listen)
        .with_context(|| format!("listen on {}; choose another --listen", cluster.listen))?;
    let dashboard = dashboard.map(DashboardPlace::listen).transpose()?.flatten();
    let directory = settle(resumed, &path, recipe, deal.manifest())?;
    log.open(&directory.logs().join("coordinator.log"))?;
    if let Some(first_state) = &first_state {
        start::publish(&directory, first_state, screen)?;
    }
    warn_of_pictures(&deal);
    let recipe = directory.recipe();
    // What GPUs hold is none of this machine's memory.
    let on_cpu = worker_devices.iter().filter(|name| **name == DeviceName::Cpu).count() as u32;
    for shortage in needs::shortages(recipe, total_steps, on_cpu, directory.path()) {
        screen.line(&format!("warning: {shortage}"));
        tracing::warn!("{shortage}");
    }
    let needs = Needs::of(recipe, cluster.workers());
    Ok(Prepared {
        directory,
        listener,
        deal,
        total_steps,
        needs,
        worker_devices,
        cluster,
        dashboard,
        token,
        tls,
    })
}

/// The steps of the whole run, at least one.
fn total_steps(recipe: &Recipe, manifest: &Manifest) -> Result<u64> {
    let total_steps = recipe.total_steps(manifest.images);
    ensure!(
        total_steps > 0,
        "{} has {} images, which do not fill one batch of {}; lower training.batch, or give more images",
        manifest.name,
        manifest.images,
        recipe.training.batch
    );
    Ok(total_steps)
}

/// The run that is to go on, with its recipe, if one is.
fn resumed(arguments: &TrainArguments) -> Result<Option<(RunDirectory, Recipe)>> {
    Ok(match &arguments.resume {
        Some(folder) => Some(resume(arguments, folder.as_deref())?),
        None if arguments.resume_or_begin && is_begun(arguments)? => Some(resume(arguments, None)?),
        None => None,
    })
}

/// The directory of the run, which has these images and this recipe from now on.
fn settle(
    resumed: Option<RunDirectory>,
    path: &Path,
    recipe: Recipe,
    manifest: &Manifest,
) -> Result<RunDirectory> {
    let mut directory = match resumed {
        Some(directory) => directory,
        None => RunDirectory::create(path, &recipe, PROGRAM_VERSION)?,
    };
    directory.hold_to(dealt(manifest))?;
    if *directory.recipe() != recipe {
        directory.keep_recipe(recipe)?;
    }
    Ok(directory)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use coordinator::journal::Record;

    use super::super::Arguments;
    use super::*;

    #[test]
    fn what_is_not_said_is_as_under_the_coordinator_before() {
        let (new, old) = ("127.0.0.1:0", "10.0.0.1:7070");
        let past = |local_workers, workers, left_workers: u64| {
            let opened = Record::Opened {
                program_version: PROGRAM_VERSION.to_string(),
                checkpoint: None,
                step: 0,
                address: Some(old.to_string()),
                workers,
                local_workers,
                awaited: Vec::new(),
            };
            let joined = (1..=left_workers).map(|worker| Record::Joined {
                worker,
                incarnation: worker,
                collective_address: "10.0.0.2:1".to_string(),
                description: "elsewhere".to_string(),
                outlives_coordinator: true,
                arithmetic: String::new(),
            });
            Past::replay(&[opened].into_iter().chain(joined).collect::<Vec<_>>())
        };
        for (flags, past, expected) in [
            (&[][..], None, (new, 1, 0)),
            (&["--workers=3"], None, (new, 3, 0)),
            // Its own workers ended with it, wherever it stopped.
            (&[], Some(past(3, 3, 0)), (new, 3, 0)),
            (&["--workers=2"], Some(past(3, 3, 0)), (new, 2, 0)),
            (&["--remote-workers=2"], Some(past(3, 3, 0)), (new, 1, 2)),
            (&[], Some(past(0, 4, 0)), (new, 1, 0)),
            // Those of other machines look for it.
            (&[], Some(past(0, 4, 4)), (old, 0, 4)),
            (&[], Some(past(1, 4, 3)), (old, 1, 3)),
            (&["--workers=2", "--listen=127.0.0.1:9"], Some(past(1, 4, 3)), ("127.0.0.1:9", 2, 0)),
        ] {
            let arguments = Arguments::parse_from(["coordinator"].iter().chain(flags)).train;
            let Cluster { listen, local_workers, remote_workers, .. } =
                Cluster::new(&arguments, past.as_ref());
            assert_eq!((listen.as_str(), local_workers, remote_workers), expected, "{flags:?} {past:?}");
        }
    }
}
