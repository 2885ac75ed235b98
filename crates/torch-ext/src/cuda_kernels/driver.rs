//! The CUDA driver: loading compiled kernels, and launching them.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::Library;

use super::cache;
use super::kernel::{COMMON_HEADER, LaunchFunction, LoadedModule, Module};
use super::nvrtc::{Nvrtc, open_library, symbol};
use crate::error::Error;
use crate::runtime::loaded_library;

/// The CUDA driver: functions of `libcuda.so.1` (signatures of cuda.h), the context of the GPU, and
/// NVRTC.
#[derive(Debug)]
struct Driver {
    context: usize,
    /// For example `sm_90`.
    architecture: String,
    nvrtc: Result<Nvrtc, Error>,
    get_current: unsafe extern "C" fn(*mut *mut c_void) -> c_int,
    set_current: unsafe extern "C" fn(*mut c_void) -> c_int,
    load_data: unsafe extern "C" fn(*mut *mut c_void, *const c_void) -> c_int,
    get_function: unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> c_int,
    launch: LaunchFunction,
    error_string: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int,
}

/// The driver, with the one GPU that a process uses.
static DRIVER: OnceLock<Result<(c_int, Driver), Error>> = OnceLock::new();

/// Compiles a module, or reads it from the cache, and loads it.
///
/// # Errors
/// The driver or NVRTC is missing, the compiler reports an error, or the GPU does not accept the
/// code.
pub(super) fn load(module: &Module, device: c_int) -> Result<LoadedModule, Error> {
    let driver = DRIVER.get_or_init(|| Ok((device, Driver::open(device)?)));
    let (own, driver) = driver.as_ref().map_err(Clone::clone)?;
    if *own != device {
        return Err(Error(format!(
            "cannot load a CUDA kernel on GPU {device}: this process already uses GPU {own}, and can use only one"
        )));
    }
    driver.check(driver.make_current(), "cuCtxSetCurrent")?;
    let nvrtc = driver.nvrtc.as_ref().map_err(Clone::clone)?;
    let definitions: Vec<String> = module.definitions().collect();
    let definitions = definitions.join(" ");
    let inputs = [module.source(), COMMON_HEADER, &definitions, &driver.architecture, nvrtc.version()];
    let path = cache::path(&inputs);
    // Damaged code in the cache is compiled again.
    let cached = path.as_ref().and_then(|path| cache::read(path));
    let loaded = |functions| LoadedModule { functions, launch: launch_kernel, error: last_error };
    if let Some(functions) = cached.and_then(|code| driver.functions(module, &code).ok()) {
        return Ok(loaded(functions));
    }
    let code = nvrtc.compile(module, &driver.architecture)?;
    let functions = driver.functions(module, &code)?;
    if let Some(path) = path {
        // If it fails, the next run compiles the code again.
        let _ = cache::write(&path, &code);
    }
    Ok(loaded(functions))
}

impl Driver {
    fn open(device: c_int) -> Result<Self, Error> {
        let library = open_library(Path::new("libcuda.so.1"))?;
        let driver = Self::with_library(&library, device);
        // Never unloaded, because the functions are used until the process ends.
        std::mem::forget(library);
        driver
    }

    fn with_library(library: &Library, device: c_int) -> Result<Self, Error> {
        /// cuDeviceGetAttribute: the compute capability.
        const MAJOR: c_int = 75;
        const MINOR: c_int = 76;
        type GetAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        type GetDevice = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
        type RetainContext = unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int;
        // SAFETY: the signatures of cuda.h. libtorch has initialized the driver, because a tensor
        // is on the GPU; initializing it again does nothing.
        unsafe {
            let initialize = symbol::<unsafe extern "C" fn(c_uint) -> c_int>(library, "cuInit")?;
            let get_device = symbol::<GetDevice>(library, "cuDeviceGet")?;
            let attribute = symbol::<GetAttribute>(library, "cuDeviceGetAttribute")?;
            let retain = symbol::<RetainContext>(library, "cuDevicePrimaryCtxRetain")?;
            let mut driver = Driver {
                context: 0,
                architecture: String::new(),
                nvrtc: Nvrtc::load(&nvrtc_directories()),
                get_current: symbol(library, "cuCtxGetCurrent")?,
                set_current: symbol(library, "cuCtxSetCurrent")?,
                load_data: symbol(library, "cuModuleLoadData")?,
                get_function: symbol(library, "cuModuleGetFunction")?,
                launch: symbol(library, "cuLaunchKernel")?,
                error_string: symbol(library, "cuGetErrorString")?,
            };
            let (mut handle, mut major, mut minor, mut context) = (0, 0, 0, std::ptr::null_mut());
            driver.check(initialize(0), "cuInit")?;
            driver.check(get_device(&mut handle, device), "cuDeviceGet")?;
            driver.check(attribute(&mut major, MAJOR, handle), "cuDeviceGetAttribute")?;
            driver.check(attribute(&mut minor, MINOR, handle), "cuDeviceGetAttribute")?;
            // The primary context is the one that libtorch uses.
            driver.check(retain(&mut context, handle), "cuDevicePrimaryCtxRetain")?;
            (driver.context, driver.architecture) = (context as usize, format!("sm_{major}{minor}"));
            Ok(driver)
        }
    }

