//! The commands of README.md and docs/*.md, run as they stand in a folder of their own.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

mod documented;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use documented::{Block, blocks};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The quickstart's configuration over a network of almost no size.
const TINY: &str = r#"
base = "ROOT/configs/quickstart.toml"
[run]
device = "cpu"
threads = 1
[model]
n_embd = 16
n_head = 2
n_layer = 1
n_positions = 32
num_senses = 4
[data]
sequence_length = 16
[batch]
tokens_per_step = 64
[validation]
max_sequences = 20
"#;

/// A folder that looks like the checkout to a reader of the documents, with a small quickstart.
fn sandbox() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for name in ["bin", "configs", "runs", "scripts", "target/release"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    symlink(root().join("data"), at("data")).unwrap();
    symlink(root().join("configs/owt"), at("configs/owt")).unwrap();
    let tiny = TINY.replace("ROOT", root().to_str().unwrap());
    for name in ["quickstart.toml", "half-hour.toml"] {
        fs::write(at("configs").join(name), &tiny).unwrap();
    }
    let binary = env!("CARGO_BIN_EXE_backpack");
    symlink(binary, at("bin/backpack")).unwrap();
    symlink(binary, at("target/release/backpack")).unwrap();
    let cargo = format!(
        "#!/bin/sh\ncase \"$1 $2 $3\" in\n'run --release --') shift 3; exec '{binary}' \"$@\";;\n'build --release --locked') ;;\n*) echo \"cargo $*: not in a test\" >&2; exit 1;;\nesac\n"
    );
    let setup = format!("#!/bin/sh\nexec '{}' \"$@\"\n", root().join("scripts/setup.sh").display());
    for (name, text) in [("bin/cargo", cargo), ("scripts/setup.sh", setup)] {
        fs::write(at(name), text).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

fn run(block: &Block, folder: &Path) {
    let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &block.text]).current_dir(folder).env("PATH", path);
    // What a shell sets up for later (completions, manual pages) goes into the sandbox too; libtorch
    // is where it was, or scripts/setup.sh would link this checkout to another.
    if std::env::var_os("XDG_CACHE_HOME").is_none() {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        shell.env("XDG_CACHE_HOME", home.join(".cache"));
    }
    shell.env("HOME", folder);
    let output = shell.output().unwrap();
    assert!(
        output.status.success(),
        "{}:{}\n{}\nstdout:\n{}\nstderr:\n{}",
        block.file.display(),
        block.line,
        block.text,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn every_command_of_the_documents_runs_or_says_why_not() {
    let folder = sandbox();
    let (mut ran, mut left) = (0, Vec::new());
    // One after another: later blocks use what earlier ones made.
    for block in blocks(&root()) {
        match &block.not_run {
            Some(reason) => left.push(format!("{}:{} {reason}", block.file.display(), block.line)),
            None => {
                run(&block, folder.path());
                ran += 1;
            }
        }
    }
    println!("{ran} blocks run; not run here:\n{}", left.join("\n"));
    assert!(ran >= 6, "{ran}");
}
