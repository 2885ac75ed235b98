//! The rank of this process, the world size, and the address of rank 0.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use torch_ext::distributed::loopback_address;

use crate::distributed::env::{self, Environment, on_terminal};
use crate::distributed::local_ranks::LocalRanks;
use crate::distributed::slurm::{self, SlurmStep};

/// Command-line flags that set the rank and the world. They take precedence over the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorldFlags {
    /// Value of `--rank`.
    pub rank: Option<usize>,
    /// Value of `--world-size`.
    pub world_size: Option<usize>,
    /// Value of `--local-rank`.
    pub local_rank: Option<usize>,
    /// Value of `--master-addr`.
    pub master_addr: Option<String>,
    /// Value of `--master-port`.
    pub master_port: Option<u16>,
}

/// The source of the rank and the world size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorldSource {
    /// The command line.
    Flags,
    /// The variables `RANK` and `WORLD_SIZE`, set by torchrun, by `backpack launch` or by hand.
    Environment,
    /// The step of Slurm's srun that started this process.
    Slurm,
    /// No source: a run with one process.
    Alone,
}

/// The position of this process in its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// Rank of this process, from 0.
    pub rank: usize,
    /// Number of processes of the run.
    pub size: usize,
    /// Processes of the run on this host.
    pub local: LocalRanks,
    /// Host and port at which rank 0 listens. `None` for a run with one process.
    pub master: Option<(String, u16)>,
    /// Text that is equal for all ranks of one attempt and differs between attempts. Empty if the
    /// launcher provides none.
    pub launch_id: String,
    /// Source of `rank` and `size`.
    pub source: WorldSource,
    /// Name of this host in Slurm, or else in the operating system.
    pub host: String,
}

impl World {
    /// Reads rank and world size from the flags, or else from `RANK` and `WORLD_SIZE`, or else from
    /// the Slurm step. Without any of them the process is alone.
    ///
    /// # Errors
    /// Names the flag or variable that is missing, invalid or contradicts another one.
    pub fn detect(flags: &WorldFlags) -> Result<Self> {
        Self::read(flags, &Environment::new(&env::process_variable), on_terminal())
    }

    fn read(flags: &WorldFlags, environment: &Environment<'_>, on_terminal: bool) -> Result<Self> {
        let step = SlurmStep::read(environment, on_terminal)?;
        let (rank, size, source) = rank_and_size(flags, environment, step.as_ref())?;
        // A script may export RANK=$SLURM_PROCID without the other variables. They then come from
        // Slurm.
        let step = step.filter(|step| source != WorldSource::Flags && (step.rank, step.size) == (rank, size));
        let master = master_address(flags, environment, step.is_some())
            .with_context(|| format!("rank {rank} of {size} cannot determine the address of rank 0"));
        let master = if size == 1 { None } else { Some(master?) };
        let all_here = master.as_ref().is_some_and(|(host, _)| loopback_address(host).is_some());
        Ok(World {
            rank,
            size,
            local: match source {
                WorldSource::Alone => LocalRanks::read(environment, None)?,
                _ => local_ranks(flags, environment, step.as_ref(), rank, size, all_here)?,
            },
            master,
            launch_id: launch_id(source, environment, step.as_ref()),
            source,
            host: environment
                .text("SLURMD_NODENAME")
                .filter(|_| step.is_some())
                .unwrap_or_else(torch_ext::distributed::host_name),
        })
    }

    /// Returns the world of a run with one process.
    pub fn alone() -> Self {
        World {
            rank: 0,
            size: 1,
            local: LocalRanks::ALONE,
            master: None,
            launch_id: String::new(),
            source: WorldSource::Alone,
            host: torch_ext::distributed::host_name(),
        }
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} on {}", self.rank, self.size, self.host)?;
        if let Some((host, port)) = &self.master {
            write!(f, ", rank 0 at {host}:{port}")?;
        }
        f.write_str(match self.source {
            WorldSource::Flags => " (from flags)",
            WorldSource::Environment => " (from RANK and WORLD_SIZE)",
            WorldSource::Slurm => " (from Slurm)",
            WorldSource::Alone => "",
        })
    }
}

/// Returns the rank, the world size and their source.
///
/// # Errors
/// Names the flag or variable that is missing, invalid or contradicts another one.
fn rank_and_size(
    flags: &WorldFlags,
    environment: &Environment<'_>,
    step: Option<&SlurmStep>,
) -> Result<(usize, usize, WorldSource)> {
    let (rank, size, source, names) = match (flags.rank, flags.world_size) {
        (Some(rank), Some(size)) => (rank, size, WorldSource::Flags, ("--rank", "--world-size")),
        (Some(_), None) => bail!("--rank is given without --world-size: give both or neither"),
        (None, Some(_)) => bail!("--world-size is given without --rank: give both or neither"),
        (None, None) => match (environment.number("RANK")?, environment.number("WORLD_SIZE")?, step) {
            (Some(rank), Some(size), step) => {
                check_consistent(rank, size, environment, step)?;
                (rank, size, WorldSource::Environment, ("RANK", "WORLD_SIZE"))
            }
            (Some(rank), None, _) => {
                bail!("RANK is {rank}, but WORLD_SIZE is not set: set both variables or neither")
            }
            (None, Some(size), None) => {
                bail!("WORLD_SIZE is {size}, but RANK is not set: set both variables or neither")
            }
            (None, Some(size), Some(step)) if size != step.size => bail!(
                "WORLD_SIZE is {size}, but srun started {} tasks and RANK is not set: unset WORLD_SIZE, or start {size} tasks",
                step.size
            ),
            (None, _, Some(step)) => (step.rank, step.size, WorldSource::Slurm, ("SLURM_PROCID", "SLURM_NTASKS")),
            (None, None, None) => {
                let dependent = [
                    ("--local-rank", flags.local_rank.is_some()),
                    ("--master-addr", flags.master_addr.is_some()),
                    ("--master-port", flags.master_port.is_some()),
                ];
                if let Some((flag, _)) = dependent.iter().find(|(_, given)| *given) {
                    bail!("{flag} is given, but the rank is unknown: add --rank and --world-size");
                }
                return Ok((0, 1, WorldSource::Alone));
            }
        },
    };
    ensure!(size > 0, "{} is 0: it must be at least 1", names.1);
    ensure!(rank < size, "{} is {rank}, but {} is {size}: ranks run from 0 to {}", names.0, names.1, size - 1);
    Ok((rank, size, source))
}

