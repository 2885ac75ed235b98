//! The build script of every package that links libtorch: puts libtorch's folder into
//! the rpath of its binaries and tests, so that they start without any environment
//! variable. (Cargo does not hand link arguments on from a library to its users.)

use std::path::Path;

pub(crate) fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Ok(libtorch) = std::env::var("LIBTORCH") else {
        panic!("LIBTORCH is not set: run cargo from inside the checkout (.cargo/config.toml sets it)");
    };
    // The library itself, through the links of the set-up: libtorch_cpu.so finds its own
    // dependencies relative to where it really lies.
    let library = Path::new(&libtorch).join("lib/libtorch_cpu.so");
    let Ok(library) = library.canonicalize() else {
        panic!("{} is not there: run scripts/setup.sh first", library.display());
    };
    if let Some(folder) = library.parent() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}
