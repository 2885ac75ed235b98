//! The reducer, which averages gradients over the ranks during the backward pass.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::ptr::NonNull;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::distributed::process_group::{ProcessGroup, RawGroup};
use crate::error::{Error, c_string, check, handle, handles, take_string};

/// The Reducer and its Logger in C++.
#[repr(C)]
struct RawReducer {
    _opaque: [u8; 0],
}

#[repr(C)]
#[derive(Default)]
struct RawStatistics {
    bucket_count: i64,
    iterations: i64,
    rebuilt: i64,
    backward_ns: i64,
    communication_ns: i64,
    overlap_ns: i64,
}

unsafe extern "C" {
    fn bpx_tensor_identity(tensor: *mut C_tensor) -> *const c_void;
    fn bpx_reducer_new(
        group: *mut RawGroup,
        parameters: *const *mut C_tensor,
        names: *const *const c_char,
        n: usize,
        first_bucket_bytes: i64,
        bucket_bytes: i64,
        out: *mut *mut RawReducer,
    ) -> *mut c_char;
    fn bpx_reducer_free(reducer: *mut RawReducer) -> *mut c_char;
    fn bpx_reducer_before_forward(reducer: *mut RawReducer, reduces: i32) -> *mut c_char;
    fn bpx_reducer_before_backward(reducer: *mut RawReducer) -> *mut c_char;
    fn bpx_reducer_after_backward(reducer: *mut RawReducer) -> *mut c_char;
    fn bpx_reducer_statistics(reducer: *mut RawReducer, out: *mut RawStatistics, buckets: *mut i64) -> *mut c_char;
}

/// Size of the first bucket. It is small, so that communication starts early in the backward pass:
/// the value of DistributedDataParallel.
const FIRST_BUCKET_BYTES: usize = 1 << 20;

/// Buckets and mean times of a [`Reducer`]. The times are means over the steps that libtorch
/// measures: the second to the eleventh, then every hundredth.
#[derive(Debug, Clone, PartialEq)]
pub struct ReducerStatistics {
    /// Bytes of gradients in each bucket, in the order in which they are reduced.
    pub bucket_bytes: Vec<usize>,
    /// Whether the buckets follow the order in which gradients become ready, which is so from the
    /// second step on.
    pub rebuilt: bool,
    /// Number of the last step in the means; 0 for none.
    pub steps: u64,
    /// Duration of the backward pass of the micro-batch that reduces.
    pub backward_seconds: f64,
    /// Time from the start of the first bucket's reduction to the end of the last.
    pub communication_seconds: f64,
    /// Duration of the communication that ran during the backward pass.
    pub overlap_seconds: f64,
}

/// The gradient reducer of PyTorch's `DistributedDataParallel`. Gradients are in buckets, and each
/// bucket is averaged over all ranks as soon as the backward pass has filled it.
///
/// A step has one or more micro-batches, and the last one reduces. The calls per micro-batch are
/// `before_forward(reduces)`, forward pass, `before_backward(reduces)`, backward pass,
/// `after_backward(reduces)`. From the first reduction on, gradients are views of the buckets.
/// Between steps, they may be removed by [`crate::clear_grad`] or set to zero in place.
#[derive(Debug)]
pub struct Reducer {
    raw: NonNull<RawReducer>,
    rank: usize,
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: made by bpx_reducer_new, freed once.
        let freed = check(unsafe { bpx_reducer_free(self.raw.as_ptr()) });
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

impl Reducer {
    /// Creates a reducer for these parameters, in buckets of about `bucket_bytes`. All ranks must
    /// call it with the same parameters in the same order.
    ///
    /// # Errors
    /// A parameter appears twice, or the parameters of the ranks differ. In the second case, all
    /// ranks return an error that names the parameter.
    pub fn new(
        group: &ProcessGroup,
        names: &[String],
        parameters: &[Tensor],
        bucket_bytes: usize,
    ) -> Result<Self, Error> {
        if names.len() != parameters.len() {
            return Err(Error(format!("{} names for {} parameters", names.len(), parameters.len())));
        }
        reject_duplicates(names, parameters)?;
        require_same_parameters(group, names, parameters)?;
        let c_names = names.iter().map(|name| c_string(name)).collect::<Result<Vec<CString>, Error>>()?;
        let c_names: Vec<*const c_char> = c_names.iter().map(|name| name.as_ptr()).collect();
        let first = FIRST_BUCKET_BYTES.min(bucket_bytes) as i64;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a live group, and lists of n live tensors and strings. On success, the shim has
        // stored a reducer, which is now ours.
        check(unsafe {
            bpx_reducer_new(
                group.as_ptr(),
                handles(parameters).as_ptr(),
                c_names.as_ptr(),
                parameters.len(),
                first,
                bucket_bytes as i64,
                &mut raw,
            )
        })?;
        let Some(raw) = NonNull::new(raw) else { return Err(Error("libtorch made no reducer".to_owned())) };
        Ok(Reducer { raw, rank: group.rank() })
    }

