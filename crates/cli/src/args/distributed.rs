//! Arguments of the commands that can run as several processes.

use std::sync::OnceLock;

use anyhow::Result;
use clap::Args;
use trainer::{World, WorldFlags};

/// Rank of this process; unset if the world size is 1. It is static because the panic hook prints
/// it.
static RANK: OnceLock<usize> = OnceLock::new();

/// Rank, world size and address of rank 0. Launchers set them through environment variables.
#[derive(Debug, Args)]
#[command(next_help_heading = "Distributed options (set by backpack launch, torchrun and srun)")]
pub(crate) struct DistributedArgs {
    /// Rank of this process, from 0 [default: $RANK or $SLURM_PROCID]
    #[arg(long, value_name = "N")]
    rank: Option<usize>,
    /// Number of processes of the run [default: $WORLD_SIZE or Slurm's number of tasks, else 1]
    #[arg(long, value_name = "N")]
    world_size: Option<usize>,
    /// Rank of this process on its node, from 0 [default: $LOCAL_RANK or $SLURM_LOCALID]
    #[arg(long, value_name = "N")]
    local_rank: Option<usize>,
    /// Host name or address of rank 0 [default: $MASTER_ADDR or the first node of the Slurm job]
    #[arg(long, value_name = "HOST")]
    master_addr: Option<String>,
    /// Port that rank 0 listens on [default: $MASTER_PORT or a port derived from the Slurm job id]
    #[arg(long, value_name = "PORT")]
    master_port: Option<u16>,
}

impl DistributedArgs {
    /// Whether any of these flags was given.
    pub(crate) fn is_given(&self) -> bool {
        let numbers = [self.rank, self.world_size, self.local_rank];
        numbers.iter().any(Option::is_some) || self.master_addr.is_some() || self.master_port.is_some()
    }

    /// Determines rank and world size from the flags and the environment. From then on,
    /// [`error_prefix`] contains the rank.
    pub(crate) fn detect(self) -> Result<World> {
        let flags = WorldFlags {
            rank: self.rank,
            world_size: self.world_size,
            local_rank: self.local_rank,
            master_addr: self.master_addr,
            master_port: self.master_port,
        };
        let world = World::detect(&flags)?;
        if world.size > 1 {
            RANK.get_or_init(|| world.rank);
        }
        Ok(world)
    }
}

/// Whether this process is one of several ranks.
pub(crate) fn is_distributed() -> bool {
    RANK.get().is_some()
}

/// Prefix of error lines: `error: `, and `error: rank R: ` if there are several ranks.
pub(crate) fn error_prefix() -> String {
    RANK.get().map_or("error: ".to_owned(), |rank| format!("error: rank {rank}: "))
}
