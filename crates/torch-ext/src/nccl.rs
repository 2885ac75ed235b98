//! The NCCL plug-in: a separate shared library, because it needs `libtorch_cuda.so`, which the
//! programs do not link. `build.rs` builds it if the headers of NCCL are installed.

use std::ffi::c_char;
use std::path::PathBuf;

use crate::error::{Error, c_string, check, take_string};

/// Environment variable with the path of the plug-in, for one outside the default directories.
const PLUGIN_VARIABLE: &str = "BACKPACK_NCCL_PLUGIN";
const PLUGIN_FILE: &str = "libbackpack_nccl.so";

/// Path of the plug-in of this build, relative to the directory of the executables, so that a
/// checkout can be moved.
const BUILT_PLUGIN: Option<&str> = option_env!("BACKPACK_NCCL_BUILT");

unsafe extern "C" {
    fn bpx_nccl_version(path: *const c_char, out: *mut *mut c_char) -> *mut c_char;
}

/// Returns the version of NCCL, for example `2.29.7`.
///
/// # Errors
/// The plug-in or a library of CUDA or NCCL is missing.
pub fn version() -> Result<String, Error> {
    crate::load_cuda()?;
    let path = c_string(&plugin()?.to_string_lossy())?;
    let mut text = std::ptr::null_mut();
    // SAFETY: a string that outlives the call. On success, the shim has stored a string, which is
    // now ours.
    unsafe {
        check(bpx_nccl_version(path.as_ptr(), &mut text))?;
        Ok(take_string(text))
    }
}

/// Returns the path of the plug-in.
///
/// # Errors
/// The plug-in does not exist; the message explains how to get it.
pub fn plugin() -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os(PLUGIN_VARIABLE).map(PathBuf::from) {
        let exists = path.is_file();
        return exists.then_some(path.clone()).ok_or_else(|| {
            Error(format!("the NCCL plug-in {} does not exist: correct {PLUGIN_VARIABLE}", path.display()))
        });
    }
    let directories = std::env::current_exe().ok().into_iter().flat_map(|exe| {
        // Tests are one directory below the programs.
        exe.ancestors().skip(1).take(2).map(PathBuf::from).collect::<Vec<_>>()
    });
    let candidates = directories
        .flat_map(|directory| [Some(directory.join(PLUGIN_FILE)), BUILT_PLUGIN.map(|built| directory.join(built))]);
    candidates.flatten().find(|path| path.is_file()).ok_or_else(|| {
        Error(match BUILT_PLUGIN {
            Some(_) => format!("the NCCL plug-in {PLUGIN_FILE} is not where it was built: copy it to the directory of the executable, or set {PLUGIN_VARIABLE} to its path"),
            None => "the NCCL plug-in is not built: run `scripts/setup.sh --cuda` and build again".to_owned(),
        })
    })
}
