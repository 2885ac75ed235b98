"""Compares 200 steps of `backpack train`, in fp32 and bf16, with plain PyTorch: the same initial
weights and the same batches from data/demo.jsonl."""

import json

import numpy as np
import pytest
from reference_training import train

STEPS, SEQUENCES, LENGTH, PEAK, WARMUP = 200, 4, 48, 6e-4, 40

CONFIG = f"""
[run]
device = "cpu"
threads = 1
[model]
n_embd = 32
n_head = 4
n_layer = 2
num_senses = 4
n_positions = {LENGTH}
vocab_size = 13000
dropout = 0.0
[data]
path = "DATA"
sequence_length = {LENGTH}
order = "sequential"
[optimizer]
learning_rate = {PEAK}
[schedule]
warmup_steps = {WARMUP}
max_steps = {STEPS}
[batch]
tokens_per_step = {SEQUENCES * LENGTH}
micro_batch_size = 2
[validation]
max_sequences = 1
"""


@pytest.fixture(scope="module")
def prepared(backpack, tmp_path_factory):
    directory = tmp_path_factory.mktemp("training")
    data = directory / "data"
    shards = directory / "shards"
    backpack("prepare-data", "--input", "data/demo.jsonl", "--output", shards, "--val-fraction", "0.05")
    # Only the tokens that occur, a quarter of GPT-2's vocabulary: the output head dominates the
    # time.
    splits = {name: np.fromfile(shards / f"{name}-00000.bin", dtype="<u2") for name in ("train", "val")}
    known = np.unique(np.concatenate(list(splits.values())))
    data.mkdir()
    for name, ids in splits.items():
        np.searchsorted(known, ids).astype("<u2").tofile(data / f"{name}.bin")
    assert len(known) < 13_000
    (directory / "run.toml").write_text(CONFIG.replace("DATA", str(data)))
    return directory


def losses(backpack, directory, precision):
    run = directory / precision
    arguments = ["train", "--config", directory / "run.toml", "--run-dir", run, "--set", f"run.precision={precision}"]
    backpack(*arguments, "--stop-after", "0", code=85)
    backpack(*arguments, "--resume", "auto")
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_losses_equal_those_of_plain_pytorch(backpack, prepared):
    ours = losses(backpack, prepared, "fp32")
    initial = prepared / "fp32/checkpoints/step-00000000"
    want = train(initial, prepared / "data/train.bin", SEQUENCES, LENGTH, STEPS, PEAK, WARMUP)
    assert len(ours) == STEPS and want[-1] < want[0] - 1
    worst = max(abs(a - b) for a, b in zip(ours, want))
    assert worst < 1e-3, worst
    half = losses(backpack, prepared, "bf16")
    assert abs(half[-1] - want[-1]) < 2e-2, (half[-1], want[-1])
    # Where the loss falls steeply, single batches may differ more.
    assert sum(abs(a - b) for a, b in zip(half, want)) / STEPS < 2e-2
