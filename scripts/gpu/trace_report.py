"""Summarizes a kernel trace (kernel_trace.cpp) per training step: kernels, their time by kind and by
name, idle time of the GPU, and waits of the host. Prints one JSON object on the last line.

    trace_report.py TRACE [--steps 4]

The report covers the last steps. A step ends with its AdamW kernels.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from arguments import positive_int

# The kind of a kernel is the first whose pattern is found in its name.
KINDS = [
    ("own kernels", r"^(cross_entropy|add_layer_norm|bias_gelu|sense_weights)(_backward)?$"),
    ("attention", r"flash|fmha|sdpa|attention"),
    ("products", r"gemm|cutlass|cublas|nvjet|xmma|splitK|sgemm|ampere_|sm90_|sm80_|wgmma|s16816|bmm"),
    ("AdamW, norm", r"adam|multi_tensor|foreach|lpnorm|LpNorm"),
    ("layer norm", r"layer_norm|LayerNorm|GammaBeta|RowwiseMoments"),
    ("softmax, sums", r"softmax|logsumexp|reduce_kernel|Reduce|cross_entropy|nll_loss"),
    ("dropout", r"dropout|masked_scale"),
    ("gather, scatter, embedding", r"embedding|gather|scatter|index|sort|Sort|unique|cub"),
    ("triton", r"triton"),
    ("fill", r"FillFunctor|memset"),
    ("copies, casts", r"copy|Copy|cat|CatArray|transpose"),
    ("elementwise", r"elementwise"),
]

# Fewer than the kernels of any step, and more than the kernels between two calls of AdamW.
MIN_STEP_KERNELS = 50


@dataclass
class Record:
    kind: str  # k kernel, c copy, s set, w wait
    begin: int  # ns
    end: int
    name: str


def kind_of(record: Record) -> str:
    if record.kind == "c":
        return record.name
    return next((kind for kind, pattern in KINDS if re.search(pattern, record.name)), "other")


def read(path: Path) -> list:
    """Returns the records of a trace in the order of their begin."""
    lines = path.read_text(errors="replace").splitlines()
    names = {}
    for line in lines:
        if line.startswith("n "):
            _, number, name = line.split(" ", 2)
            names[number] = name
    records = []
    for line in lines:
        if line[:1] in ("k", "c", "s", "w"):
            kind, begin, end, number, *_ = line.split()
            name = "memset" if kind == "s" else names.get(number, "unnamed")
            records.append(Record(kind, int(begin), int(end), name))
    records.sort(key=lambda record: record.begin)
    return records


def step_ends(device: list) -> list:
    """Returns the times at which steps end: the ends of AdamW kernels that many other kernels, or
    none, follow. A step calls AdamW several times, and few other kernels run between the calls."""
    kernels = [record for record in device if record.kind == "k"]
    indices = [i for i, record in enumerate(kernels) if re.search("adam", record.name, re.IGNORECASE)]
    following = [*indices[1:], None]
    return [kernels[i].end for i, j in zip(indices, following) if j is None or j - i > MIN_STEP_KERNELS]


def short_name(name: str) -> str:
    """Shortens the name of a C++ kernel."""
    name = name.removeprefix("void ").replace("at::native::", "").replace("(anonymous namespace)::", "")
    return re.sub(r"\s+", " ", name)[:140]


def table(records: list, key, steps: int, limit: int) -> list:
    """Returns calls and milliseconds per step, the longest first."""
    totals = defaultdict(lambda: [0, 0.0])
    for record in records:
        total = totals[key(record)]
        total[0] += 1
        total[1] += (record.end - record.begin) / 1e6
    rows = sorted(totals.items(), key=lambda item: -item[1][1])[:limit]
    return [
        {"name": short_name(name), "calls": calls / steps, "ms": round(ms / steps, 4)}
        for name, (calls, ms) in rows
    ]


def report(path: Path, steps: int) -> dict:
    records = read(path)
    device = [record for record in records if record.kind != "w"]
    if not device:
        return {"ok": False, "error": "the trace contains no kernel"}
    ends = step_ends(device)
    if len(ends) < 2:
        return {"ok": False, "error": f"the trace contains {len(ends)} ends of steps, and 2 are needed"}
    steps = min(steps, len(ends) - 1)
    begin, end = ends[-1 - steps], ends[-1]
    inside = [record for record in device if begin <= record.begin < end]
    busy, until = 0, begin
    for record in inside:
        busy += max(0, record.end - max(record.begin, until))
        until = max(until, record.end)
    waits = [record for record in records if record.kind == "w" and begin <= record.begin < end]
    return {
        "ok": True,
        "steps": steps,
        "step_ms": round((end - begin) / 1e6 / steps, 3),
        "busy_ms": round(busy / 1e6 / steps, 3),
        "idle_fraction": round(1 - busy / (end - begin), 4),
        "kernels_per_step": sum(record.kind == "k" for record in inside) / steps,
        "by_kind": table(inside, kind_of, steps, 20),
        "by_name": table(inside, lambda record: record.name, steps, 45),
        "waits": table(waits, lambda record: record.name, steps, 8),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trace", type=Path)
    parser.add_argument("--steps", type=positive_int, default=4, help="number of steps to report")
    a = parser.parse_args()
    if not a.trace.is_file():
        parser.error(f"{a.trace} does not exist or is not a file.")
    found = report(a.trace, a.steps)
    for row in found.get("by_kind", []):
        print(f"{row['ms']:10.3f} ms {row['calls']:8.1f} calls  {row['name']}", file=sys.stderr)
    print(json.dumps(found))
    sys.exit(0 if found["ok"] else 1)


if __name__ == "__main__":
    main()
