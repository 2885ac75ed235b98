//! The build script of the binary. Sets the rpath and BACKPACK_VERSION, which includes the git
//! revision if the sources are a checkout of this project.

use std::path::Path;
use std::process::Command;

#[path = "rpath.rs"]
mod rpath;

fn main() {
    rpath::main();
    println!("cargo:rerun-if-changed=../../build");
    // The log of HEAD changes with each commit and checkout, and only then.
    if let Some(log) =
        git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).is_file())
    {
        println!("cargo:rerun-if-changed={log}");
    }
    let version = std::env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let described = match revision() {
        Some(revision) => format!("{version} ({revision})"),
        // A source archive has no revision.
        None => version,
    };
    println!("cargo:rustc-env=BACKPACK_VERSION={described}");
}

/// Returns the commit, unless the git checkout belongs to an enclosing project.
fn revision() -> Option<String> {
    let root = Path::new("../..").canonicalize().ok()?;
    let top = Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()?;
    if top != root { None } else { git(&["rev-parse", "--short=12", "HEAD"]) }
}

/// Runs git and returns its trimmed output, if it succeeds and prints anything.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}
