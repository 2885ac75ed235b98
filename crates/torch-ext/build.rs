//! Compiles the C++ shim against the libtorch that torch-sys found, and sets the rpath of the tests
//! of this crate (build/rpath.rs, shared with the other crates).

use std::path::{Path, PathBuf};

#[path = "../../build/rpath.rs"]
mod rpath;

/// The C++ sources that call libtorch.
const SHIM: [&str; 17] = [
    "shim",
    "arena",
    "cuda_device",
    "cuda/kernels",
    "cuda/weighted_sum_of_senses",
    "operation_counter",
    "profiler",
    "distributed/process_group",
    "distributed/reducer",
    "ops/products",
    "ops/embedding",
    "ops/linear",
    "ops/add_layer_norm",
    "ops/attention",
    "ops/weighted_sum_of_senses",
    "ops/linear_cross_entropy",
    "ops/adamw",
];

fn main() {
    rpath::main();
    // torch-sys declares `links = "tch"`, so cargo passes its library directory to direct
    // dependents.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        panic!(
            "torch-sys did not set DEP_TCH_LIBTORCH_LIB, the directory of libtorch: this crate needs torch-sys 0.26"
        );
    };
    let libtorch = PathBuf::from(lib).join("..");
    let include = libtorch.join("include");
    println!("cargo:rerun-if-changed=cpp");
    // scripts/setup.sh touches this file when it links another libtorch. The path goes through the
    // link, so that it then names the new file. (Cargo rebuilds every time if a listed file is
    // missing, hence the check.)
    let version = libtorch.join("build-version");
    if version.is_file() {
        println!("cargo:rerun-if-changed={}", version.display());
    }
    compile_kernels();
    let mut shim = cc::Build::new();
    shim.cpp(true)
        .std("c++20")
        .pic(true)
        .warnings(false) // the headers of libtorch cause warnings
        .flag("-fopenmp") // without it, the header-only at::parallel_for runs on one thread
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .include("cpp/distributed/gloo_headers")
        // Without these definitions, the headers of c10d are silently empty.
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        // As libtorch itself: some of its classes have other members without this definition.
        .define("NDEBUG", None);
    build_nccl_plugin(&shim, &libtorch);
    shim.files(SHIM.map(|name| format!("cpp/{name}.cpp"))).compile("backpack_torch_ext");
    for library in ["torch_cpu", "c10", "gomp", "dl"] {
        println!("cargo:rustc-link-lib={library}");
    }
}

/// Builds the NCCL backend as a separate shared library, if `scripts/setup.sh --cuda` has installed
/// the headers and libraries of CUDA. Only this library links CUDA. The programs load it at run
/// time.
fn build_nccl_plugin(shim: &cc::Build, libtorch: &Path) {
    let (cuda, nccl) = (libtorch.join("nvidia/cu13/include"), libtorch.join("nvidia/nccl/include"));
    let lib = libtorch.join("torch/lib");
    if !(nccl.join("nccl.h").is_file() && cuda.join("cuda_runtime_api.h").is_file()) {
        return;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("libbackpack_nccl.so");
    let mut command =
        shim.clone().include(cuda).include(nccl).define("USE_C10D_NCCL", None).get_compiler().to_command();
    command.args(["-shared", "-o"]).arg(&out).arg("cpp/distributed/nccl_plugin.cpp").arg("-L").arg(lib);
    // The dependencies of libtorch_cuda are resolved relative to it when it is loaded.
    command.args(["-Wl,--allow-shlib-undefined", "-ltorch_cuda", "-lc10_cuda", "-ltorch_cpu", "-lc10"]);
    let built = command.status().is_ok_and(|status| status.success());
    assert!(built, "cannot build the NCCL plug-in: {command:?}");
    // The path is relative to the executable, so that a checkout can be moved. OUT_DIR is
    // build/NAME/out below the directory of the executables.
    let from_executable: PathBuf = out.components().rev().take(4).collect::<Vec<_>>().into_iter().rev().collect();
    println!("cargo:rustc-env=BACKPACK_NCCL_BUILT={}", from_executable.display());
}

/// Compiles the kernels once per instruction set, and the dispatch between them. They include no
/// header of libtorch; cpp/kernels/table.h explains why.
fn compile_kernels() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let build = |name: &str, file: &str, flags: &[&str]| {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++20").pic(true).opt_level(3).define("BPX_ISA", name).file(file);
        // -Wno-psabi: GCC warns that vectors wider than a register have no stable calling
        // convention. This does not matter, because every function that takes one is inlined.
        build.flag("-fno-math-errno").flag("-Wno-psabi").flag_if_supported("-Wno-maybe-uninitialized");
        for flag in flags {
            build.flag(flag);
        }
        // Object files are named after their source file, so each instruction set gets a directory.
        build.out_dir(out.join(name)).compile(&format!("backpack_kernels_{name}"));
    };
    build("dispatch", "cpp/kernels/dispatch.cpp", &[]);
    build("baseline", "cpp/kernels/isa.cpp", &[]);
    if x86 {
        build("avx2", "cpp/kernels/isa.cpp", &["-mavx2", "-mfma"]);
        let avx512 = ["f", "bw", "dq", "vl", "bf16"].map(|part| format!("-mavx512{part}"));
        let mut flags: Vec<&str> = avx512.iter().map(String::as_str).collect();
        flags.extend(["-mavx2", "-mfma"]);
        build("avx512", "cpp/kernels/isa.cpp", &flags);
    }
}
