//! Runs the commands of README.md and docs/*.md in a sandbox directory.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

mod documented;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use documented::{CodeBlock, blocks};

/// The repository root.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The quickstart's configuration with a tiny model.
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

/// Creates a directory with the files of the repository that the commands use, and a tiny model in
/// the quickstart's configuration.
fn sandbox() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
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
    directory
}

/// Runs a block with bash; every command must succeed.
fn run(block: &CodeBlock, directory: &Path) {
    let path = format!("{}:{}", directory.join("bin").display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", &block.text]).current_dir(directory).env("PATH", path);
    // HOME is the sandbox, for completions and manual pages. The cache stays where it is, because
    // scripts/setup.sh would otherwise link this checkout to another libtorch.
    if std::env::var_os("XDG_CACHE_HOME").is_none() {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        shell.env("XDG_CACHE_HOME", home.join(".cache"));
    }
    shell.env("HOME", directory);
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
fn documented_commands_succeed() {
    let directory = sandbox();
    let (mut ran, mut skipped) = (0, Vec::new());
    // In order, because later blocks use the output of earlier ones.
    for block in blocks(&root(), &["docs"]) {
        match &block.not_run {
            Some(reason) => skipped.push(format!("{}:{} {reason}", block.file.display(), block.line)),
            None => {
                run(&block, directory.path());
                ran += 1;
            }
        }
    }
    println!("{ran} blocks run; not run here:\n{}", skipped.join("\n"));
    assert!(ran >= 6, "{ran}");
}