/// Checks that `RANK` does not contradict the rank in the Slurm step.
///
/// A contradiction occurs if a batch script exports one `RANK` to all of its tasks. torchrun
/// assigns different ranks than Slurm, and is recognized by `LOCAL_WORLD_SIZE`.
fn check_consistent(rank: usize, size: usize, environment: &Environment<'_>, step: Option<&SlurmStep>) -> Result<()> {
    if let Some(step) = step
        && size == step.size
        && environment.text("LOCAL_WORLD_SIZE").is_none()
    {
        ensure!(
            rank == step.rank,
            "RANK is {rank}, but SLURM_PROCID is {}: unset RANK, or set it to SLURM_PROCID in each task",
            step.rank
        );
    }
    Ok(())
}

/// Returns host and port of rank 0. With `in_slurm_step` they can come from the variables of Slurm.
fn master_address(flags: &WorldFlags, environment: &Environment<'_>, in_slurm_step: bool) -> Result<(String, u16)> {
    let host = match flags.master_addr.clone().or_else(|| environment.text("MASTER_ADDR")) {
        Some(host) => host,
        None if in_slurm_step => slurm::first_host(environment)?,
        None => bail!("MASTER_ADDR is not set: set it to the host of rank 0, or use --master-addr"),
    };
    let port = match flags.master_port {
        Some(port) => Some(port),
        None => environment.number("MASTER_PORT").context("MASTER_PORT must be a port number of at most 65535")?,
    };
    let port = match port {
        Some(port) => port,
        None if in_slurm_step => slurm::rank_0_port(environment)?,
        None => bail!("MASTER_PORT is not set: set it to a free port of the host of rank 0, or use --master-port"),
    };
    ensure!(port > 0, "MASTER_PORT is 0: it must be between 1 and 65535");
    Ok((host, port))
}

/// Returns the processes of the run on this host.
///
/// They come from the launcher (`LOCAL_WORLD_SIZE` and `LOCAL_RANK`, or Slurm). Without a launcher,
/// all ranks are on this host if rank 0 listens on the loopback address (`all_here`), and else only
/// this one is.
fn local_ranks(
    flags: &WorldFlags,
    environment: &Environment<'_>,
    step: Option<&SlurmStep>,
    rank: usize,
    size: usize,
    all_here: bool,
) -> Result<LocalRanks> {
    let has_launcher = environment.text("LOCAL_WORLD_SIZE").is_some() || step.is_some_and(|step| step.local.is_some());
    let (count, source, launcher_rank) = if has_launcher {
        let local = LocalRanks::read(environment, step)?;
        (local.count, "from the launcher", local.rank)
    } else {
        let own = environment.number("LOCAL_RANK")?;
        let count = if all_here { size } else { 1 };
        (count, if all_here { "from the loopback address of rank 0" } else { "LOCAL_WORLD_SIZE is not set" }, own)
    };
    ensure!(
        count <= size,
        "LOCAL_WORLD_SIZE is {count}, but the world size is {size}: set LOCAL_WORLD_SIZE to the number of ranks on this host"
    );
    let own = flags.local_rank.or(launcher_rank);
    // If all ranks are on one host, the local ranks equal the ranks.
    let own = own.or((count == size).then_some(rank)).or((count == 1).then_some(0));
    let own = own.with_context(|| {
        format!("{count} ranks are on this host, but the local rank of this one is unknown: set LOCAL_RANK, or use --local-rank")
    })?;
    ensure!(
        own < count,
        "the local rank is {own}, but the number of ranks on this host is {count} ({source}): set LOCAL_WORLD_SIZE to the number of ranks on this host"
    );
    Ok(LocalRanks { count, rank: Some(own) })
}

/// Returns [`World::launch_id`]. It is empty for ranks that were started by hand, because they may
/// belong to different Slurm jobs.
fn launch_id(source: WorldSource, environment: &Environment<'_>, step: Option<&SlurmStep>) -> String {
    if source == WorldSource::Environment {
        if let Some(launcher) = environment.text("BACKPACK_LAUNCHER") {
            return format!("launch.{launcher}");
        }
        if let Some(run) = environment.text("TORCHELASTIC_RUN_ID") {
            let attempt = environment.text("TORCHELASTIC_RESTART_COUNT").unwrap_or_default();
            return format!("torchrun.{run}.{attempt}");
        }
    }
    step.map(|step| step.launch_id.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
