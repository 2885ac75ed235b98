//! The process group of all ranks, and its collective operations.

use std::ffi::c_char;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::distributed::network::host_name;
use crate::distributed::rendezvous::{RawStore, Rendezvous, TcpStore, millis};
use crate::error::{Error, c_string, check, handle, handles};
use crate::nccl;

/// The group in C++.
#[repr(C)]
pub(super) struct RawGroup {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn bpx_quiet(errors_too: i32);
    fn bpx_group_check_version() -> *mut c_char;
    fn bpx_group_new(
        store: *mut RawStore,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        interfaces: *const c_char,
        address: *const c_char,
        out: *mut *mut RawGroup,
    ) -> *mut c_char;
    fn bpx_group_add_nccl(group: *mut RawGroup, path: *const c_char, index: i64, timeout_ms: i64) -> *mut c_char;
    fn bpx_group_shutdown(group: *mut RawGroup) -> *mut c_char;
    fn bpx_group_free(group: *mut RawGroup) -> *mut c_char;
    fn bpx_group_set_timeout(group: *mut RawGroup, timeout_ms: i64) -> *mut c_char;
    fn bpx_group_all_reduce(group: *mut RawGroup, tensor: *mut C_tensor, op: u8) -> *mut c_char;
    fn bpx_group_broadcast(
        group: *mut RawGroup,
        tensors: *const *mut C_tensor,
        n: usize,
        buffer_bytes: usize,
        root: i32,
    ) -> *mut c_char;
    fn bpx_group_barrier(group: *mut RawGroup) -> *mut c_char;
    fn bpx_group_all_gather(group: *mut RawGroup, input: *mut C_tensor, outputs: *const *mut C_tensor) -> *mut c_char;
}

/// How [`ProcessGroup::all_reduce`] combines the values of the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum.
    Sum,
    /// The sum divided by the number of ranks; for floating-point numbers only.
    Mean,
    /// The maximum.
    Max,
}

/// Maximum number of bytes that a broadcast sends at once: the value of DistributedDataParallel.
const MAX_BROADCAST_BYTES: usize = 250 << 20;

/// The process group of all ranks. They are connected by Gloo for CPU tensors and, if the device is
/// a GPU, by NCCL for tensors on it.
///
/// A failed operation breaks the group permanently: see the [module](crate::distributed).
#[derive(Debug)]
pub struct ProcessGroup {
    raw: NonNull<RawGroup>,
    rank: usize,
    world_size: usize,
    /// Whether to keep the group in memory on drop. The destructor of NCCL waits for the other
    /// ranks, so it runs only after [`ProcessGroup::shutdown`].
    keep_on_drop: bool,
    /// Serves the other ranks while the group of rank 0 lives.
    _store: TcpStore,
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if self.keep_on_drop {
            return;
        }
        // SAFETY: made by bpx_group_new, freed once.
        let freed = check(unsafe { bpx_group_free(self.raw.as_ptr()) });
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

impl ProcessGroup {
    /// Joins the process group, and returns when all ranks are connected.
    ///
    /// # Errors
    /// Rank 0 cannot be reached, its port is in use, ranks are missing after the timeout (the
    /// message names them), the network interface does not exist, NCCL cannot be loaded for a GPU or
    /// cannot connect the GPUs of the ranks, or this program is built with another libtorch than
    /// 2.13.0.
    pub fn join(rendezvous: &Rendezvous<'_>, device: Device) -> Result<Self, Error> {
        let begin = Instant::now();
        // Before threads of NCCL end the process, they log the only message about the error.
        // SAFETY: sets a number.
        unsafe { bpx_quiet(i32::from(!device.is_cuda())) }
        // These are checked first, because waiting for other ranks is useless without them.
        // SAFETY: reads a constant.
        check(unsafe { bpx_group_check_version() })?;
        let nccl = match device {
            Device::Cuda(index) => Some((index as i64, nccl_plugin()?)),
            _ => None,
        };
        let store = TcpStore::open(rendezvous, begin)?;
        let interfaces = c_string(&store.interfaces)?;
        let address = c_string(&store.address.to_string())?;
        let (rank, size, timeout) = (rendezvous.rank as i32, rendezvous.world_size as i32, millis(rendezvous.timeout));
        let mut raw = std::ptr::null_mut();
        // SAFETY: a live store, and strings that outlive the call. On success, the shim has stored
        // a group, which is now ours.
        check(unsafe {
            bpx_group_new(store.as_ptr(), rank, size, timeout, interfaces.as_ptr(), address.as_ptr(), &mut raw)
        })
        .map_err(|error| {
            let network = if store.interfaces.is_empty() { store.address.to_string() } else { store.interfaces.clone() };
            Error(format!(
                "rank {} on {} could not connect with the other ranks over {network}: {error}; check that the nodes can reach one another there, or set another network interface (distributed.interface)",
                rendezvous.rank,
                host_name()
            ))
        })?;
        let Some(raw) = NonNull::new(raw) else { return Err(Error("libtorch made no process group".to_owned())) };
        let mut group = ProcessGroup {
            raw,
            rank: rendezvous.rank,
            world_size: rendezvous.world_size,
            keep_on_drop: false,
            _store: store,
        };
        if let Some((index, path)) = nccl {
            let path = c_string(&path.to_string_lossy())?;
            // Also after an error, because threads of NCCL may run.
            group.keep_on_drop = true;
            // SAFETY: a live group, and a string that outlives the call.
            check(unsafe { bpx_group_add_nccl(group.as_ptr(), path.as_ptr(), index, timeout) }).map_err(|error| {
                Error(format!(
                    "NCCL cannot start on rank {}: {error}; check that every rank on {} has a GPU of its own, and set NCCL_DEBUG=INFO for the messages of NCCL",
                    rendezvous.rank,
                    host_name()
                ))
            })?;
        }
        Ok(group)
    }

