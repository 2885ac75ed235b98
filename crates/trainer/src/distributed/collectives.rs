//! Collective operations among the ranks of a run.
//!
//! All methods of [`Collectives`] are collective (all ranks call them, in the same order) except
//! `rank`, `size`, `is_first`, `group`, `poll_interval` and `use_run_timeout`. A run with one process
//! has no process group, and the operations then return the values of this process.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use data_prep::hash::hex;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use torch_ext::distributed::{ProcessGroup, ReduceOp, Rendezvous};

use crate::distributed::config::DistributedConfig;
use crate::distributed::flight_recorder::create_dump_directory;
use crate::distributed::world::World;

/// The process group of a run.
#[derive(Debug)]
pub struct Collectives {
    rank: usize,
    size: usize,
    /// `None` for a run with one process.
    group: Option<ProcessGroup>,
    /// Time limit of each collective after the first step.
    timeout: Duration,
}

impl Collectives {
    /// Returns the collectives of a run with one process.
    pub fn alone() -> Self {
        Collectives { rank: 0, size: 1, group: None, timeout: Duration::ZERO }
    }

    /// Connects to the other processes.
    ///
    /// # Errors
    /// Returns an error if not all processes connect within `init_timeout_seconds`, or if the port
    /// or the network interface is not usable.
    pub(crate) fn join(world: &World, config: &DistributedConfig, device: Device) -> Result<Self> {
        let group = match &world.master {
            None => None,
            Some((host, port)) => {
                if device.is_cuda()
                    && let Err(error) = create_dump_directory()
                {
                    eprintln!("warning: rank {} will not dump the flight recorder: {error:#}", world.rank);
                }
                let rendezvous = Rendezvous {
                    host,
                    port: *port,
                    rank: world.rank,
                    world_size: world.size,
                    timeout: Duration::from_secs(config.init_timeout_seconds),
                    interface: Some(&config.interface[..]).filter(|name| !name.is_empty()),
                    name: &world.launch_id,
                };
                Some(ProcessGroup::join(&rendezvous, device)?)
            }
        };
        Ok(Collectives {
            rank: world.rank,
            size: world.size,
            group,
            timeout: Duration::from_secs(config.timeout_seconds),
        })
    }

    /// Disconnects after a successful run. It waits until every rank has called it, so that no rank
    /// exits early.
    pub(crate) fn shutdown(self) -> Result<()> {
        match self.group {
            Some(group) => Ok(group.shutdown()?),
            None => Ok(()),
        }
    }

    /// Returns the rank of this process, from 0.
    pub(crate) fn rank(&self) -> u64 {
        self.rank as u64
    }

    /// Returns the number of processes of the run.
    pub(crate) fn size(&self) -> u64 {
        self.size as u64
    }

    /// Returns whether this is rank 0, which writes all files.
    pub(crate) fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Returns the process group, or `None` for a run with one process.
    pub(crate) fn group(&self) -> Option<&ProcessGroup> {
        self.group.as_ref()
    }

    /// Switches the time limit of collectives from `init_timeout_seconds` to `timeout_seconds`.
    pub(crate) fn use_run_timeout(&self) -> Result<()> {
        match &self.group {
            Some(group) => Ok(group.set_timeout(self.timeout)?),
            None => Ok(()),
        }
    }

    /// Returns the longest time that a rank may work alone while other ranks wait for it in a
    /// collective. It is much shorter than the time limit of a collective, and than the time after
    /// which a run counts as stalled.
    pub(crate) fn poll_interval(&self) -> Duration {
        const MAX_INTERVAL: Duration = Duration::from_secs(20);
        if self.group.is_some() { MAX_INTERVAL.min(self.timeout / 4) } else { MAX_INTERVAL }
    }

    /// Returns for each flag whether it is set on any rank.
    pub(crate) fn any<const N: usize>(&self, flags: [bool; N]) -> Result<[bool; N]> {
        let Some(group) = &self.group else { return Ok(flags) };
        let tensor = Tensor::f_from_slice(&flags.map(i64::from))?;
        group.all_reduce(&tensor, ReduceOp::Max)?;
        let mut raised = [0i64; N];
        tensor.f_copy_data(&mut raised, N)?;
        Ok(raised.map(|flag| flag != 0))
    }

    /// Returns the minimum of the ranks' values.
    pub(crate) fn min(&self, value: u64) -> Result<u64> {
        let Some(group) = &self.group else { return Ok(value) };
        let negated = Tensor::f_from_slice(&[-(value as i64)])?;
        group.all_reduce(&negated, ReduceOp::Max)?;
        Ok((-negated.f_int64_value(&[0])?) as u64)
    }

    /// Returns the sum of each value over the ranks.
    pub(crate) fn sum<const N: usize>(&self, values: [f64; N]) -> Result<[f64; N]> {
        let Some(group) = &self.group else { return Ok(values) };
        let tensor = Tensor::f_from_slice(&values)?;
        group.all_reduce(&tensor, ReduceOp::Sum)?;
        let mut sums = values;
        tensor.f_copy_data(&mut sums, N)?;
        Ok(sums)
    }

    /// Replaces a tensor by its mean over the ranks, in place. On a GPU the host does not wait.
    pub(crate) fn average(&self, tensor: &Tensor) -> Result<()> {
        match &self.group {
            Some(group) => Ok(group.all_reduce(tensor, ReduceOp::Mean)?),
            None => Ok(()),
        }
    }

