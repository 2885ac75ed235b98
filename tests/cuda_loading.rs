//! Every command loads CUDA before another function asks libtorch for it. Otherwise libtorch has no
//! GPU for the rest of the process. A stand-in for `libtorch_cuda.so` (`cuda_stand_in.cpp`) shows
//! this on a machine without CUDA.

use std::path::Path;
use std::process::Command;

use crate::support::{CommandOutput, Scratch, command, fixture, root};

/// Compiles the stand-in into `folder`, and returns the value of `LD_LIBRARY_PATH` with which the
/// program loads it.
fn build_stand_in(folder: &Path) -> String {
    std::fs::create_dir_all(folder).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let compiled = Command::new(&compiler)
        .args(["-std=c++20", "-shared", "-fPIC", "-w", "-D_GLIBCXX_USE_CXX11_ABI=1", "-I"])
        .arg(Path::new(env!("LIBTORCH")).join("include"))
        .arg("-o")
        .arg(folder.join("libtorch_cuda.so"))
        .arg(root().join("tests/cuda_stand_in.cpp"))
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{compiler}: {}", String::from_utf8_lossy(&compiled.stderr));
    let inherited = std::env::var("LD_LIBRARY_PATH").map_or(String::new(), |path| format!(":{path}"));
    format!("{}{inherited}", folder.display())
}

#[test]
fn cuda_is_loaded_before_libtorch_queries_it() {
    let scratch = Scratch::new();
    let library_path = build_stand_in(&scratch.path("cuda"));
    let run = |arguments: &[&str]| {
        let output = command(arguments).env("LD_LIBRARY_PATH", &library_path).output().unwrap();
        CommandOutput::from_output(output)
    };
    let (config, data, run_dir) = (scratch.path_str("small.toml"), scratch.path_str("data"), scratch.path_str("run"));
    let fixture = fixture("inv_scale");
    let (model, cuda) = (fixture.to_str().unwrap(), "run.device=cuda");
    for arguments in [
        &["train", "--config", &config, "--run-dir", &run_dir, "--set", cuda][..],
        &["bench", "--config", &config, "--set", cuda],
        &["generate", "--model", model, "--prompt-ids", "1", "--device", "cuda"],
        &["eval", "--model", model, "--task", "val", "--data", &data, "--device", "cuda"],
        &["serve", "--model", model, "--device", "cuda"],
    ] {
        let error = run(arguments).error();
        assert!(error.contains("CUDA is loaded, but no GPU is usable"), "{arguments:?}: {error}");
    }
    let printed = run(&["doctor"]).expect(0).stdout;
    let line = printed.lines().find(|line| line.starts_with("CUDA ")).unwrap_or_default();
    let folder = scratch.path_str("cuda");
    let expected = format!("libraries loaded from {folder}/libtorch_cuda.so, but no GPU or driver found");
    assert!(line.ends_with(&expected), "{printed}");
}
