"""A small training to disturb, and what must come out of it."""

import array
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

# A step of some tens of milliseconds, and a checkpoint of 35 MB that takes longer to write than a
# step does. Dropout, spikes that are skipped and their window are all part of what has to go on.
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
[stability]
spike_window = 8
spike_z_score = 1.5
skip_spikes = true
max_bad_steps = 0
[schedule]
warmup_steps = 4
max_steps = {steps}
[batch]
tokens = 128
micro_batch = 4
[validation]
every = 9
[checkpoint]
every = 7
"""

STEPS = 50
# What must not depend on how often a run was disturbed.
EXACT = ["step", "tokens", "loss", "lr", "grad_norm", "val_loss", "skipped", "spikes"]
FILES = ["model.safetensors", "optimizer.safetensors", "config.json"]


def make_data(folder: Path) -> None:
    folder.mkdir()
    draw = random.Random(1)
    for name, ids in [("train", 40_001), ("val", 2_001)]:
        # Skewed, so that there is something to learn.
        skewed = array.array("H", (int(311 * draw.random() ** 2) for _ in range(ids)))
        (folder / f"{name}.bin").write_bytes(skewed.tobytes())


class Training:
    """The binary on one run folder."""

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

    def said(self) -> str:
        """What the newest that was started without a pipe said."""
        return (self.work / "stderr.txt").read_text(errors="replace")

    def run(self, run: Path, *more: str, **how) -> tuple[int, str]:
        """To its end: exit code and what it said."""
        process = self.start(run, *more, stderr=subprocess.PIPE, **how)
        try:
            _, said = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
            return -9, "it did not end in 240 s"
        return process.returncode, said.decode(errors="replace")


def metrics(run: Path) -> list[dict]:
    """Whole lines of the metrics so far."""
    try:
        text = (run / "metrics.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def result(run: Path) -> tuple[list[dict], dict[str, bytes]]:
    lines = [{key: line[key] for key in EXACT if key in line} for line in metrics(run)]
    last = run / "checkpoints" / f"step-{STEPS:08}"
    return lines, {name: (last / name).read_bytes() for name in FILES}


def difference(run: Path, expected: tuple[list[dict], dict[str, bytes]]) -> str | None:
    """What is not as it should be."""
    try:
        lines, files = result(run)
    except OSError as error:
        return f"the run is not whole: {error}"
    for name in FILES:
        if files[name] != expected[1][name]:
            return f"{name} of the last checkpoint is another"
    for got, want in zip(lines, expected[0]):
        if got != want:
            return f"a line of the metrics is {got}, not {want}"
    if len(lines) != len(expected[0]):
        return f"{len(lines)} lines of metrics, not {len(expected[0])}"
    left = [name for name in os.listdir(run / "checkpoints") if name.startswith(".")]
    return f"{left} is left behind" if left else None


def wait_for(condition, seconds: float = 60.0, pause: float = 0.002) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(pause)
    return False


def kill(process: subprocess.Popen, with_signal: int = signal.SIGKILL) -> None:
    """Only ever a process that this program started and has not waited for."""
    if process.poll() is None:
        process.send_signal(with_signal)
