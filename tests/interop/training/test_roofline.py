"""Limits the predicted cost of a step on a GPU (scripts/gpu/roofline.py), and checks that the
prediction is for the model of the program."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def predict(*arguments) -> dict:
    command = [sys.executable, "-B", ROOT / "scripts/gpu/roofline.py", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_own_kernels_keep_the_predicted_cost():
    """The limits are the totals of docs/measurements/gpu-estimate.md."""
    total = predict("--variant", "own")["total"]
    assert total["kernels"] <= 494
    assert total["gigabytes"] <= 123.7
    assert total["milliseconds"] <= 76.7
    libtorch = predict("--variant", "libtorch")["total"]
    assert total["gigabytes"] < libtorch["gigabytes"] and total["kernels"] < libtorch["kernels"]


def test_flops_are_those_of_the_program(backpack):
    plan = json.loads(backpack("plan", "--config", "configs/owt/small.toml", "--json"))
    assert predict("--variant", "own")["flops_per_token"] == plan["flops_per_token"]
