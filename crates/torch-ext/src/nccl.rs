//! The NCCL plug-in: a small library of its own, since it needs `libtorch_cuda.so`, which
//! binaries do not link. Built where NCCL's headers are (build.rs).

use std::ffi::c_char;
use std::path::PathBuf;

use crate::error::{Error, c_string, check, take};

/// Names the plug-in where it lies elsewhere than beside the executable.
const VARIABLE: &str = "BACKPACK_NCCL_PLUGIN";
const FILE: &str = "libbackpack_nccl.so";

/// Where this build put it, from the folder of executables: a checkout may be moved.
const BUILT: Option<&str> = option_env!("BACKPACK_NCCL_BUILT");

unsafe extern "C" {
    fn bpx_nccl_version(path: *const c_char, out: *mut *mut c_char) -> *mut c_char;
}

/// NCCL's version, for instance `2.29.7`.
///
/// # Errors
/// When the plug-in, CUDA's libraries or NCCL's are missing.
pub fn version() -> Result<String, Error> {
    crate::load_cuda()?;
    let path = c_string(&plugin()?.to_string_lossy())?;
    let mut text = std::ptr::null_mut();
    // SAFETY: a string that outlives the call; on success the shim stored one that is ours.
    unsafe {
        check(bpx_nccl_version(path.as_ptr(), &mut text))?;
        Ok(take(text))
    }
}

/// The plug-in's file.
///
/// # Errors
/// When there is none, saying how to get it.
pub fn plugin() -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) {
        let there = path.is_file();
        return there
            .then_some(path.clone())
            .ok_or_else(|| Error(format!("the NCCL plug-in {} is not there ({VARIABLE} names it)", path.display())));
    }
    let folders = std::env::current_exe().ok().into_iter().flat_map(|exe| {
        // Tests lie one folder below the programs.
        exe.ancestors().skip(1).take(2).map(PathBuf::from).collect::<Vec<_>>()
    });
    let candidates = folders.flat_map(|folder| [Some(folder.join(FILE)), BUILT.map(|built| folder.join(built))]);
    candidates.flatten().find(|path| path.is_file()).ok_or_else(|| {
        Error(match BUILT {
            Some(_) => format!("the NCCL plug-in {FILE} is not where it was built: put it beside the executable, or name it in {VARIABLE}"),
            None => "the NCCL plug-in is not built: run `scripts/setup.sh --cuda` and build again".to_owned(),
        })
    })
}
