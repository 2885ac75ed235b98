//! A scratch directory with a small token stream, and functions that run the binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The repository root, where the commands run.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The directory of a fixture model.
pub(crate) fn fixture(set: &str) -> PathBuf {
    root().join("tests/fixtures/backpack").join(set)
}

/// Writes a Backpack with random weights and GPT-2's vocabulary, for commands that take words.
pub(crate) fn write_model_of_words(folder: &Path) {
    let config = model::ModelConfig {
        n_embd: 16,
        n_head: 2,
        n_layer: 1,
        n_positions: 64,
        num_senses: 4,
        end_of_text: Some(model::GPT2_END_OF_TEXT),
        ..model::ModelConfig::default()
    };
    let model = model::LanguageModel::initialize(config, 3, tch::Device::Cpu).unwrap();
    for (_, parameter) in model.parameters().iter() {
        // Large weights, so that words differ.
        let mut parameter = parameter.shallow_clone();
        tch::no_grad(|| parameter *= 10.0);
    }
    fs::create_dir_all(folder).unwrap();
    model::save_model(&model, folder).unwrap();
}

/// The names of the files in a directory, sorted.
pub(crate) fn file_names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A temporary directory that is deleted when the value is dropped.
pub(crate) struct Scratch {
    folder: TempDir,
}

/// Exit code and output of a finished command.
pub(crate) struct CommandOutput {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl CommandOutput {
    pub(crate) fn from_output(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // A process that was killed by a signal has no exit code.
        let code = output.status.code().unwrap_or(-1);
        CommandOutput { code, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// The error line. Checks that the exit code is 1 and that the command did not panic.
    #[track_caller]
    pub(crate) fn error(self) -> String {
        let finished = self.expect(1);
        let last = finished.stderr.lines().last().unwrap_or_default().to_owned();
        assert!(last.starts_with("error: ") && !last.contains("internal failure"), "{}", finished.stderr);
        last
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap()
    }
}

pub(crate) fn backpack(arguments: &[&str]) -> CommandOutput {
    CommandOutput::from_output(command(arguments).output().unwrap())
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_backpack"));
    command.args(arguments).current_dir(root()).stdin(Stdio::null());
    command
}

/// Starts a command and does not wait for it.
pub(crate) fn spawn(arguments: &[&str]) -> Child {
    command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Pseudorandom ids below `vocab_size`, always the same.
pub(crate) fn token_stream(length: usize, vocab_size: u64) -> Vec<u16> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // A skewed distribution, so that the model can learn something.
        let uniform = (state >> 33) as f64 / f64::from(1u32 << 31);
        (uniform * uniform * vocab_size as f64) as u16
    };
    (0..length).map(|_| next()).collect()
}

pub(crate) fn write_ids(path: &Path, ids: &[u16]) {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    fs::write(path, bytes).unwrap();
}

/// Configuration with the shape of the fixture `inv_scale` and a plain token stream.
const SMALL: &str = r#"
[run]
precision = "fp32"
device = "cpu"
threads = 1
[model]
n_embd = 40
n_head = 4
n_layer = 3
num_senses = 4
n_positions = 32
vocab_size = 311
[data]
path = "DATA"
sequence_length = 32
[optimizer]
learning_rate = 2e-3
[schedule]
warmup_steps = 4
max_steps = 12
[batch]
tokens_per_step = 128
micro_batch_size = 2
[validation]
every_steps = 5
[checkpoint]
every_steps = 4
"#;

impl Scratch {
    /// Creates a directory with `data/train.bin` (4,001 ids, 125 sequences of 32), `data/val.bin`
    /// and `small.toml`.
    pub(crate) fn new() -> Self {
        let scratch = Scratch { folder: tempfile::tempdir().unwrap() };
        let data = scratch.path("data");
        fs::create_dir(&data).unwrap();
        let ids = token_stream(4_500, 311);
        write_ids(&data.join("train.bin"), &ids[..4_001]);
        write_ids(&data.join("val.bin"), &ids[4_001..]);
        fs::write(scratch.path("small.toml"), SMALL.replace("DATA", data.to_str().unwrap())).unwrap();
        scratch
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn path_str(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The arguments of `train` with `small.toml` and the run directory `run`.
    pub(crate) fn train_arguments(&self, run: &str, more: &[&str]) -> Vec<String> {
        let mut arguments = vec!["train".to_owned(), "--config".to_owned(), self.path_str("small.toml")];
        arguments.extend(["--run-dir".to_owned(), self.path_str(run)]);
        arguments.extend(more.iter().map(|s| (*s).to_owned()));
        arguments
    }

    pub(crate) fn train(&self, run: &str, more: &[&str]) -> CommandOutput {
        self.train_in(&[], run, more)
    }

    /// Trains as [`Scratch::train`] does, with additional environment variables.
    pub(crate) fn train_in(&self, environment: &[(&str, &str)], run: &str, more: &[&str]) -> CommandOutput {
        let arguments = self.train_arguments(run, more);
        let mut command = command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        CommandOutput::from_output(command.envs(environment.iter().copied()).output().unwrap())
    }

    pub(crate) fn spawn_training(&self, run: &str, more: &[&str]) -> Child {
        let arguments = self.train_arguments(run, more);
        spawn(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    pub(crate) fn metrics(&self, run: &str) -> Vec<Value> {
        let text = fs::read_to_string(self.path(run).join("metrics.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) fn checkpoint(&self, run: &str, step: u64) -> PathBuf {
        self.path(run).join(format!("checkpoints/step-{step:08}"))
    }

    /// Steps of the existing checkpoints, sorted.
    pub(crate) fn checkpoints(&self, run: &str) -> Vec<u64> {
        let folder = self.path(run).join("checkpoints");
        let mut steps: Vec<u64> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter_map(|name| Some(name.strip_prefix("step-")?.parse().unwrap()))
            .collect();
        steps.sort_unstable();
        steps
    }
}

/// The metrics without the speeds. Resuming a run must not change them.
pub(crate) fn without_speeds(metrics: &[Value]) -> Vec<Value> {
    let strip = |line: &Value| {
        let mut line = line.clone();
        let object = line.as_object_mut().unwrap();
        object.remove("tokens_per_s");
        object.remove("mfu");
        line
    };
    metrics.iter().map(strip).collect()
}
