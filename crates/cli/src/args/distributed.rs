//! The arguments of every command that may be one of several processes.

use std::sync::OnceLock;

use anyhow::Result;
use clap::Args;
use trainer::{World, WorldFlags};

/// This process's rank among several; unset for one that is alone. Also the hook that
/// reports panics reads it.
static RANK: OnceLock<usize> = OnceLock::new();

#[derive(Debug, Args)]
#[command(next_help_heading = "One of several processes")]
pub(crate) struct DistributedArgs {
    /// Which of the run's processes this is, from 0 [default: RANK, else Slurm's]
    #[arg(long, value_name = "N")]
    rank: Option<usize>,
    /// How many processes the run has [default: WORLD_SIZE, else Slurm's, else 1]
    #[arg(long, value_name = "N")]
    world_size: Option<usize>,
    /// Which of those on this host it is, from 0 [default: LOCAL_RANK, else Slurm's]
    #[arg(long, value_name = "N")]
    local_rank: Option<usize>,
    /// The host of rank 0 [default: MASTER_ADDR, else the first of Slurm's]
    #[arg(long, value_name = "HOST")]
    master_addr: Option<String>,
    /// A port of that host [default: MASTER_PORT, else one by Slurm's job number]
    #[arg(long, value_name = "PORT")]
    master_port: Option<u16>,
}

impl DistributedArgs {
    /// Whether one of them is there.
    pub(crate) fn is_given(&self) -> bool {
        let numbers = [self.rank, self.world_size, self.local_rank];
        numbers.iter().any(Option::is_some) || self.master_addr.is_some() || self.master_port.is_some()
    }

    /// Finds out who this process is; from here on its errors say so.
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

/// Whether other processes take part in what this one does.
pub(crate) fn is_one_of_several() -> bool {
    RANK.get().is_some()
}

/// What stands before an error: `error: `, and in a world of several the rank.
pub(crate) fn error_prefix() -> String {
    RANK.get().map_or("error: ".to_owned(), |rank| format!("error: rank {rank}: "))
}