    /// Copies the tensors of rank 0 to every other rank, in place.
    pub(crate) fn broadcast(&self, tensors: impl IntoIterator<Item = Tensor>) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let detached: Vec<Tensor> = tensors.into_iter().map(|tensor| tensor.detach()).collect();
        Ok(group.broadcast(&detached, 0)?)
    }

    /// Returns the value of this rank if every rank succeeded, so that all ranks fail together.
    ///
    /// # Errors
    /// Returns the error of this rank, or else the error of the first rank that failed.
    pub(crate) fn try_all<T>(&self, result: Result<T>) -> Result<T> {
        let Some(group) = &self.group else { return result };
        let own_error = result.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        let errors = group.all_gather_text(&own_error)?;
        let value = result?;
        match errors.iter().position(|error| !error.is_empty()) {
            Some(rank) => bail!("rank {rank} failed: {}", errors[rank]),
            None => Ok(value),
        }
    }

    /// Evaluates `text` on rank 0 and returns its result on every rank.
    ///
    /// # Errors
    /// Returns the error of rank 0 on every rank.
    pub(crate) fn broadcast_from_first(&self, text: impl FnOnce() -> Result<String>) -> Result<String> {
        let own = if self.is_first() { text() } else { Ok(String::new()) };
        let Some(group) = &self.group else { return own };
        let own = self.try_all(own)?;
        let mut all = group.all_gather_text(&own)?;
        Ok(all.swap_remove(0))
    }

    /// Checks that a map has the same entries on every rank. `what` describes the map in the error.
    ///
    /// # Errors
    /// Names the first rank that differs from rank 0, the key, and both values.
    pub(crate) fn require_equal(&self, what: &str, own: &BTreeMap<String, String>) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let all = group.all_gather_text(&serde_json::to_string(own)?)?;
        let all = all
            .iter()
            .map(|text| serde_json::from_str(text).context("invalid message from another rank"))
            .collect::<Result<Vec<BTreeMap<String, String>>>>()?;
        match first_difference(&all) {
            Some((rank, key, first, other)) => Err(anyhow!(
                "the ranks have different {what}: {key} is {other} on rank {rank} and {first} on rank 0; start all ranks with the same files and arguments"
            )),
            None => Ok(()),
        }
    }

    /// Checks that each named tensor has the same values on every rank. `what` describes the
    /// tensors in the error.
    ///
    /// # Errors
    /// Names the first rank that differs from rank 0, and the tensor.
    pub(crate) fn require_equal_tensors<'a>(
        &self,
        what: &str,
        tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    ) -> Result<()> {
        if self.group.is_none() {
            return Ok(());
        }
        let hash = |(name, tensor): (&str, &Tensor)| Ok((name.to_owned(), sha256_of(tensor)?));
        self.require_equal(what, &tensors.map(hash).collect::<Result<_>>()?)
    }
}

/// Returns the first rank whose map differs from that of rank 0, the key, the value of rank 0, and
/// its own value.
fn first_difference(all: &[BTreeMap<String, String>]) -> Option<(usize, String, String, String)> {
    let (first, others) = all.split_first()?;
    let absent = || "absent".to_owned();
    others.iter().enumerate().find_map(|(i, other)| {
        let key = first.keys().chain(other.keys()).find(|key| first.get(*key) != other.get(*key))?;
        let value = |map: &BTreeMap<String, String>| map.get(key).cloned().unwrap_or_else(absent);
        Some((i + 1, key.clone(), value(first), value(other)))
    })
}

/// Returns the SHA-256 hash of a tensor's values, as little-endian fp32.
fn sha256_of(tensor: &Tensor) -> Result<String> {
    let host = tensor.detach().f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut hasher = Sha256::new();
    let mut values = vec![0f32; host.numel()];
    host.f_copy_data(&mut values, host.numel())?;
    for chunk in values.chunks(1 << 14) {
        let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
        hasher.update(bytes);
    }
    Ok(hex(&hasher.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn first_difference_names_rank_and_key() {
        let (a, b) = (map(&[("run.seed", "1"), ("x", "2")]), map(&[("run.seed", "3"), ("x", "2")]));
        assert_eq!(first_difference(&[a.clone(), a.clone()]), None);
        let expected = (2, "run.seed".to_owned(), "1".to_owned(), "3".to_owned());
        assert_eq!(first_difference(&[a.clone(), a.clone(), b]), Some(expected));
        let (_, key, first, other) = first_difference(&[a, map(&[("run.seed", "1")])]).unwrap();
        assert_eq!((key.as_str(), first.as_str(), other.as_str()), ("x", "2", "absent"));
    }

    #[test]
    fn single_rank_is_consistent() {
        let collectives = Collectives::alone();
        assert_eq!(collectives.any([true, false]).unwrap(), [true, false]);
        assert_eq!(collectives.min(3).unwrap(), 3);
        assert_eq!(collectives.sum([1.5, 2.0]).unwrap(), [1.5, 2.0]);
        assert_eq!(collectives.broadcast_from_first(|| Ok("text".to_owned())).unwrap(), "text");
        assert_eq!(collectives.try_all(Err::<(), _>(anyhow!("full"))).unwrap_err().to_string(), "full");
    }

    #[test]
    fn tensor_hash_is_that_of_its_values() {
        let tensor = Tensor::from_slice(&[1f32, -2.5, 3.0]);
        let bytes: Vec<u8> = [1f32, -2.5, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(sha256_of(&tensor).unwrap(), hex(&Sha256::digest(bytes)));
        assert_ne!(sha256_of(&(&tensor + 1e-6)).unwrap(), sha256_of(&tensor).unwrap());
    }
}
