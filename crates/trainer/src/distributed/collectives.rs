//! The processes of a run, and what they agree on.
//!
//! Every method but [`Collectives::rank`] and its like is collective: all ranks call it, in the
//! same order. A run of one process has no group, and agrees with itself at no cost.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use data_prep::hash::hex;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};
use torch_ext::distributed::{ProcessGroup, ReduceOp, Rendezvous};

use crate::distributed::config::DistributedConfig;
use crate::distributed::world::World;

/// This process among those of the run.
#[derive(Debug)]
pub(crate) struct Collectives {
    rank: usize,
    size: usize,
    /// None in a run of one.
    group: Option<ProcessGroup>,
    timeout: Duration,
}

impl Collectives {
    /// The only process of a run.
    #[cfg(test)]
    pub(crate) fn alone() -> Self {
        Collectives { rank: 0, size: 1, group: None, timeout: Duration::ZERO }
    }

    /// Meets the other processes.
    ///
    /// # Errors
    /// When they do not all come in time, or a port or interface cannot be used.
    pub(crate) fn join(world: &World, config: &DistributedConfig, device: Device) -> Result<Self> {
        let group = match &world.master {
            None => None,
            Some((host, port)) => {
                let at = Rendezvous {
                    host,
                    port: *port,
                    rank: world.rank,
                    world_size: world.size,
                    timeout: Duration::from_secs(config.init_timeout_seconds),
                    interface: Some(&config.interface[..]).filter(|name| !name.is_empty()),
                    name: &world.launch_id,
                };
                Some(ProcessGroup::join(&at, device)?)
            }
        };
        Ok(Collectives {
            rank: world.rank,
            size: world.size,
            group,
            timeout: Duration::from_secs(config.timeout_seconds),
        })
    }

    /// Takes leave of the others, when all has gone well: nobody ends before the last is done.
    pub(crate) fn shutdown(self) -> Result<()> {
        match self.group {
            Some(group) => Ok(group.leave()?),
            None => Ok(()),
        }
    }

    /// This process, from 0.
    pub(crate) fn rank(&self) -> u64 {
        self.rank as u64
    }

    /// Processes of the run.
    pub(crate) fn size(&self) -> u64 {
        self.size as u64
    }

    /// Whether this is the one that writes.
    pub(crate) fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// The group, where there are others.
    pub(crate) fn group(&self) -> Option<&ProcessGroup> {
        self.group.as_ref()
    }

    /// From here on, exchanges have the time of a running training, not that of its start.
    pub(crate) fn use_run_timeout(&self) -> Result<()> {
        match &self.group {
            Some(group) => Ok(group.set_timeout(self.timeout)?),
            None => Ok(()),
        }
    }

    /// How long a rank may do something else before it has to meet those that wait for it: well
    /// below the time of an exchange, and of the silence after which a run counts as stalled.
    pub(crate) fn poll_interval(&self) -> Duration {
        const MOST: Duration = Duration::from_secs(20);
        if self.group.is_some() { MOST.min(self.timeout / 4) } else { MOST }
    }

    /// For each flag, whether any rank raises it.
    pub(crate) fn any<const N: usize>(&self, flags: [bool; N]) -> Result<[bool; N]> {
        let Some(group) = &self.group else { return Ok(flags) };
        let said = Tensor::f_from_slice(&flags.map(i64::from))?;
        group.all_reduce(&said, ReduceOp::Max)?;
        let mut raised = [0i64; N];
        said.f_copy_data(&mut raised, N)?;
        Ok(raised.map(|flag| flag != 0))
    }

    /// The smallest of the ranks' values.
    pub(crate) fn min(&self, value: u64) -> Result<u64> {
        let Some(group) = &self.group else { return Ok(value) };
        let said = Tensor::f_from_slice(&[-(value as i64)])?;
        group.all_reduce(&said, ReduceOp::Max)?;
        Ok((-said.f_int64_value(&[0])?) as u64)
    }

    /// Each value summed over the ranks.
    pub(crate) fn sum<const N: usize>(&self, values: [f64; N]) -> Result<[f64; N]> {
        let Some(group) = &self.group else { return Ok(values) };
        let tensor = Tensor::f_from_slice(&values)?;
        group.all_reduce(&tensor, ReduceOp::Sum)?;
        let mut sums = values;
        tensor.f_copy_data(&mut sums, N)?;
        Ok(sums)
    }

    /// Makes a tensor the mean of the ranks', in place; on a GPU the host does not wait.
    pub(crate) fn average(&self, tensor: &Tensor) -> Result<()> {
        match &self.group {
            Some(group) => Ok(group.all_reduce(tensor, ReduceOp::Mean)?),
            None => Ok(()),
        }
    }

