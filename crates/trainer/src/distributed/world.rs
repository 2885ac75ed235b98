//! Who this process is among those of its run: rank, world size, and where rank 0 is.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};

use crate::distributed::env::{self, Environment, on_terminal};
use crate::distributed::local_ranks::LocalRanks;
use crate::distributed::slurm::{self, SlurmStep};

/// What the command line says of the world; it wins over the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorldFlags {
    /// `--rank`
    pub rank: Option<usize>,
    /// `--world-size`
    pub world_size: Option<usize>,
    /// `--local-rank`
    pub local_rank: Option<usize>,
    /// `--master-addr`
    pub master_addr: Option<String>,
    /// `--master-port`
    pub master_port: Option<u16>,
}

/// Who said which rank this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorldSource {
    /// The command line.
    Flags,
    /// `RANK` and `WORLD_SIZE`: torchrun, `backpack launch`, or by hand.
    Environment,
    /// The step of Slurm's srun that started this process.
    Slurm,
    /// Nobody: a run of one process.
    Alone,
}

/// This process among those of its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// This process, from 0.
    pub rank: usize,
    /// Processes of the run.
    pub size: usize,
    /// Those on this host.
    pub local: LocalRanks,
    /// Host and port where rank 0 listens; none in a world of one.
    pub master: Option<(String, u16)>,
    /// Equal for all ranks of one attempt and different for the next, where a launcher gives
    /// such a thing; else empty.
    pub launch_id: String,
    /// Who said so.
    pub source: WorldSource,
    /// The name of this host, as Slurm or the system has it.
    pub host: String,
}

impl World {
    /// From the flags, else `RANK` and its like, else Slurm's step, else alone.
    ///
    /// # Errors
    /// Naming the flag or variable that is missing, makes no sense or contradicts another.
    pub fn detect(flags: &WorldFlags) -> Result<Self> {
        Self::read(flags, &Environment::new(&env::own), on_terminal())
    }

    fn read(flags: &WorldFlags, environment: &Environment<'_>, on_terminal: bool) -> Result<Self> {
        let step = SlurmStep::read(environment, on_terminal)?;
        let (rank, size, source) = rank_and_size(flags, environment, step.as_ref())?;
        // A script may export RANK=$SLURM_PROCID, and leave the rest to Slurm.
        let step = step.filter(|step| source != WorldSource::Flags && (step.rank, step.size) == (rank, size));
        let master = master(flags, environment, step.is_some())
            .with_context(|| format!("rank {rank} of {size} cannot find rank 0"));
        let master = if size == 1 { None } else { Some(master?) };
        let all_here = master.as_ref().is_some_and(|(host, _)| is_loopback(host));
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

    /// The only process of a run.
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
            WorldSource::Flags => " (by its flags)",
            WorldSource::Environment => " (by RANK and WORLD_SIZE)",
            WorldSource::Slurm => " (by Slurm)",
            WorldSource::Alone => "",
        })
    }
}

/// Rank, world size, and who says so.
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
                bail!("the environment says RANK={rank}, but WORLD_SIZE is not set: set both or neither")
            }
            (None, Some(size), None) => {
                bail!("the environment says WORLD_SIZE={size}, but RANK is not set: set both or neither")
            }
            (None, Some(size), Some(step)) if size != step.size => bail!(
                "the environment says WORLD_SIZE={size}, but srun started {} tasks, and RANK is not set: unset WORLD_SIZE, or start so many tasks",
                step.size
            ),
            (None, _, Some(step)) => (step.rank, step.size, WorldSource::Slurm, ("SLURM_PROCID", "SLURM_NTASKS")),
            (None, None, None) => {
                let lonely = [
                    ("--local-rank", flags.local_rank.is_some()),
                    ("--master-addr", flags.master_addr.is_some()),
                    ("--master-port", flags.master_port.is_some()),
                ];
                if let Some((flag, _)) = lonely.iter().find(|(_, given)| *given) {
                    bail!("{flag} is given, but nothing says which rank this is: add --rank and --world-size");
                }
                return Ok((0, 1, WorldSource::Alone));
            }
        },
    };
    ensure!(size > 0, "{} is 0: it counts this process too", names.1);
    ensure!(rank < size, "{} is {rank}, but {} is {size}: ranks run from 0 to {}", names.0, names.1, size - 1);
    Ok((rank, size, source))
}

