//! The CUDA kernels on the CPU, for tests: the same sources, compiled by the C++ compiler against an
//! emulator that runs the threads of a block one after another (`cuda/emulator`). Fused operations
//! on CPU tensors then launch these kernels. It is slow.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::kernel::{LoadedModule, Module};
use super::nvrtc::{loader_error, symbol};
use crate::error::Error;

/// The index of the emulated device.
pub(super) const DEVICE: c_int = -1;

static IS_ON: AtomicBool = AtomicBool::new(false);
/// Number of libraries that this process has compiled.
static NUMBER: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    fn bpx_run_cuda_kernels_on_cpu(on: c_int);
}

pub(super) fn is_on() -> bool {
    IS_ON.load(Ordering::Acquire)
}

/// While it exists, fused bf16 operations on CPU tensors run the CUDA kernels, in the whole
/// process. For tests.
#[derive(Debug)]
pub struct Emulation {
    _only_one: MutexGuard<'static, ()>,
}

impl Emulation {
    /// Starts the emulation, after waiting for the end of another one.
    pub fn start() -> Self {
        static ONLY_ONE: Mutex<()> = Mutex::new(());
        let only_one = ONLY_ONE.lock().unwrap_or_else(PoisonError::into_inner);
        set(true);
        Emulation { _only_one: only_one }
    }
}

impl Drop for Emulation {
    fn drop(&mut self) {
        set(false);
    }
}

fn set(on: bool) {
    IS_ON.store(on, Ordering::Release);
    // SAFETY: sets a flag.
    unsafe { bpx_run_cuda_kernels_on_cpu(on.into()) }
}

/// Compiles a module for the emulator, and loads it.
///
/// # Errors
/// Contains the messages of the compiler.
pub(super) fn load(module: &Module) -> Result<LoadedModule, Error> {
    let library = compile_and_open(module)?;
    type Find = unsafe extern "C" fn(*const c_char) -> *mut c_void;
    // SAFETY: the signatures of cuda/emulator/entry.cpp.
    let loaded = unsafe {
        let find = symbol::<Find>(&library, "emulated_function")?;
        let function = |name: &&str| {
            let found = CString::new(*name).map(|name| find(name.as_ptr()));
            let found = found.map_err(|error| Error(error.to_string()))?;
            if found.is_null() {
                Err(Error(format!("{} has no kernel {name}", module.file)))
            } else {
                Ok(found as usize)
            }
        };
        LoadedModule {
            functions: module.functions.iter().map(function).collect::<Result<_, _>>()?,
            launch: symbol(&library, "emulated_launch")?,
            error: symbol(&library, "emulated_error")?,
        }
    };
    // Never unloaded, because the functions are used until the process ends.
    std::mem::forget(library);
    Ok(loaded)
}

fn compile_and_open(module: &Module) -> Result<Library, Error> {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let output = std::env::temp_dir().join(format!("backpack-cuda-emulator-{}-{number}.so", std::process::id()));
    let result = compile(module, &output).and_then(|()| {
        // The libraries of different modules define the same names, hence RTLD_LOCAL.
        // SAFETY: the constructors of the library have no conditions.
        unsafe { Library::open(Some(&output), RTLD_NOW | RTLD_LOCAL) }.map_err(loader_error)
    });
    // A loaded library stays in memory.
    let _ = std::fs::remove_file(&output);
    result
}

fn compile(module: &Module, output: &Path) -> Result<(), Error> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cuda");
    let mut command = Command::new(std::env::var_os("CXX").unwrap_or("c++".into()));
    command.args(["-O1", "-std=c++17", "-shared", "-fPIC", "-w"]).args(module.definitions());
    command.arg(format!("-DKERNEL_SOURCE=\"{}\"", sources.join(module.file).display()));
    command.arg("-I").arg(&sources).arg(sources.join("emulator/entry.cpp")).arg("-o").arg(output);
    let result = command.output().map_err(|error| Error(format!("the C++ compiler cannot be started: {error}")))?;
    if !result.status.success() {
        let messages = String::from_utf8_lossy(&result.stderr).replace('\n', "; ");
        return Err(Error(format!("the C++ compiler cannot compile {} for the emulator: {messages}", module.file)));
    }
    Ok(())
}
