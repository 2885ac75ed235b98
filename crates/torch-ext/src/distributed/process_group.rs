//! The group of all ranks, and its collective operations.

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

/// The C++ side's group.
#[repr(C)]
pub(super) struct RawGroup {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn bpx_quiet(errors_too: i32);
    fn bpx_group_new(
        store: *mut RawStore,
        rank: i32,
        size: i32,
        timeout_ms: i64,
        interfaces: *const c_char,
        address: *const c_char,
        out: *mut *mut RawGroup,
    ) -> *mut c_char;
    fn bpx_group_add_nccl(group: *mut RawGroup, path: *const c_char, timeout_ms: i64) -> *mut c_char;
    fn bpx_group_leave(group: *mut RawGroup) -> *mut c_char;
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

/// How [`ProcessGroup::all_reduce`] puts the ranks' values together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum.
    Sum,
    /// The sum divided by the number of ranks; of floating-point numbers only.
    Mean,
    /// The largest.
    Max,
}

/// Most bytes that a broadcast sends at once: DistributedDataParallel's own figure.
const BROADCAST_BYTES: usize = 250 << 20;

/// All ranks, connected with one another: by Gloo for CPU tensors and, where the device is a
/// GPU, by NCCL for tensors on it.
///
/// Errors of its operations are for good: see the [module](crate::distributed).
#[derive(Debug)]
pub struct ProcessGroup {
    raw: NonNull<RawGroup>,
    rank: usize,
    world_size: usize,
    /// Taking NCCL down waits for the other ranks: left alone unless they all [leave](Self::leave).
    stays: bool,
    /// Serves the others while rank 0 lives.
    _store: TcpStore,
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // SAFETY: made by bpx_group_new, freed once.
        let said = check(unsafe { bpx_group_free(self.raw.as_ptr()) });
        debug_assert!(said.is_ok(), "{said:?}");
    }
}

impl ProcessGroup {
    /// Meets the other ranks; returns when all are connected.
    ///
    /// # Errors
    /// When rank 0 cannot be reached, or its port is taken; when not all ranks come within
    /// the time, saying which; for a network interface that is not there; and for a GPU
    /// without what NCCL needs.
    pub fn join(at: &Rendezvous<'_>, device: Device) -> Result<Self, Error> {
        let begun = Instant::now();
        // What NCCL's own threads say before they end the process is its only message.
        // SAFETY: sets a number.
        unsafe { bpx_quiet(i32::from(!device.is_cuda())) }
        // Looked for first: it is no use to wait for others without it.
        let plugin = if device.is_cuda() { Some(nccl_plugin()?) } else { None };
        let store = TcpStore::open(at, begun)?;
        let interfaces = c_string(&store.interfaces)?;
        let address = c_string(&store.address.to_string())?;
        let (rank, size, timeout) = (at.rank as i32, at.world_size as i32, millis(at.timeout));
        let mut raw = std::ptr::null_mut();
        // SAFETY: a live store, strings that outlive the call; on success the shim stored a
        // group that is ours.
        check(unsafe {
            bpx_group_new(store.as_ptr(), rank, size, timeout, interfaces.as_ptr(), address.as_ptr(), &mut raw)
        })
        .map_err(|error| {
            let by = if store.interfaces.is_empty() { store.address.to_string() } else { store.interfaces.clone() };
            Error(format!(
                "rank {} on {} could not connect with the other ranks over {by}: {error}; check that the nodes reach one another there, or give another network interface (distributed.interface)",
                at.rank,
                host_name()
            ))
        })?;
        let Some(raw) = NonNull::new(raw) else { return Err(Error("libtorch made no process group".to_owned())) };
        let mut group = ProcessGroup { raw, rank: at.rank, world_size: at.world_size, stays: false, _store: store };
        if let Some(path) = plugin {
            let path = c_string(&path.to_string_lossy())?;
            // SAFETY: a live group, a string that outlives the call.
            check(unsafe { bpx_group_add_nccl(group.as_ptr(), path.as_ptr(), timeout) })
                .map_err(|error| Error(format!("NCCL cannot start on rank {}: {error}", at.rank)))?;
            group.stays = true;
        }
        Ok(group)
    }

