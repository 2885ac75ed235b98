"""Measures the parts of a training step on a GPU, each computed in several ways: milliseconds of a
forward and backward pass with the sizes of small. Prints one JSON object on the last line.

The ways `own` use the kernels of crates/torch-ext/cuda. Their results are first compared with those
of libtorch. On a CPU, the sizes are small, and an emulator runs the kernels for this comparison.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

import own_kernels
from hardware import seconds
from parts_torch import Sizes, adamw, attention, gelu, head, mixing, norm

# Relative error of a result in bf16 against the same result of libtorch. A loss is in nats.
ERROR_LIMIT = 2e-2


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--kernels",
        type=Path,
        default=Path(__file__).resolve().parents[2] / "crates/torch-ext/cuda",
        help="directory of the CUDA sources",
    )
    a = parser.parse_args()
    missing = [name for name in own_kernels.FILES if not (a.kernels / name).is_file()]
    if missing:
        parser.error(f"{a.kernels} contains no {missing[0]}: name the directory of the CUDA sources (--kernels).")
    quick = a.device == "cpu"
    sizes = Sizes.quick() if quick else Sizes()
    parts = {
        "head and loss": head(sizes, a.device),
        "mixing": mixing(sizes, a.device),
        "sum and norm": norm(sizes, a.device),
        "gelu": gelu(sizes, a.device),
        "attention, dropout 0": attention(sizes, a.device, 0.0),
        "attention, dropout 0.1": attention(sizes, a.device, 0.1),
        "clip and AdamW": adamw(sizes, a.device),
    }
    milliseconds, errors, failures = {}, {}, {}
    for name, part in parts.items():
        ways = dict(part.ways)
        if name in own_kernels.PARTS:
            try:
                own = own_kernels.PARTS[name](part, sizes, a.kernels, a.device)
                errors[name] = own.errors
                # The time of emulated kernels has no meaning.
                ways |= {} if quick else own.ways
            except (RuntimeError, OSError, TypeError) as error:
                failures[name] = str(error)[:300]
        milliseconds[name] = {
            way: round(1e3 * seconds(a.device, work, repeats=5, warmup=2), 3) for way, work in ways.items()
        }
        if a.device == "cuda":
            torch.cuda.empty_cache()
    accurate = all(error <= ERROR_LIMIT for values in errors.values() for error in values.values())
    report = {
        "ok": accurate and not failures,
        "ms": milliseconds,
        "errors": errors,
        "error_limit": ERROR_LIMIT,
        "failures": failures,
    }
    print(json.dumps(report))
    sys.exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    main()
