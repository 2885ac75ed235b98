//! NVRTC, NVIDIA's compiler library for CUDA, which is installed with the CUDA libraries of
//! libtorch. It is loaded when a kernel is compiled.

use std::error::Error as _;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::kernel::{COMMON_HEADER, COMMON_HEADER_NAME, Module};
use crate::error::{Error, c_string};

/// The versions of the library that are searched for, in this order.
const NAMES: [&str; 2] = ["libnvrtc.so.13", "libnvrtc.so.12"];
/// Start of the names of the library that NVRTC loads itself. The version follows.
const BUILTINS: &str = "libnvrtc-builtins.so.";

/// The loaded library.
#[derive(Debug)]
pub(super) struct Nvrtc {
    library: Library,
    /// For example `13.0`.
    version: String,
}

type Program = *mut c_void;

impl Nvrtc {
    /// Loads the library from one of these directories, or from where the loader finds it.
    pub(super) fn load(directories: &[PathBuf]) -> Result<Self, Error> {
        let library = Self::open(directories)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the signature of nvrtc.h.
        unsafe {
            let version = symbol::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int>(&library, "nvrtcVersion")?;
            version(&mut major, &mut minor);
        }
        Ok(Nvrtc { library, version: format!("{major}.{minor}") })
    }

    fn open(directories: &[PathBuf]) -> Result<Library, Error> {
        for (directory, name) in directories.iter().flat_map(|directory| NAMES.map(|name| (directory, name))) {
            let path = directory.join(name);
            if path.is_file() {
                // NVRTC does not search its own directory for its second library.
                if let Some(builtins) = builtins_in(directory, name) {
                    // Never unloaded, because NVRTC uses it.
                    std::mem::forget(open_library(&builtins)?);
                }
                return open_library(&path);
            }
        }
        let mut causes = Vec::new();
        for name in NAMES {
            match open_library(Path::new(name)) {
                Ok(library) => return Ok(library),
                Err(error) => causes.push(error.to_string()),
            }
        }
        Err(Error(format!("NVRTC cannot be loaded ({}); run `scripts/setup.sh --cuda`", causes.join("; "))))
    }

    /// Version of the library.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    /// Compiles a module to machine code of a GPU architecture, for example `sm_90`.
    ///
    /// # Errors
    /// Contains the messages of the compiler.
    pub(super) fn compile(&self, module: &Module, architecture: &str) -> Result<Vec<u8>, Error> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        let [source, file] = [c_string(module.source())?, c_string(module.file)?];
        let [header, header_name] = [c_string(COMMON_HEADER)?, c_string(COMMON_HEADER_NAME)?];
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: the signatures of nvrtc.h; all strings outlive the calls.
        unsafe {
            let create = symbol::<Create>(&self.library, "nvrtcCreateProgram")?;
            let (headers, names) = ([header.as_ptr()], [header_name.as_ptr()]);
            let code = create(&mut program, source.as_ptr(), file.as_ptr(), 1, headers.as_ptr(), names.as_ptr());
            self.check(code, "nvrtcCreateProgram")?;
            let compiled = self.compile_program(program, module, architecture);
            let destroy = symbol::<unsafe extern "C" fn(*mut Program) -> c_int>(&self.library, "nvrtcDestroyProgram")?;
            destroy(&mut program);
            compiled
        }
    }

    /// # Safety
    /// `program` is a program of this library.
    unsafe fn compile_program(&self, program: Program, module: &Module, architecture: &str) -> Result<Vec<u8>, Error> {
        let mut options = vec![format!("--gpu-architecture={architecture}"), "--std=c++17".to_owned()];
        options.extend(module.definitions());
        let options: Vec<CString> = options.iter().map(|option| c_string(option)).collect::<Result<_, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the signatures of nvrtc.h; the options outlive the call.
        unsafe {
            let compile = symbol::<unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int>(
                &self.library,
                "nvrtcCompileProgram",
            )?;
            let code = compile(program, pointers.len() as c_int, pointers.as_ptr());
            if code != 0 {
                let log = self.bytes(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?;
                let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().replace('\n', "; ");
                let file = module.file;
                return Err(Error(format!("NVRTC {} cannot compile {file} for {architecture}: {log}", self.version)));
            }
            self.bytes(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
        }
    }

    /// Reads a byte string of a program through the pair of functions for its size and its content.
    ///
    /// # Safety
    /// `program` is a program of this library.
    unsafe fn bytes(&self, program: Program, size_name: &str, content_name: &str) -> Result<Vec<u8>, Error> {
        let mut size = 0_usize;
        // SAFETY: the signatures of nvrtc.h; the buffer has the size that the library returned.
        unsafe {
            let get_size = symbol::<unsafe extern "C" fn(Program, *mut usize) -> c_int>(&self.library, size_name)?;
            self.check(get_size(program, &mut size), size_name)?;
            let mut content = vec![0_u8; size];
            let get = symbol::<unsafe extern "C" fn(Program, *mut c_char) -> c_int>(&self.library, content_name)?;
            self.check(get(program, content.as_mut_ptr().cast()), content_name)?;
            Ok(content)
        }
    }

    fn check(&self, code: c_int, what: &str) -> Result<(), Error> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the signature of nvrtc.h; it returns a constant string.
        let text = unsafe {
            let text = symbol::<unsafe extern "C" fn(c_int) -> *const c_char>(&self.library, "nvrtcGetErrorString")?;
            CStr::from_ptr(text(code)).to_string_lossy().into_owned()
        };
        Err(Error(format!("NVRTC {} failed in {what}: {text}", self.version)))
    }
}

