"""Compares `backpack` with PyTorch on a device. Prints one JSON object on the last line; `ok` is
false, and the exit code 1, if a difference exceeds its limit.

    check.py forward    logits, contextualization weights and senses of the fixtures
    check.py reference  training steps of PyTorch on this device, compared with the fixtures
    check.py training   steps of `backpack train`, compared with the same steps in PyTorch
    check.py resume     a run that stops and resumes, compared with a whole run; and its export
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from safetensors.torch import load_file

import reference
from arguments import positive_int
from common import write_ids, zipf_ids

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KERNELS = ("fused", "reference")
FORWARD_LIMITS = {"logits": 2e-4, "contextualization": 1e-5, "senses": 1e-4}  # absolute
# Of the loss, in nats. Results in fp32 differ by the order of sums, results in bf16 and fp16 by the
# rounding of each product.
LOSS_LIMITS = {"fp32": 2e-4, "bf16": 6e-2, "fp16": 2e-2}
NORM_LIMITS = {"fp32": 2e-3, "bf16": 1e-1, "fp16": 5e-2}  # relative, of the gradient norm
RESUME_LIMITS = {"loss": 5e-3, "export_logits": 1e-3}  # absolute

# Larger than the default of 1e-8, so that Adam does not amplify rounding noise of small gradients.
EPSILON = 1e-4
PEAK_RATE, WARMUP_STEPS, WEIGHT_DECAY = 1e-3, 4, 0.1
# Sequences per step and per micro-batch.
ROWS, MICRO_BATCH = 8, 4


def training_cases(text: str) -> list:
    """Returns the pairs (precision, kernels) of `--cases`."""
    cases = [tuple(case.split(":")) for case in text.split(",")]
    for case in cases:
        if len(case) != 2 or case[0] not in DTYPES or case[1] not in KERNELS:
            raise argparse.ArgumentTypeError(
                f"'{':'.join(case)}' is not PRECISION:KERNELS, with PRECISION in {', '.join(DTYPES)} "
                f"and KERNELS in {', '.join(KERNELS)}"
            )
    return cases


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("check", choices=["forward", "reference", "training", "resume"])
    parser.add_argument("--binary", default="backpack", help="the program to check")
    parser.add_argument("--libraries", type=Path, help="directory of the libtorch for the program")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--work", type=Path, required=True, help="directory for temporary files")
    parser.add_argument("--fixtures", type=Path, default=Path("tests/fixtures/backpack"))
    parser.add_argument(
        "--cases",
        type=training_cases,
        default="fp32:fused,fp32:reference,bf16:fused,bf16:reference,fp16:fused",
        help="precisions and kernels of `check.py training`",
    )
    parser.add_argument("--steps", type=positive_int, default=40, help="steps of `check.py training`")
    return parser.parse_args()


def run(a: argparse.Namespace, arguments: list, codes=(0,)) -> None:
    """Runs the program. Exits if its exit code is not in `codes`."""
    command = [str(word) for word in (a.binary, *arguments)]
    environment = dict(os.environ)
    if a.libraries:  # not for this process, whose torch may have another version
        environment["LD_LIBRARY_PATH"] = str(a.libraries)
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if result.returncode not in codes:
        print(" ".join(command), result.stderr[-3000:], sep="\n", file=sys.stderr)
        lines = result.stderr.strip().splitlines() or ["no output"]
        sys.exit(f"check: {arguments[0]} exited with code {result.returncode}: {lines[-1]}")


def max_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return (actual.double() - expected.double()).abs().max().item()


def worst(values) -> float:
    """Returns the largest value; NaN if a value is NaN or if the list is empty."""
    values = list(values)
    return max(values) if values and not any(map(math.isnan, values)) else math.nan


def fixture_directories(fixtures: Path) -> list:
    """Returns the directories of `--fixtures` that contain a model. Exits if there is none."""
    found = sorted(path.parent for path in fixtures.glob("*/config.json"))
    if not found:
        sys.exit(f"check: {fixtures} contains no fixture (*/config.json): name their directory (--fixtures).")
    return found


def dump(a: argparse.Namespace, model: Path, ids: torch.Tensor, output: Path) -> dict:
    """Returns the tensors that `backpack dump` writes for a model and ids [T]."""
    words = ",".join(map(str, ids.tolist()))
    options = ["--ids", words, "--output", output, "--device", a.device]
    run(a, ["dump", "--model", model, *options])
    return load_file(output)


def check_forward(a: argparse.Namespace) -> dict:
    differences = {}
    for directory in fixture_directories(a.fixtures):
        expected = load_file(directory / "forward.safetensors")
        ids = expected["tokens"][0, :-1]
        dumped = dump(a, directory, ids, a.work / f"{directory.name}.safetensors")
        with torch.no_grad():
            model = reference.load(directory).to(a.device).eval()
            row = ids[None].to(a.device)
            torch_logits = model(row)[0].cpu()
            torch_senses = model.senses(row)[0].cpu()
            with torch.autocast(a.device, torch.bfloat16):
                torch_bf16_logits = model(row)[0].float().cpu()
        logits, weights = expected["logits"][0], expected["contextualization"][0]
        differences[directory.name] = {
            "logits": max_difference(dumped["logits"], logits),
            "contextualization": max_difference(dumped["contextualization"], weights),
            "senses": max_difference(dumped["senses"], torch_senses),
            "torch_logits": max_difference(torch_logits, logits),
            "torch_bf16_logits": max_difference(torch_bf16_logits, logits),
        }
    ok = all(values[key] <= FORWARD_LIMITS[key] for values in differences.values() for key in FORWARD_LIMITS)
    return {"ok": ok, "limits": FORWARD_LIMITS, "differences": differences}


def learning_rate(step: int, peak: float, warmup: int, steps: int) -> float:
    """Linear from 0 to the peak and back to 0. Steps are counted from 0."""
    return peak * step / warmup if step < warmup else peak * max(0, steps - step) / max(1, steps - warmup)


def train_in_torch(model, batches, device: str, precision: str, hyper: dict, micro_batch: int) -> list:
    """Returns the loss and the gradient norm of AdamW steps over batches [steps, rows, T + 1]."""
    model = model.to(device).train()
    optimizer = reference.optimizer(model, hyper["peak"], hyper["decay"], hyper.get("eps", 1e-8))
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    cast = torch.autocast(device, DTYPES[precision]) if precision != "fp32" else nullcontext()
    metrics = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, hyper["peak"], hyper["warmup"], hyper["steps"])
        total, passes = 0.0, batch.shape[0] // micro_batch
        for rows in batch.to(device).split(micro_batch):
            with cast:
                loss = model.loss(rows[:, :-1], rows[:, 1:]) / passes
            scaler.scale(loss).backward()
            total += float(loss.detach())
        scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=device == "cuda")
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        metrics.append({"loss": total, "grad_norm": float(norm)})
    return metrics


def compare_metrics(actual: list, expected: list) -> dict:
    """Returns the largest differences over all steps: absolute of the loss, relative of the norm."""
    pairs = list(zip(actual, expected, strict=True))
    losses = [abs(x["loss"] - y["loss"]) for x, y in pairs]
    norms = [abs(x["grad_norm"] / y["grad_norm"] - 1) for x, y in pairs if x["grad_norm"] is not None]
    return {"first_loss": losses[0], "loss": worst(losses), "grad_norm": worst(norms)}


def check_reference(a: argparse.Namespace) -> dict:
    differences = {}
    for directory in fixture_directories(a.fixtures):
        saved = load_file(directory / "train.safetensors")
        hp = json.loads((directory / "train.json").read_text())["hp"]
        hyper = {
            "peak": hp["peak_lr"],
            "warmup": hp["warmup_steps"],
            "steps": hp["steps"],
            "decay": hp["weight_decay"],
        }
        pairs = zip(saved["loss"].tolist(), saved["grad_norm"].tolist())
        expected = [{"loss": loss, "grad_norm": norm} for loss, norm in pairs]
        batches = saved["batches"]
        actual = train_in_torch(reference.load(directory), batches, a.device, "fp32", hyper, batches.shape[1])
        differences[directory.name] = compare_metrics(actual, expected)
    limit = LOSS_LIMITS["fp32"]
    ok = all(values["loss"] <= limit for values in differences.values())
    return {"ok": ok, "limits": {"loss": limit}, "differences": differences}


def small_shape(device: str, dropout: float = 0.0) -> reference.Shape:
    """Returns a model with heads of 64 channels on a GPU, for which libtorch has fast attention."""
    width, layers, positions = (256, 3, 256) if device == "cuda" else (64, 2, 32)
    return reference.Shape(
        n_embd=width,
        n_layer=layers,
        n_head=4,
        n_positions=positions,
        vocab_size=4104,
        num_senses=16,
        dropout=dropout,
    )


def configuration(shape: reference.Shape, data: Path, start: Path, steps: int, **overrides) -> str:
    """Returns a configuration of `backpack train`. An override is `section__key=value`."""
    model_keys = (
        "architecture",
        "n_embd",
        "n_layer",
        "n_head",
        "n_positions",
        "vocab_size",
        "num_senses",
        "sense_intermediate_scale",
        "scale_attn_by_inverse_layer_idx",
        "dropout",
    )
    length = shape.n_positions
    sections = {
        "run": {"seed": 1, "watchdog_seconds": 0},
        "model": {key: getattr(shape, key) for key in model_keys},
        "data": {"path": str(data.resolve()), "sequence_length": length, "order": "sequential"},
        "optimizer": {"learning_rate": PEAK_RATE, "weight_decay": WEIGHT_DECAY, "eps": EPSILON},
        "schedule": {
            "warmup_steps": WARMUP_STEPS,
            "max_steps": steps,
            "decay": "linear",
            "min_learning_rate": 0.0,
        },
        "batch": {"tokens_per_step": ROWS * length, "micro_batch_size": MICRO_BATCH},
        "validation": {"every_steps": 0},
        "checkpoint": {"every_steps": 1000, "init_from": str(start.resolve())},
        "logging": {"tensorboard": False},
    }
    for name, value in overrides.items():
        section, key = name.split("__")
        sections[section][key] = value
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def prepare(shape: reference.Shape, work: Path, steps: int) -> tuple:
    """Writes initial weights and data. Returns both paths and the batches [steps, ROWS, T + 1]."""
    start, data, length = work / "start", work / "data", shape.n_positions
    model = reference.initialize(reference.build(shape), 5)
    with torch.no_grad():  # with larger weights, every part of the model changes the loss
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and not name.endswith("wte.weight"):
                parameter.mul_(2.5)
    reference.save(model, start)
    ids = zipf_ids(1, steps * ROWS * length, shape.vocab_size).flatten()
    write_ids(data / "train.bin", ids)
    write_ids(data / "val.bin", ids[: 4 * length + 1])
    rows = torch.stack([ids[i * length : (i + 1) * length + 1] for i in range(steps * ROWS)])
    return start, data, rows.view(steps, ROWS, length + 1)


def read_metrics(run_directory: Path) -> list:
    """Returns the lines of training steps. A loss or gradient norm that is null becomes NaN. In fp16,
    a gradient norm that is null stays None: the step was skipped, because gradients overflowed."""
    text = (run_directory / "metrics.jsonl").read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
    for line in lines:
        for key in ("loss", "grad_norm"):
            if line[key] is None and not (key == "grad_norm" and "loss_scale" in line):
                line[key] = math.nan
    return lines


def check_training(a: argparse.Namespace) -> dict:
    shape = small_shape(a.device)
    start, data, batches = prepare(shape, a.work, a.steps)
    hyper = {
        "peak": PEAK_RATE,
        "warmup": WARMUP_STEPS,
        "steps": a.steps,
        "decay": WEIGHT_DECAY,
        "eps": EPSILON,
    }
    expected, differences, ok = {}, {}, True
    for precision, kernels in a.cases:
        if precision not in expected:
            model = reference.load(start)
            expected[precision] = train_in_torch(model, batches, a.device, precision, hyper, MICRO_BATCH)
        config = a.work / f"{precision}-{kernels}.toml"
        run_directory = a.work / f"run-{precision}-{kernels}"
        shutil.rmtree(run_directory, ignore_errors=True)
        keys = {"run__precision": precision, "run__kernels": kernels, "run__device": a.device}
        config.write_text(configuration(shape, data, start, a.steps, **keys))
        begin = time.perf_counter()
        run(a, ["train", "--config", config, "--run-dir", run_directory])
        seconds = round(time.perf_counter() - begin, 1)
        found = compare_metrics(read_metrics(run_directory), expected[precision])
        passed = found["loss"] <= LOSS_LIMITS[precision] and found["grad_norm"] <= NORM_LIMITS[precision]
        differences[f"{precision}:{kernels}"] = {**found, "seconds": seconds, "ok": passed}
        ok &= passed
    return {
        "ok": ok,
        "limits": {"loss": LOSS_LIMITS, "grad_norm": NORM_LIMITS},
        "differences": differences,
        "torch_last_losses": {precision: steps[-1]["loss"] for precision, steps in expected.items()},
    }


def check_resume(a: argparse.Namespace) -> dict:
    """Trains with dropout, whose masks must not depend on where the run resumed."""
    steps = 12
    shape = small_shape(a.device, dropout=0.1)
    start, data, _ = prepare(shape, a.work, steps)
    config = a.work / "resume.toml"
    keys = {"run__device": a.device, "validation__every_steps": 6}
    config.write_text(configuration(shape, data, start, steps, **keys))
    train = ["train", "--config", config]
    whole, resumed, export = a.work / "whole", a.work / "resumed", a.work / "export"
    for directory in (whole, resumed, export):
        shutil.rmtree(directory, ignore_errors=True)
    run(a, [*train, "--run-dir", whole])
    run(a, [*train, "--run-dir", resumed, "--stop-after", 5], codes=(85,))
    run(a, [*train, "--run-dir", resumed, "--resume", "auto"])
    pairs = list(zip(read_metrics(whole), read_metrics(resumed), strict=True))
    loss = worst(abs(x["loss"] - y["loss"]) for x, y in pairs)
    equal = sum(x["loss"] == y["loss"] for x, y in pairs)

    checkpoint = max((resumed / "checkpoints").glob("step-*"))
    run(a, ["export", "--checkpoint", checkpoint, "--output", export])
    ids = zipf_ids(1, 23, shape.vocab_size, seed=3)
    dumped = dump(a, export, ids[0], a.work / "export.safetensors")
    with torch.no_grad():
        model = reference.load(export).to(a.device).eval()
        logits = max_difference(dumped["logits"], model(ids.to(a.device))[0].cpu())
    return {
        "ok": loss <= RESUME_LIMITS["loss"] and logits <= RESUME_LIMITS["export_logits"],
        "limits": RESUME_LIMITS,
        "differences": {"resumed": {"loss": loss, "export_logits": logits}},
        "equal_losses": f"{equal} of {steps}",
    }


CHECKS = {
    "forward": check_forward,
    "reference": check_reference,
    "training": check_training,
    "resume": check_resume,
}


def main() -> None:
    a = parse_arguments()
    a.work.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    report = CHECKS[a.check](a)
    print(json.dumps(report))
    sys.exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    main()