    /// Must be called before each forward pass. `reduces` is true for the last micro-batch of a
    /// step. In one of these calls, the ranks agree on new buckets.
    ///
    /// # Errors
    /// The step before is incomplete, or a rank has stopped or does not respond in time.
    pub fn before_forward(&self, reduces: bool) -> Result<(), Error> {
        // SAFETY: a live reducer.
        self.check(unsafe { bpx_reducer_before_forward(self.raw.as_ptr(), reduces.into()) })
    }

    /// Must be called between the forward and the backward pass.
    ///
    /// # Errors
    /// The step before is incomplete.
    pub fn before_backward(&self, reduces: bool) -> Result<(), Error> {
        if !reduces {
            return Ok(());
        }
        // SAFETY: a live reducer.
        self.check(unsafe { bpx_reducer_before_backward(self.raw.as_ptr()) })
    }

    /// Must be called after the backward pass. If a rank has stopped, the backward pass itself
    /// returns the error.
    ///
    /// # Errors
    /// Parameters received no gradient; the message names them.
    pub fn after_backward(&self, reduces: bool) -> Result<(), Error> {
        if !reduces {
            return Ok(());
        }
        // SAFETY: a live reducer.
        self.check(unsafe { bpx_reducer_after_backward(self.raw.as_ptr()) })
    }

    /// Returns the buckets and mean times so far.
    pub fn statistics(&self) -> Result<ReducerStatistics, Error> {
        let mut raw = RawStatistics::default();
        let mut bucket_bytes = Vec::new();
        // Twice, because the first call returns the number of buckets.
        for _ in 0..2 {
            bucket_bytes.resize(raw.bucket_count as usize, 0i64);
            // SAFETY: a live reducer, and an array of `bucket_count` numbers.
            check(unsafe { bpx_reducer_statistics(self.raw.as_ptr(), &mut raw, bucket_bytes.as_mut_ptr()) })?;
        }
        let seconds = |ns: i64| ns as f64 * 1e-9;
        Ok(ReducerStatistics {
            bucket_bytes: bucket_bytes.into_iter().map(|bytes| bytes as usize).collect(),
            rebuilt: raw.rebuilt != 0,
            steps: raw.iterations as u64,
            backward_seconds: seconds(raw.backward_ns),
            communication_seconds: seconds(raw.communication_ns),
            overlap_seconds: seconds(raw.overlap_ns),
        })
    }

    fn check(&self, message: *mut c_char) -> Result<(), Error> {
        if message.is_null() {
            return Ok(());
        }
        Err(explain_unused_parameters(&take_string(message), self.rank))
    }
}

/// Rewrites the message of the Reducer about unused parameters, which refers to Python and has the
/// names in its last lines.
fn explain_unused_parameters(message: &str, rank: usize) -> Error {
    let unused = message.lines().find_map(|line| line.strip_prefix("Parameters which did not receive grad for rank "));
    match unused.and_then(|line| line.split_once(": ")) {
        Some((_, names)) => Error(format!(
            "parameters got no gradient in the backward pass on rank {rank}: {}; every trained parameter must take part in the loss",
            names.trim()
        )),
        None => Error::from_libtorch(message),
    }
}

fn reject_duplicates(names: &[String], parameters: &[Tensor]) -> Result<(), Error> {
    let mut seen = HashMap::new();
    for (name, parameter) in names.iter().zip(parameters) {
        // SAFETY: a live tensor. The pointer is only compared.
        let identity = unsafe { bpx_tensor_identity(handle(parameter)) };
        if let Some(other) = seen.insert(identity, name) {
            return Err(Error(format!(
                "the parameters {other} and {name} are one tensor: give it to the reducer once"
            )));
        }
    }
    Ok(())
}

/// Compares the lists of all ranks on every rank, so that all return the same error.
fn require_same_parameters(group: &ProcessGroup, names: &[String], parameters: &[Tensor]) -> Result<(), Error> {
    let row = |(name, p): (&String, &Tensor)| format!("{name} {:?} {:?} {:?}", p.kind(), p.size(), p.stride());
    let rows: Vec<String> = names.iter().zip(parameters).map(row).collect();
    let all = group.all_gather_text(&rows.join("\n"))?;
    let Some(first) = all.first() else { return Ok(()) };
    let Some((rank, other)) = all.iter().enumerate().find(|(_, other)| *other != first) else { return Ok(()) };
    // Finds the first row that differs. The end of the shorter list counts as a row.
    let end = std::iter::once("no more parameters");
    let pairs = first.lines().chain(end.clone()).zip(other.lines().chain(end));
    let (here, there) = pairs.into_iter().find(|(a, b)| a != b).unwrap_or(("other names", "other names"));
    Err(Error(format!("the ranks train different parameters: rank 0 has {here}, rank {rank} has {there}")))
}
