//! The build script of the binary: what all packages need, and the revision of the sources, where
//! they are a git checkout of this project.

use std::path::Path;
use std::process::Command;

#[path = "rpath.rs"]
mod rpath;

fn main() {
    rpath::main();
    println!("cargo:rerun-if-changed=../../build");
    // Git's list of what HEAD has been: it changes with each commit and checkout, and only then.
    if let Some(log) =
        git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).is_file())
    {
        println!("cargo:rerun-if-changed={log}");
    }
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let described = match revision() {
        Some(revision) => format!("{version} ({revision})"),
        // An archive of the sources has none.
        None => version,
    };
    println!("cargo:rustc-env=BACKPACK_VERSION={described}");
}

/// The commit, if the checkout is of this project and not of one around it.
fn revision() -> Option<String> {
    let root = Path::new("../..").canonicalize().ok()?;
    let top = Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()?;
    if top != root { None } else { git(&["rev-parse", "--short=12", "HEAD"]) }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
