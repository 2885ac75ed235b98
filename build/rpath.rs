//! The build script of every package that links libtorch. Adds the directory of libtorch to the
//! rpath of its binaries and tests, so that they start without an environment variable. (Cargo does
//! not pass link arguments from a library to its dependents.)

use std::path::Path;

pub(crate) fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Ok(libtorch) = std::env::var("LIBTORCH") else {
        panic!("LIBTORCH is not set: run cargo from inside the checkout (.cargo/config.toml sets it)");
    };
    let library = Path::new(&libtorch).join("lib/libtorch_cpu.so");
    let Ok(library) = library.canonicalize() else {
        panic!("{} does not exist: run scripts/setup.sh first", library.display());
    };
    // The rpath must name the directory of the libraries, not a directory of links to them, because
    // libtorch_cpu.so finds its dependencies relative to its own path. The first entry goes through
    // the link .libtorch, so that a binary follows a later `scripts/setup.sh --cuda`. The second is
    // the resolved path, so that a binary still starts after the checkout has been moved.
    let by_link = Path::new(&libtorch).join("torch/lib");
    for folder in [Some(by_link.as_path()).filter(|f| f.is_dir()), library.parent()].into_iter().flatten() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}