/// Loads a library whose symbols others may use.
pub(super) fn open_library(path: &Path) -> Result<Library, Error> {
    // SAFETY: the constructors of NVIDIA's libraries support loading at any time.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(loader_error)
}

/// The message of the loader, which names the library. That of libloading does not.
pub(super) fn loader_error(error: libloading::Error) -> Error {
    Error(error.source().map_or(error.to_string(), |source| source.to_string()))
}

/// Returns a function of a library.
///
/// # Safety
/// `F` is the type of the function.
pub(super) unsafe fn symbol<F: Copy>(library: &Library, name: &str) -> Result<F, Error> {
    // SAFETY: the caller guarantees the type.
    unsafe { library.get::<F>(name.as_bytes()) }.map(|symbol| *symbol).map_err(loader_error)
}

/// Returns the path of the second library with the same major version as `nvrtc`.
fn builtins_in(directory: &Path, nvrtc: &str) -> Option<PathBuf> {
    let major = nvrtc.rsplit('.').next()?;
    let entries = std::fs::read_dir(directory).ok()?;
    let has_version = |path: &PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.strip_prefix(BUILTINS).is_some_and(|version| version.split('.').next() == Some(major))
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).find(has_version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda_kernels::kernel::CudaKernel;

    #[test]
    fn a_missing_library_is_named() {
        let error = Nvrtc::load(&[PathBuf::from("/nowhere")]);
        if let Err(error) = error {
            let text = error.to_string();
            assert!(text.starts_with("NVRTC cannot be loaded (libnvrtc.so.13: "), "{text}");
            assert!(text.contains("; libnvrtc.so.12: "), "{text}");
        }
    }

    #[test]
    fn the_second_library_has_the_same_major_version() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["libnvrtc-builtins.so.12.8", "libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        let found = |nvrtc| builtins_in(directory.path(), nvrtc);
        assert_eq!(found("libnvrtc.so.13"), Some(directory.path().join("libnvrtc-builtins.so.13.0")));
        assert_eq!(found("libnvrtc.so.12"), Some(directory.path().join("libnvrtc-builtins.so.12.8")));
        assert_eq!(found("libnvrtc.so.11"), None);
    }

    /// `scripts/test-cuda-kernels.sh` sets the variable.
    #[test]
    fn nvrtc_compiles_every_kernel() {
        let Some(directory) = std::env::var_os("BACKPACK_TEST_NVRTC") else { return };
        let nvrtc = Nvrtc::load(&[PathBuf::from(directory)]).unwrap();
        let kernels = [
            CudaKernel::CrossEntropy { vocab_size: 50_264 },
            CudaKernel::AddLayerNorm { width: 768 },
            CudaKernel::BiasGelu,
            CudaKernel::SenseWeights { num_senses: 16, length: 512 },
        ];
        for kernel in kernels {
            let code = nvrtc.compile(&kernel.module().unwrap(), "sm_90").unwrap();
            assert!(code.starts_with(b"\x7fELF"), "{kernel:?}");
        }
        let error = nvrtc.compile(&kernels[2].module().unwrap(), "sm_1").unwrap_err().to_string();
        assert!(error.contains("cannot compile gelu.cu") && error.contains("for sm_1: "), "{error}");
    }
}
