"""Tests that TensorBoard shows one curve for a run that was stopped and resumed from an earlier
step."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# The small training of tests/support.rs.
CONFIG = """
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
path = "{data}"
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
keep_last = 3
"""


# TensorBoard tag -> key of metrics.jsonl.
TAGS = {"train/loss": "loss", "train/learning_rate": "lr", "train/grad_norm": "grad_norm"}
TAGS |= {"speed/tokens_per_s": "tokens_per_s", "speed/mfu": "mfu", "val/loss": "val_loss", "val/perplexity": "val_ppl"}


@pytest.fixture
def config(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    ids = (np.random.default_rng(1).random(4500) ** 2 * 311).astype("<u2")
    ids[:4001].tofile(data / "train.bin")
    ids[4001:].tofile(data / "val.bin")
    path = tmp_path / "small.toml"
    path.write_text(CONFIG.format(data=data))
    return path


@pytest.mark.parametrize("from_step", [None, 4], ids=["the newest checkpoint", "an older checkpoint"])
def test_a_resumed_run_is_one_curve(backpack, config, tmp_path, from_step):
    run = tmp_path / "run"
    backpack("train", "--config", config, "--run-dir", run, "--stop-after", 7, code=85)
    checkpoint = "auto" if from_step is None else run / f"checkpoints/step-{from_step:08}"
    backpack("train", "--config", config, "--run-dir", run, "--resume", checkpoint)

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) == TAGS.keys()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for tag, key in TAGS.items():
        recorded = [(line["step"], np.float32(line[key])) for line in metrics if key in line]
        assert [(event.step, np.float32(event.value)) for event in events.Scalars(tag)] == recorded, tag
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    assert [event.step for event in events.Scalars("val/loss")] == [5, 10, 12]