    /// The rank of this process, below [`world_size`](Self::world_size).
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of processes.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Sets how long an operation may wait for the other ranks. The initial value is that of
    /// [`Rendezvous::timeout`]. With NCCL, operations on CPU tensors wait 30 seconds longer, so that
    /// NCCL can dump its flight recorder first.
    ///
    /// # Errors
    /// A backend of the group does not support timeouts. Gloo and NCCL do.
    pub fn set_timeout(&self, timeout: Duration) -> Result<(), Error> {
        // SAFETY: a live group.
        check(unsafe { bpx_group_set_timeout(self.as_ptr(), millis(timeout)) })
    }

    /// Combines the tensors of the ranks, which have the same shape and type, and stores the result
    /// in `tensor` on every rank. On the CPU, returns when the operation is complete. On a GPU,
    /// returns when it is queued: later operations on the GPU wait for it, and the host does not.
    ///
    /// # Errors
    /// A rank has stopped or does not respond in time, or `op` does not support the type.
    pub fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<(), Error> {
        let integral = matches!(tensor.kind(), Kind::Uint8 | Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64);
        if op == ReduceOp::Mean && integral {
            return Err(Error(format!(
                "cannot compute the mean over ranks of type {:?}: give floating-point numbers",
                tensor.kind()
            )));
        }
        // The numbers of c10d::ReduceOp.
        let op = match op {
            ReduceOp::Sum => 0,
            ReduceOp::Mean => 1,
            ReduceOp::Max => 4,
        };
        // SAFETY: a live group, and a live tensor.
        check(unsafe { bpx_group_all_reduce(self.as_ptr(), handle(tensor), op) })
    }

    /// Copies the values of rank `root` to the tensors of all ranks, which have the same shapes and
    /// types in the same order.
    ///
    /// # Errors
    /// A rank has stopped or does not respond in time.
    pub fn broadcast(&self, tensors: &[Tensor], root: usize) -> Result<(), Error> {
        if root >= self.world_size {
            return Err(Error(format!("rank {root} cannot broadcast to {} ranks", self.world_size)));
        }
        let raw = handles(tensors);
        // SAFETY: a live group, and live tensors.
        check(unsafe { bpx_group_broadcast(self.as_ptr(), raw.as_ptr(), raw.len(), MAX_BROADCAST_BYTES, root as i32) })
    }

    /// Returns when all ranks have called it. Does not wait for queued work of GPUs.
    ///
    /// # Errors
    /// A rank has stopped or does not call it in time.
    pub fn barrier(&self) -> Result<(), Error> {
        // SAFETY: a live group.
        check(unsafe { bpx_group_barrier(self.as_ptr()) })
    }

    /// Shuts down the group on all ranks, after all earlier operations. After an error, call
    /// [`crate::exit_now`] instead, which does not wait for the other ranks.
    ///
    /// # Errors
    /// A rank has stopped or does not call it in time.
    pub fn shutdown(mut self) -> Result<(), Error> {
        self.barrier()?;
        // SAFETY: a live group.
        check(unsafe { bpx_group_shutdown(self.as_ptr()) })?;
        // The threads of NCCL on the other ranks use the store of rank 0 until they are shut down.
        self.barrier()?;
        self.keep_on_drop = false;
        Ok(())
    }

    /// Returns the texts of all ranks, ordered by rank, on every rank.
    ///
    /// # Errors
    /// A rank has stopped or does not respond in time.
    pub fn all_gather_text(&self, text: &str) -> Result<Vec<String>, Error> {
        let lengths = self.all_gather(&Tensor::from_slice(&[text.len() as i64]))?;
        let lengths: Vec<usize> = lengths.iter().map(|length| length.int64_value(&[0]) as usize).collect();
        // All gathered tensors must have the same size.
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(lengths.iter().copied().max().unwrap_or(0).max(1), 0);
        let texts = self.all_gather(&Tensor::from_slice(&bytes))?;
        let cut = |(tensor, length): (&Tensor, &usize)| {
            let mut bytes = Vec::<u8>::try_from(tensor).map_err(|error| Error(error.to_string()))?;
            bytes.truncate(*length);
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        texts.iter().zip(&lengths).map(cut).collect()
    }

    /// Returns the CPU tensors of all ranks, which have the same shape.
    fn all_gather(&self, input: &Tensor) -> Result<Vec<Tensor>, Error> {
        let outputs: Vec<Tensor> = (0..self.world_size).map(|_| input.zeros_like()).collect();
        // SAFETY: a live group, and one live tensor per rank.
        check(unsafe { bpx_group_all_gather(self.as_ptr(), handle(input), handles(&outputs).as_ptr()) })?;
        Ok(outputs)
    }

    pub(super) fn as_ptr(&self) -> *mut RawGroup {
        self.raw.as_ptr()
    }
}

/// Loads CUDA and returns the path of the NCCL plug-in.
fn nccl_plugin() -> Result<PathBuf, Error> {
    let plugin = nccl::plugin()?;
    match crate::load_cuda() {
        Ok(()) => Ok(plugin),
        Err(error) => Err(Error(format!("CUDA cannot be loaded ({error}): run `scripts/setup.sh --cuda`"))),
    }
}