    /// This process, below [`world_size`](Self::world_size).
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// How long an operation may wait for the other ranks from now on; at first as long as
    /// joining might take.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn set_timeout(&self, timeout: Duration) -> Result<(), Error> {
        // SAFETY: a live group.
        check(unsafe { bpx_group_set_timeout(self.as_ptr(), millis(timeout)) })
    }

    /// Leaves in `tensor`, on every rank, what `op` makes of the ranks' tensors of one shape
    /// and type. Returns when it is done on the CPU, and when it is queued on a GPU: later
    /// operations there wait for it, the host does not.
    ///
    /// # Errors
    /// When a rank is gone or does not answer in time, or libtorch refuses.
    pub fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<(), Error> {
        let integral = matches!(tensor.kind(), Kind::Uint8 | Kind::Int8 | Kind::Int16 | Kind::Int | Kind::Int64);
        if op == ReduceOp::Mean && integral {
            return Err(Error(format!("the mean over ranks is of floating-point numbers, not {:?}", tensor.kind())));
        }
        // c10d::ReduceOp's numbers.
        let op = match op {
            ReduceOp::Sum => 0,
            ReduceOp::Mean => 1,
            ReduceOp::Max => 4,
        };
        // SAFETY: a live group and tensor.
        check(unsafe { bpx_group_all_reduce(self.as_ptr(), handle(tensor), op) })
    }

    /// Leaves `root`'s values in every rank's tensors, which have the same shapes and types in
    /// the same order.
    ///
    /// # Errors
    /// When a rank is gone or does not answer in time, or libtorch refuses.
    pub fn broadcast(&self, tensors: &[Tensor], root: usize) -> Result<(), Error> {
        if root >= self.world_size {
            return Err(Error(format!("rank {root} cannot broadcast to {} ranks", self.world_size)));
        }
        let raw = handles(tensors);
        // SAFETY: a live group, live tensors.
        check(unsafe { bpx_group_broadcast(self.as_ptr(), raw.as_ptr(), raw.len(), BROADCAST_BYTES, root as i32) })
    }

    /// Returns when every rank has come here. Says nothing of what GPUs still have to do.
    ///
    /// # Errors
    /// When a rank is gone or does not come in time.
    pub fn barrier(&self) -> Result<(), Error> {
        // SAFETY: a live group.
        check(unsafe { bpx_group_barrier(self.as_ptr()) })
    }

    /// Ends the group in good order, on every rank, after all that was asked of it. Where
    /// something failed, do not wait for the others: [`crate::exit_now`].
    ///
    /// # Errors
    /// When a rank is gone or does not come in time.
    pub fn leave(mut self) -> Result<(), Error> {
        self.barrier()?;
        // SAFETY: a live group.
        check(unsafe { bpx_group_leave(self.as_ptr()) })?;
        self.stays = false;
        Ok(())
    }

    /// The ranks' texts, by rank, on every rank.
    ///
    /// # Errors
    /// When a rank is gone or does not answer in time.
    pub fn all_gather_text(&self, text: &str) -> Result<Vec<String>, Error> {
        let lengths = self.all_gather(&Tensor::from_slice(&[text.len() as i64]))?;
        let lengths: Vec<usize> = lengths.iter().map(|length| length.int64_value(&[0]) as usize).collect();
        // Gathered tensors are of one size.
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

    /// The ranks' CPU tensors, of one shape.
    fn all_gather(&self, input: &Tensor) -> Result<Vec<Tensor>, Error> {
        let outputs: Vec<Tensor> = (0..self.world_size).map(|_| input.zeros_like()).collect();
        // SAFETY: a live group, as many live tensors as ranks.
        check(unsafe { bpx_group_all_gather(self.as_ptr(), handle(input), handles(&outputs).as_ptr()) })?;
        Ok(outputs)
    }

    pub(super) fn as_ptr(&self) -> *mut RawGroup {
        self.raw.as_ptr()
    }
}

/// The plug-in, with CUDA loaded.
fn nccl_plugin() -> Result<PathBuf, Error> {
    let plugin = nccl::plugin()?;
    match crate::load_cuda() {
        Ok(()) => Ok(plugin),
        Err(error) => Err(Error(format!("CUDA cannot be loaded ({error}): run `scripts/setup.sh --cuda`"))),
    }
}