    /// Makes the context of the GPU current on this thread. Threads of autograd may not have a
    /// current context yet. Returns an error code, or 0.
    fn make_current(&self) -> c_int {
        let mut current = std::ptr::null_mut();
        let context = self.context as *mut c_void;
        // SAFETY: the context is retained until the process ends.
        unsafe {
            if (self.get_current)(&mut current) == 0 && current == context {
                return 0;
            }
            (self.set_current)(context)
        }
    }

    /// Loads compiled code, and returns its functions.
    fn functions(&self, module: &Module, code: &[u8]) -> Result<Vec<usize>, Error> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver checks the code, which outlives the call, and copies it.
        self.check(unsafe { (self.load_data)(&mut handle, code.as_ptr().cast()) }, "cuModuleLoadData")?;
        let function = |name: &&str| {
            let name = CString::new(*name).map_err(|error| Error(error.to_string()))?;
            let mut function = std::ptr::null_mut();
            // SAFETY: a loaded module, and a string that outlives the call.
            self.check(unsafe { (self.get_function)(&mut function, handle, name.as_ptr()) }, "cuModuleGetFunction")?;
            Ok(function as usize)
        };
        module.functions.iter().map(function).collect()
    }

    fn check(&self, code: c_int, what: &str) -> Result<(), Error> {
        if code == 0 {
            return Ok(());
        }
        let text = self.describe(code);
        let text = if text.is_null() {
            "no description".to_owned()
        } else {
            // SAFETY: a constant string of the driver.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(Error(format!("the CUDA driver failed in {what} with code {code} ({text})")))
    }

    fn describe(&self, code: c_int) -> *const c_char {
        let mut text = std::ptr::null();
        // SAFETY: the driver stores a constant string or leaves null.
        unsafe { (self.error_string)(code, &mut text) };
        text
    }
}

thread_local! {
    /// The code of the last failed launch on this thread.
    static LAST_ERROR: Cell<c_int> = const { Cell::new(0) };
}

/// cuLaunchKernel on a thread that may have no current context.
unsafe extern "C" fn launch_kernel(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: *mut c_void,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> c_int {
    /// CUDA_ERROR_NOT_INITIALIZED.
    const NOT_INITIALIZED: c_int = 3;
    let Some(Ok((_, driver))) = DRIVER.get() else { return NOT_INITIALIZED };
    let code = driver.make_current();
    if code != 0 {
        LAST_ERROR.set(code);
        return code;
    }
    // SAFETY: the caller passes a loaded function and parameters of its types.
    let code = unsafe {
        (driver.launch)(
            function,
            grid_x,
            grid_y,
            grid_z,
            block_x,
            block_y,
            block_z,
            shared_bytes,
            stream,
            parameters,
            extra,
        )
    };
    if code != 0 {
        LAST_ERROR.set(code);
    }
    code
}

/// Describes the last failed launch on this thread.
unsafe extern "C" fn last_error() -> *const c_char {
    match DRIVER.get() {
        Some(Ok((_, driver))) => driver.describe(LAST_ERROR.get()),
        _ => std::ptr::null(),
    }
}

/// The directories that may contain NVRTC: that of NVIDIA's packages next to libtorch, and that of
/// libtorch.
pub(super) fn nvrtc_directories() -> Vec<PathBuf> {
    let Some(libtorch) = loaded_library("libtorch_cuda.so").and_then(|file| Some(file.parent()?.to_path_buf())) else {
        return Vec::new();
    };
    // libtorch is in PACKAGES/torch/lib, and NVRTC in PACKAGES/nvidia/cu13/lib.
    let packages = libtorch.join("../../nvidia");
    vec![packages.join("cu13/lib"), packages.join("cuda_nvrtc/lib"), libtorch]
}
