//! Averaging gradients over the ranks while the backward pass goes on.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};
use std::ptr::NonNull;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::distributed::process_group::{ProcessGroup, RawGroup};
use crate::error::{Error, c_string, check, handle, handles, take};

/// The C++ side's Reducer and Logger.
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

/// Size of the first bucket to be reduced: small, so that communication starts early in the
/// backward pass. DistributedDataParallel's own figure.
const FIRST_BUCKET_BYTES: usize = 1 << 20;

/// What a [`Reducer`] did and how long it took, averaged over the steps that libtorch times:
/// the second to the eleventh, then each hundredth.
#[derive(Debug, Clone, PartialEq)]
pub struct ReducerStatistics {
    /// Bytes of gradients in each bucket, in the order in which they are reduced.
    pub bucket_bytes: Vec<usize>,
    /// Whether the buckets follow the order in which gradients come: from the second step on.
    pub rebuilt: bool,
    /// The last step that is in the averages; 0 for none.
    pub steps: u64,
    /// The backward pass of the micro-batch that reduces.
    pub backward_seconds: f64,
    /// From the first bucket's start to the last one's end.
    pub communication_seconds: f64,
    /// What of the communication ran while the backward pass did.
    pub overlap_seconds: f64,
}

/// The engine of PyTorch's `DistributedDataParallel`: gradients lie in buckets, each of which
/// is averaged over all ranks as soon as the backward pass has filled it.
///
/// A step is a number of passes, of which the last one reduces:
/// `before_forward(reduces)`, forward, `before_backward(reduces)`, backward,
/// `after_backward(reduces)`. Gradients are views of the buckets from the first reducing pass
/// on; [`crate::forget_grad`] or zeroing them in place are both allowed between steps.
#[derive(Debug)]
pub struct Reducer {
    raw: NonNull<RawReducer>,
    rank: usize,
}

impl Drop for Reducer {
    fn drop(&mut self) {
        // SAFETY: made by bpx_reducer_new, freed once.
        let said = check(unsafe { bpx_reducer_free(self.raw.as_ptr()) });
        debug_assert!(said.is_ok(), "{said:?}");
    }
}

impl Reducer {
    /// For these parameters, in buckets of about `bucket_bytes`. Every rank calls it with the
    /// same parameters in the same order.
    ///
    /// # Errors
    /// When a parameter is given twice, or the ranks' parameters differ: the latter on every
    /// rank, with the parameter's name.
    pub fn new(
        group: &ProcessGroup,
        names: &[String],
        parameters: &[Tensor],
        bucket_bytes: usize,
    ) -> Result<Self, Error> {
        if names.len() != parameters.len() {
            return Err(Error(format!("{} names for {} parameters", names.len(), parameters.len())));
        }
        refuse_duplicates(names, parameters)?;
        require_same_parameters(group, names, parameters)?;
        let c_names = names.iter().map(|name| c_string(name)).collect::<Result<Vec<CString>, Error>>()?;
        let c_names: Vec<*const c_char> = c_names.iter().map(|name| name.as_ptr()).collect();
        let first = FIRST_BUCKET_BYTES.min(bucket_bytes) as i64;
        let mut raw = std::ptr::null_mut();
        // SAFETY: a live group, lists of n live tensors and strings; on success the shim
        // stored a reducer that is ours.
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

    /// Before each forward pass; `reduces` for the last one of a step.
    ///
    /// # Errors
    /// When the step before did not end, or a rank is gone or does not answer in time (once,
    /// the ranks agree on new buckets here).
    pub fn before_forward(&self, reduces: bool) -> Result<(), Error> {
        // SAFETY: a live reducer.
        self.check(unsafe { bpx_reducer_before_forward(self.raw.as_ptr(), reduces.into()) })
    }

    /// Between the forward and the backward pass.
    ///
    /// # Errors
    /// When the step before did not end.
    pub fn before_backward(&self, reduces: bool) -> Result<(), Error> {
        if !reduces {
            return Ok(());
        }
        // SAFETY: a live reducer.
        self.check(unsafe { bpx_reducer_before_backward(self.raw.as_ptr()) })
    }

    /// After the backward pass, whose own errors come first: it is where a rank that is gone
    /// is noticed.
    ///
    /// # Errors
    /// When parameters got no gradient, with their names.
    pub fn after_backward(&self, reduces: bool) -> Result<(), Error> {
        if !reduces {
            return Ok(());
        }
        // SAFETY: a live reducer.
        self.check(unsafe { bpx_reducer_after_backward(self.raw.as_ptr()) })
    }

    /// What it did so far.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn statistics(&self) -> Result<ReducerStatistics, Error> {
        let mut raw = RawStatistics::default();
        let mut bucket_bytes = Vec::new();
        // Twice: the first call tells how many buckets there are.
        for _ in 0..2 {
            bucket_bytes.resize(raw.bucket_count as usize, 0i64);
            // SAFETY: a live reducer; the array has room for `bucket_count`.
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
        Err(worded(&take(message), self.rank))
    }
}

/// The Reducer's paragraph on unused parameters, which speaks of Python and has the names in
/// its last lines, as a sentence.
fn worded(message: &str, rank: usize) -> Error {
    let unused = message.lines().find_map(|line| line.strip_prefix("Parameters which did not receive grad for rank "));
    match unused.and_then(|line| line.split_once(": ")) {
        Some((_, names)) => Error(format!(
            "parameters got no gradient in the backward pass on rank {rank}: {}; every trained parameter must take part in the loss",
            names.trim()
        )),
        None => Error::from_libtorch(message),
    }
}

fn refuse_duplicates(names: &[String], parameters: &[Tensor]) -> Result<(), Error> {
    let mut seen = HashMap::new();
    for (name, parameter) in names.iter().zip(parameters) {
        // SAFETY: a live tensor; the pointer is only compared.
        let identity = unsafe { bpx_tensor_identity(handle(parameter)) };
        if let Some(other) = seen.insert(identity, name) {
            return Err(Error(format!(
                "the parameters {other} and {name} are one tensor: give it to the reducer once"
            )));
        }
    }
    Ok(())
}

/// Every rank sees every rank's list, so that all fail alike.
fn require_same_parameters(group: &ProcessGroup, names: &[String], parameters: &[Tensor]) -> Result<(), Error> {
    let row = |(name, p): (&String, &Tensor)| format!("{name} {:?} {:?} {:?}", p.kind(), p.size(), p.stride());
    let rows: Vec<String> = names.iter().zip(parameters).map(row).collect();
    let all = group.all_gather_text(&rows.join("\n"))?;
    let Some(first) = all.first() else { return Ok(()) };
    let Some((rank, other)) = all.iter().enumerate().find(|(_, other)| *other != first) else { return Ok(()) };
    // The first row that differs; the shorter list ends with none.
    let end = std::iter::once("no more parameters");
    let pairs = first.lines().chain(end.clone()).zip(other.lines().chain(end));
    let (here, there) = pairs.into_iter().find(|(a, b)| a != b).unwrap_or(("other names", "other names"));
    Err(Error(format!("the ranks train different parameters: rank 0 has {here}, rank {rank} has {there}")))
}
