//! Compiles the C++ shim against the libtorch that torch-sys found, and sets the rpath
//! of this crate's own tests (shared with the other crates: build/rpath.rs).

use std::path::PathBuf;

#[path = "../../build/rpath.rs"]
mod rpath;

/// The C++ sources that call libtorch.
const SHIM: [&str; 9] = [
    "shim",
    "parts",
    "ops/products",
    "ops/linear",
    "ops/add_layer_norm",
    "ops/attention",
    "ops/mix_senses",
    "ops/linear_cross_entropy",
    "ops/adamw",
];

fn main() {
    rpath::main();
    // torch-sys declares `links = "tch"` and hands its library folder to direct dependants.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        panic!(
            "torch-sys did not say where libtorch lies (DEP_TCH_LIBTORCH_LIB): this crate is written for torch-sys 0.26"
        );
    };
    let include = PathBuf::from(lib).join("../include");
    println!("cargo:rerun-if-changed=cpp");
    compile_kernels();
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .pic(true)
        .warnings(false) // libtorch's headers are not ours to mend
        .flag("-fopenmp") // at::parallel_for is a header: without this it runs on one thread
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .files(SHIM.map(|name| format!("cpp/{name}.cpp")))
        .compile("backpack_torch_ext");
    for library in ["torch_cpu", "c10", "gomp", "dl"] {
        println!("cargo:rustc-link-lib={library}");
    }
}

/// The kernels once for each instruction set, and the choice between them. They include no
/// header of libtorch's: see cpp/kernels/table.h.
fn compile_kernels() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    let build = |name: &str, file: &str, flags: &[&str]| {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++20").pic(true).opt_level(3).define("BPX_ISA", name).file(file);
        // Vectors wider than a register are passed by the compiler's own rules: all is inlined.
        build.flag("-fno-math-errno").flag("-Wno-psabi").flag_if_supported("-Wno-maybe-uninitialized");
        for flag in flags {
            build.flag(flag);
        }
        // Objects are named after their source: each set gets its own folder.
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
