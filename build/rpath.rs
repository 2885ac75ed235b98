//! The build script of every package that links libtorch: puts libtorch's folder into
//! the rpath of its binaries and tests, so that they start without any environment
//! variable. (Cargo does not hand link arguments on from a library to its users.)

use std::path::Path;

pub(crate) fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let Ok(libtorch) = std::env::var("LIBTORCH") else {
        panic!("LIBTORCH is not set: run cargo from inside the checkout (.cargo/config.toml sets it)");
    };
    let library = Path::new(&libtorch).join("lib/libtorch_cpu.so");
    let Ok(library) = library.canonicalize() else {
        panic!("{} is not there: run scripts/setup.sh first", library.display());
    };
    // The folder where the libraries themselves lie, not the one of links to them:
    // libtorch_cpu.so finds its own dependencies relative to where it is found. First as the
    // set-up's link names it, so that a binary follows a later `scripts/setup.sh --cuda`;
    // then where it is now, so that it still starts when the checkout has moved.
    let by_link = Path::new(&libtorch).join("torch/lib");
    for folder in [Some(by_link.as_path()).filter(|f| f.is_dir()), library.parent()].into_iter().flatten() {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", folder.display());
    }
}
