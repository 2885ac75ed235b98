"""A small training for fault injection, and the check of its result."""

import array
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

# A step takes some tens of milliseconds. A checkpoint has 35 MB and takes longer to write than a
# step. The state that must survive a resume includes dropout, skipped loss spikes and their window.
CONFIG = """
[run]
precision = "fp32"
device = "cpu"
threads = 1
[model]
n_embd = 256
n_head = 4
n_layer = 1
num_senses = 4
n_positions = 32
vocab_size = 311
dropout = 0.1
[data]
path = "{data}"
sequence_length = 32
[optimizer]
learning_rate = 2e-3
[step_guard]
spike_window = 8
spike_z_score = 1.5
skip_spikes = true
max_consecutive_bad_steps = 0
[schedule]
warmup_steps = 4
max_steps = {steps}
[batch]
tokens_per_step = 128
micro_batch_size = 4
[validation]
every_steps = 9
[checkpoint]
every_steps = 7
"""

STEPS = 50
# Keys of metrics.jsonl whose values must not depend on the faults.
EXACT = ["step", "tokens", "loss", "lr", "grad_norm", "val_loss", "skipped", "spikes"]
FILES = ["model.safetensors", "optimizer.safetensors", "config.json"]


def make_data(directory: Path) -> None:
    directory.mkdir()
    rng = random.Random(1)
    for name, ids in [("train", 40_001), ("val", 2_001)]:
        # Skewed, so that the model can learn the frequencies.
        skewed = array.array("H", (int(311 * rng.random() ** 2) for _ in range(ids)))
        (directory / f"{name}.bin").write_bytes(skewed.tobytes())


class Training:
    """Runs the binary's `train` on run directories below one work directory."""

    def __init__(self, binary: str, work: Path):
        self.binary, self.work = binary, work
        self.config = work / "config.toml"
        self.data = work / "data"

    def prepare(self) -> None:
        make_data(self.data)
        self.config.write_text(CONFIG.format(data=self.data, steps=STEPS))

    def arguments(self, run: Path, *more: str) -> list[str]:
        return [self.binary, "train", "--config", str(self.config), "--run-dir", str(run), "--resume", "auto", *more]

    def start(self, run: Path, *more: str, **how) -> subprocess.Popen:
        errors = how.pop("stderr", None)
        if errors is None:
            errors = open(self.work / "stderr.txt", "wb")
        return subprocess.Popen(
            self.arguments(run, *more), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, **how
        )

    def log(self) -> str:
        """Returns the standard error of the newest process that start() ran without a pipe."""
        return (self.work / "stderr.txt").read_text(errors="replace")

    def run(self, run: Path, *more: str, **how) -> tuple[int, str]:
        """Runs a training to its end; returns the exit code and the standard error."""
        process = self.start(run, *more, stderr=subprocess.PIPE, **how)
        try:
            _, output = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.kill()
            _, output = process.communicate()
            return -9, "it did not exit within 240 s"
        return process.returncode, output.decode(errors="replace")


def metrics(run: Path) -> list[dict]:
    """Returns the complete lines of metrics.jsonl so far."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def result(run: Path) -> tuple[list[dict], dict[str, bytes]]:
    """Returns what must be reproduced exactly: metrics, and the files of the last checkpoint."""
    lines = [{key: line[key] for key in EXACT if key in line} for line in metrics(run)]
    last = run / "checkpoints" / f"step-{STEPS:08}"
    return lines, {name: (last / name).read_bytes() for name in FILES}


def difference(run: Path, expected: tuple[list[dict], dict[str, bytes]]) -> str | None:
    """Returns the first difference from the expected result, or None."""
    try:
        lines, files = result(run)
    except OSError as error:
        return f"the run is incomplete: {error}"
    for name in FILES:
        if files[name] != expected[1][name]:
            return f"{name} of the last checkpoint differs"
    for got, want in zip(lines, expected[0]):
        if got != want:
            return f"a line of the metrics is {got}, expected {want}"
    if len(lines) != len(expected[0]):
        return f"{len(lines)} lines of metrics, expected {len(expected[0])}"
    left = [name for name in os.listdir(run / "checkpoints") if name.startswith(".")]
    return f"temporary files were not deleted: {left}" if left else None


def wait_for(condition, seconds: float = 60.0, pause: float = 0.002) -> bool:
    """Polls until the condition is true; returns False after a timeout."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(pause)
    return False


def kill(process: subprocess.Popen, with_signal: int = signal.SIGKILL) -> None:
    """Sends a signal to a process that this program started, unless it has exited."""
    if process.poll() is None:
        process.send_signal(with_signal)
