//! `--collective`: what the gradients go through between the workers.

use clap::ValueEnum;
use collective::Medium;

/// What a worker's gradients are to go through.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct MediumArguments {
    /// What gradients go through between workers; of a coordinator, for the workers that it starts
    #[arg(long, value_name = "MEDIUM", value_enum, default_value_t = MediumArgument::Auto, env = "SIMSIAM_COLLECTIVE")]
    collective: MediumArgument,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum MediumArgument {
    /// GPUs if each worker has its own, shared memory if all workers can share it, else TCP
    Auto,
    /// GPUs only, through NCCL: the run fails if a worker has none of its own
    Nccl,
    /// Shared memory only: the run fails if a worker is elsewhere
    SharedMemory,
    /// TCP, even within a host
    Tcp,
}

impl MediumArguments {
    pub(crate) fn medium(&self) -> Medium {
        match self.collective {
            MediumArgument::Auto => Medium::Auto,
            MediumArgument::Nccl => Medium::Nccl,
            MediumArgument::SharedMemory => Medium::SharedMemory,
            MediumArgument::Tcp => Medium::Tcp,
        }
    }

    /// This argument for another process.
    pub(crate) fn to_argument(&self) -> String {
        let value = self.collective.to_possible_value().expect("no value is skipped");
        format!("--collective={}", value.get_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        medium: MediumArguments,
    }

    #[test]
    fn workers_are_told_what_their_coordinator_was() {
        for (given, medium) in [
            (None, Medium::Auto),
            (Some("--collective=auto"), Medium::Auto),
            (Some("--collective=nccl"), Medium::Nccl),
            (Some("--collective=shared-memory"), Medium::SharedMemory),
            (Some("--collective=tcp"), Medium::Tcp),
        ] {
            let parse =
                |argument: Option<&str>| Arguments::parse_from(["worker"].into_iter().chain(argument)).medium;
            let parsed = parse(given);
            assert_eq!(parsed.medium(), medium);
            assert_eq!(parse(Some(&parsed.to_argument())).medium(), medium);
        }
    }
}
