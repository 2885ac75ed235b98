//! Compiles the C++ shim against the libtorch that torch-sys found, and sets the rpath
//! of this crate's own tests (shared with the other crates: build/rpath.rs).

use std::path::PathBuf;

#[path = "../../build/rpath.rs"]
mod rpath;

fn main() {
    rpath::main();
    // torch-sys declares `links = "tch"` and hands its library folder to direct dependants.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        panic!(
            "torch-sys did not say where libtorch lies (DEP_TCH_LIBTORCH_LIB): this crate is written for torch-sys 0.26"
        );
    };
    let include = PathBuf::from(lib).join("../include");
    for file in ["cpp/shim.h", "cpp/shim.cpp", "cpp/linear_cross_entropy.cpp", "cpp/parts.cpp"] {
        println!("cargo:rerun-if-changed={file}");
    }
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .pic(true)
        .warnings(false) // libtorch's headers are not ours to mend
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .files(["cpp/shim.cpp", "cpp/linear_cross_entropy.cpp", "cpp/parts.cpp"])
        .compile("backpack_torch_ext");
    for library in ["torch_cpu", "c10", "dl"] {
        println!("cargo:rustc-link-lib={library}");
    }
}
