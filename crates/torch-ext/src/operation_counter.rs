//! Counts of the operations that libtorch runs, so that tests can limit the number of GPU kernels
//! and of host waits of a training step without a GPU.

use std::ffi::c_char;

use crate::error::{Error, check, take_string};

unsafe extern "C" {
    fn bpx_start_counting() -> *mut c_char;
    fn bpx_stop_counting(text: *mut *mut c_char) -> *mut c_char;
}

/// How often an operation ran. Operations that only call others are not counted, and neither are
/// those without a kernel, such as views.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperationCount {
    /// Name of the operation, for example `aten::mm`, or of a CUDA kernel of this crate.
    pub name: String,
    /// Number of calls.
    pub calls: u64,
    /// Bytes of the tensors that the calls received and returned; 0 for CUDA kernels of this crate.
    pub bytes: u64,
    /// Whether the host reads a value or a size that the operation computes, and so waits for a
    /// GPU.
    pub is_read_by_host: bool,
}

/// Calls `f`, and returns its result and the operations that all threads ran meanwhile, sorted by
/// name. One count can run at a time in a process.
///
/// # Errors
/// Another count is running.
pub fn count_operations<R>(f: impl FnOnce() -> R) -> Result<(R, Vec<OperationCount>), Error> {
    // SAFETY: adds a callback that only counts.
    check(unsafe { bpx_start_counting() })?;
    let result = f();
    let mut text = std::ptr::null_mut();
    // SAFETY: on success, the shim has stored a string, which is now ours.
    let text = unsafe {
        check(bpx_stop_counting(&mut text))?;
        take_string(text)
    };
    let parse = |line: &str| -> Option<OperationCount> {
        let mut fields = line.split('\t');
        let (name, calls, bytes) = (fields.next()?, fields.next()?, fields.next()?);
        Some(OperationCount {
            name: name.to_owned(),
            calls: calls.parse().ok()?,
            bytes: bytes.parse().ok()?,
            is_read_by_host: fields.next()? == "1",
        })
    };
    let counts: Option<Vec<OperationCount>> = text.lines().map(parse).collect();
    Ok((result, counts.ok_or_else(|| Error("the operation count has a malformed line".to_owned()))?))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn operations_are_counted_with_their_bytes() {
        let a = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
        let b = Tensor::ones([3, 4], (Kind::Float, Device::Cpu));
        let (_, counts) = count_operations(|| a.mm(&b).mm(&b.tr()).double_value(&[0, 0])).unwrap();
        let products = counts.iter().find(|count| count.name == "aten::mm").unwrap();
        // 2 x 3, 3 x 4 and 2 x 4, then 2 x 4, 4 x 3 and 2 x 3 numbers of 4 bytes.
        assert_eq!((products.calls, products.bytes), (2, 4 * (6 + 12 + 8) * 2));
        let read: Vec<&str> = counts.iter().filter(|c| c.is_read_by_host).map(|c| c.name.as_str()).collect();
        assert_eq!(read, ["aten::_local_scalar_dense"]);
        assert!(!counts.iter().any(|count| count.name == "aten::t"), "views are not counted");
    }
}
