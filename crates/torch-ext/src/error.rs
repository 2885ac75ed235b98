//! Errors as libtorch words them, and what crosses to C++.

use std::ffi::{CStr, CString, c_char};
use std::fmt;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::distributed::worded;

/// Why a call failed, in one line: libtorch's words without their backtrace, or this crate's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(pub(crate) String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// What tch's own calls give, errors of the backward pass included.
impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Error::from_libtorch(&error.to_string())
    }
}

impl Error {
    pub(crate) fn from_libtorch(message: &str) -> Self {
        Error(worded(message).unwrap_or_else(|| format!("libtorch: {}", first_line(message))))
    }
}

/// The first line of a libtorch message: the rest is a C++ backtrace.
pub fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default().trim()
}

/// Returns the first line of a panic's message, given the panic's payload; empty for a payload that is
/// not text. tch's shorthand methods panic with libtorch's messages.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    first_line(text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or_default()).to_owned()
}

unsafe extern "C" {
    fn free(pointer: *mut std::ffi::c_void);
}

/// Takes a C string that the shim allocated.
pub(crate) fn take(text: *mut c_char) -> String {
    // SAFETY: the shim returns strings made by strdup: NUL-terminated, ours to free, once.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        free(text.cast());
        owned
    }
}

pub(crate) fn check(message: *mut c_char) -> Result<(), Error> {
    if message.is_null() {
        return Ok(());
    }
    Err(Error::from_libtorch(&take(message)))
}

/// Text for C++.
pub(crate) fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error(format!("{text:?} holds a zero byte")))
}

/// A borrowed C++ handle; valid while the tensor is.
pub(crate) fn handle(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

/// The same, null for none.
pub(crate) fn handle_or_null(tensor: Option<&Tensor>) -> *mut C_tensor {
    tensor.map_or(std::ptr::null_mut(), handle)
}

/// Borrowed C++ handles of several tensors.
pub(crate) fn handles(tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(handle).collect()
}

/// The tensor that a successful call made: `call` stores a new one through its pointer.
pub(crate) fn made(call: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Result<Tensor, Error> {
    let mut tensor = std::ptr::null_mut();
    check(call(&mut tensor))?;
    // SAFETY: every shim function that returns no message has stored a tensor that is now ours.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}