/// Refuses a `RANK` that the same step of Slurm contradicts, as one that a batch script
/// exports to all of its tasks. torchrun, which sets `LOCAL_WORLD_SIZE`, gives ranks of its own.
fn check_consistent(rank: usize, size: usize, environment: &Environment<'_>, step: Option<&SlurmStep>) -> Result<()> {
    if let Some(step) = step
        && size == step.size
        && environment.text("LOCAL_WORLD_SIZE").is_none()
    {
        ensure!(
            rank == step.rank,
            "the environment says RANK={rank}, but SLURM_PROCID={}: unset RANK, or set it to SLURM_PROCID in each task",
            step.rank
        );
    }
    Ok(())
}

/// Where rank 0 listens; `of_step` when Slurm knows.
fn master(flags: &WorldFlags, environment: &Environment<'_>, of_step: bool) -> Result<(String, u16)> {
    let host = match flags.master_addr.clone().or_else(|| environment.text("MASTER_ADDR")) {
        Some(host) => host,
        None if of_step => slurm::first_host(environment)?,
        None => bail!("MASTER_ADDR is not set: set it to rank 0's host, or give --master-addr"),
    };
    let port = match flags.master_port {
        Some(port) => Some(port),
        None => environment.number("MASTER_PORT").context("a port is at most 65535")?,
    };
    let port = match port {
        Some(port) => port,
        None if of_step => slurm::port(environment)?,
        None => bail!("MASTER_PORT is not set: set it to a free port of rank 0's host, or give --master-port"),
    };
    ensure!(port > 0, "MASTER_PORT is 0: ports run from 1 to 65535");
    Ok((host, port))
}

/// Which of the ranks on this host this is. The launcher says (`LOCAL_WORLD_SIZE`,
/// `LOCAL_RANK`, Slurm); else all are here (`all_here`: rank 0 listens on the loopback), or
/// this one alone.
fn local_ranks(
    flags: &WorldFlags,
    environment: &Environment<'_>,
    step: Option<&SlurmStep>,
    rank: usize,
    size: usize,
    all_here: bool,
) -> Result<LocalRanks> {
    let told = environment.text("LOCAL_WORLD_SIZE").is_some() || step.is_some_and(|step| step.local.is_some());
    let (count, says, of_launcher) = if told {
        let local = LocalRanks::read(environment, step)?;
        (local.count, "the launcher", local.rank)
    } else {
        let own = environment.number("LOCAL_RANK")?;
        let count = if all_here { size } else { 1 };
        (count, if all_here { "the loopback as rank 0's address" } else { "nothing in LOCAL_WORLD_SIZE" }, own)
    };
    ensure!(
        count <= size,
        "the environment says that {count} ranks are on this host (LOCAL_WORLD_SIZE), but the world size is {size}"
    );
    let own = flags.local_rank.or(of_launcher);
    // With all ranks on one host, the ranks count them.
    let own = own.or((count == size).then_some(rank)).or((count == 1).then_some(0));
    let own = own.with_context(|| {
        format!("{count} ranks are on this host, but nothing says which this is: set LOCAL_RANK, or give --local-rank")
    })?;
    ensure!(
        own < count,
        "this is local rank {own}, but by {says} there are {count} on this host: set LOCAL_WORLD_SIZE to the number of ranks on it"
    );
    Ok(LocalRanks { count, rank: Some(own) })
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// See [`World::launch_id`]. Ranks started by hand may stand in different jobs of Slurm: theirs is empty.
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