    /// Gives every rank the first one's values, in place.
    pub(crate) fn broadcast(&self, tensors: impl IntoIterator<Item = Tensor>) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let detached: Vec<Tensor> = tensors.into_iter().map(|tensor| tensor.detach()).collect();
        Ok(group.broadcast(&detached, 0)?)
    }

    /// What this rank has done, if every rank has: what fails on one fails on all, in its words.
    ///
    /// # Errors
    /// This rank's own, or that of the first other one that has one.
    pub(crate) fn try_all<T>(&self, result: Result<T>) -> Result<T> {
        let Some(group) = &self.group else { return result };
        let said = result.as_ref().err().map(|error| format!("{error:#}")).unwrap_or_default();
        let others = group.all_gather_text(&said)?;
        let value = result?;
        match others.iter().position(|said| !said.is_empty()) {
            Some(rank) => bail!("rank {rank} failed: {}", others[rank]),
            None => Ok(value),
        }
    }

    /// What the first rank says, on every rank.
    ///
    /// # Errors
    /// The first rank's, on every rank.
    pub(crate) fn broadcast_from_first(&self, text: impl FnOnce() -> Result<String>) -> Result<String> {
        let own = if self.is_first() { text() } else { Ok(String::new()) };
        let Some(group) = &self.group else { return own };
        let own = self.try_all(own)?;
        let mut all = group.all_gather_text(&own)?;
        Ok(all.swap_remove(0))
    }

    /// Refuses to go on where the ranks are not of one mind.
    ///
    /// # Errors
    /// Naming the first rank that differs from rank 0, the key, and both values.
    pub(crate) fn require_equal(&self, what: &str, own: &BTreeMap<String, String>) -> Result<()> {
        let Some(group) = &self.group else { return Ok(()) };
        let all = group.all_gather_text(&serde_json::to_string(own)?)?;
        let all = all
            .iter()
            .map(|text| serde_json::from_str(text).context("what another rank says of itself is no JSON"))
            .collect::<Result<Vec<BTreeMap<String, String>>>>()?;
        match difference(&all) {
            Some((rank, key, first, other)) => Err(anyhow!(
                "the ranks have different {what}: {key} is {other} on rank {rank} and {first} on rank 0: start all of them from the same files with the same arguments"
            )),
            None => Ok(()),
        }
    }

    /// Refuses to go on where the ranks hold different values under a name.
    ///
    /// # Errors
    /// Naming the rank and the tensor.
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

/// The first rank and key that differ from rank 0's, with rank 0's value and its own.
fn difference(all: &[BTreeMap<String, String>]) -> Option<(usize, String, String, String)> {
    let (first, others) = all.split_first()?;
    let absent = || "absent".to_owned();
    others.iter().enumerate().find_map(|(i, other)| {
        let key = first.keys().chain(other.keys()).find(|key| first.get(*key) != other.get(*key))?;
        let value = |map: &BTreeMap<String, String>| map.get(key).cloned().unwrap_or_else(absent);
        Some((i + 1, key.clone(), value(first), value(other)))
    })
}

/// Of an fp32 tensor's values.
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
    fn the_first_difference_names_rank_and_key() {
        let (a, b) = (map(&[("run.seed", "1"), ("x", "2")]), map(&[("run.seed", "3"), ("x", "2")]));
        assert_eq!(difference(&[a.clone(), a.clone()]), None);
        let expected = (2, "run.seed".to_owned(), "1".to_owned(), "3".to_owned());
        assert_eq!(difference(&[a.clone(), a.clone(), b]), Some(expected));
        let (_, key, first, other) = difference(&[a, map(&[("run.seed", "1")])]).unwrap();
        assert_eq!((key.as_str(), first.as_str(), other.as_str()), ("x", "2", "absent"));
    }

    #[test]
    fn one_process_agrees_with_itself() {
        let ranks = Collectives::alone();
        assert_eq!(ranks.any([true, false]).unwrap(), [true, false]);
        assert_eq!(ranks.min(3).unwrap(), 3);
        assert_eq!(ranks.sum([1.5, 2.0]).unwrap(), [1.5, 2.0]);
        assert_eq!(ranks.broadcast_from_first(|| Ok("here".to_owned())).unwrap(), "here");
        assert_eq!(ranks.try_all(Err::<(), _>(anyhow!("full"))).unwrap_err().to_string(), "full");
    }

    #[test]
    fn the_hash_is_of_the_values() {
        let tensor = Tensor::from_slice(&[1f32, -2.5, 3.0]);
        let bytes: Vec<u8> = [1f32, -2.5, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(sha256_of(&tensor).unwrap(), hex(&Sha256::digest(bytes)));
        assert_ne!(sha256_of(&(&tensor + 1e-6)).unwrap(), sha256_of(&tensor).unwrap());
    }
}
