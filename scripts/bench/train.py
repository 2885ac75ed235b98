"""Measures training steps. scripts/bench-train.sh runs it from the root of the repository and
describes its options."""
import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

import training_section
from section import machine, write_section

# The PyTorch side of a comparison is a program of the user in the directory of --peers. It is not
# part of this repository; `BASELINES` lists the versions of the model that it implements. It
# runs with the environment variable TH, the number of threads, in two ways. CONFIG is `micro` or
# `small`, and VERSION is `Baseline.version`.
#   time CONFIG STEPS VERSION   times STEPS steps and prints, after `JSON `, an object with the
#                               tokens per second in `res.VERSION.tok_s`
#   rss CONFIG VERSION STEPS    takes STEPS steps and prints the peak memory: `peak NUMBER GiB`
PROGRAM = "bench_torch.py"
# The same number of tokens per step (4 x 512) and learning rate as PROGRAM.
THREADS = 2
SETTINGS = {
    "run.threads": THREADS,
    "run.device": "cpu",
    "model.dropout": 0,
    "data.sequence_length": 512,
    "batch.tokens_per_step": 2048,
    "batch.micro_batch_size": 4,
    "optimizer.learning_rate": 1e-4,
}
# Make malloc keep freed memory. `backpack` sets these thresholds itself.
RAISED = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


@dataclass(frozen=True)
class Baseline:
    """A PyTorch version of the model, and the `backpack` variant that it is compared with."""

    name: str  # printed into the document
    version: str  # the name of the version in PROGRAM
    ours: str
    raised: bool = False  # with malloc's thresholds raised

    def environment(self) -> dict:
        return {**(RAISED if self.raised else {}), "TH": str(THREADS)}


BASELINES = [
    Baseline("published code, fp32", "a_pyvene", "bf16 fused"),
    Baseline("SDPA, fp32", "b_ref", "fp32 fused"),
    Baseline("SDPA, autocast to bf16", "c_ref_ac", "bf16 fused"),
    Baseline("torch.compile, autocast to bf16", "d_compile_ac", "bf16 fused"),
    Baseline("SDPA, autocast to bf16, malloc thresholds raised", "c_ref_ac", "bf16 fused", raised=True),
    Baseline("torch.compile, autocast to bf16, malloc thresholds raised", "d_compile_ac", "bf16 fused", raised=True),
]
OURS = ["bf16 fused", "fp32 fused", "bf16 reference"]


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(command: list, **environment: str) -> str:
    """Returns the standard output of a command. Exits with its output when it fails."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench-train: {' '.join(map(str, command))} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


class Bench:
    def __init__(self, peers: Path | None):
        self.binary = os.environ["BACKPACK_BINARY"]
        self.peers = peers
        self.tokens = []
        if peers:
            environments = Path(run(["tests/interop/environments.sh", "4.46"]).strip())
            self.python = environments / "4.46/bin/python"
            self.torch = version_of(environments / "torch", "torch")
            self.tokens = ["--tokens-file", peers / "bench_tokens.bin"]

    def ours(self, which: str, config: str, steps: int, warmup: int = 2, profile_steps: int = 2, **settings) -> dict:
        """Runs `backpack bench` and returns its report."""
        precision, kernels = which.split()
        keys = {**SETTINGS, "run.precision": precision, "run.kernels": kernels, **settings}
        command = [self.binary, "bench", "--json", "--config", f"configs/owt/{config}.toml", *self.tokens]
        command += ["--steps", steps, "--warmup", warmup, "--profile-steps", profile_steps]
        for key, value in keys.items():
            command += ["--set", f"{key}={value}"]
        report = json.loads(run([str(part) for part in command]))
        log(f"  backpack, {which}: {report['tokens_per_s']:.0f} tokens/s, MFU {report['mfu']:.3f}")
        return report

    def theirs(self, baseline: Baseline, config: str, mode: str, *arguments) -> str:
        """Runs the PyTorch program and returns its standard output."""
        command = [self.python, self.peers / PROGRAM, mode, config, *map(str, arguments)]
        return run(command, PYTHONDONTWRITEBYTECODE="1", **baseline.environment())

    def tokens_per_s(self, baseline: Baseline, config: str, steps: int) -> float:
        out = self.theirs(baseline, config, "time", steps, baseline.version)
        line = next(line for line in out.splitlines() if line.startswith("JSON "))
        rate = json.loads(line.removeprefix("JSON "))["res"][baseline.version]["tok_s"]
        log(f"  PyTorch, {baseline.name}: {rate:.0f} tokens/s")
        return rate

    def memory_bytes(self, baseline: Baseline, config: str) -> float:
        # A compiled variant compiles in its first step. From the third step on, all steps are alike.
        steps = 3 if "compile" in baseline.version else 2
        out = self.theirs(baseline, config, "rss", baseline.version, steps)
        found = re.search(r"peak ([\d.]+) GiB", out)
        if not found:
            sys.exit(f"bench-train: {PROGRAM} rss printed no peak:\n{out[-2000:]}")
        return float(found[1]) * 2**30


def version_of(directory: Path, package: str) -> str:
    found: Distribution = next(iter(distributions(name=package, path=[str(directory)])))
    return found.version


def compare(bench: Bench, config: str, rounds: int, steps: int, baselines: list) -> dict:
    """Measures rounds of pairs, `backpack` first and then the baseline, one process at a time."""
    ours = {which: [] for which in OURS}
    theirs = {b.name: {"ours": b.ours, "tokens_per_s": [], "ratios": []} for b in baselines}
    for number in range(rounds):
        log(f"{config}, round {number + 1} of {rounds}")
        for baseline in baselines:
            report = bench.ours(baseline.ours, config, steps)
            ours[baseline.ours].append(report)
            rate = bench.tokens_per_s(baseline, config, steps)
            theirs[baseline.name]["tokens_per_s"].append(rate)
            theirs[baseline.name]["ratios"].append(report["tokens_per_s"] / rate)
        for which in OURS:
            if len(ours[which]) <= number:
                ours[which].append(bench.ours(which, config, steps))
    for baseline in baselines:
        memory = bench.memory_bytes(baseline, config)
        theirs[baseline.name]["peak_memory_bytes"] = memory
        own = statistics.median(report["peak_memory_bytes"] for report in ours[baseline.ours])
        theirs[baseline.name]["memory_ratio"] = own / memory
    return {"rounds": rounds, "steps": steps, "ours": ours, "theirs": theirs}


def memory_growth(bench: Bench, sizes: list) -> dict:
    """Measures peak memory at several micro-batch sizes. A step is one micro-batch."""
    log("memory growth")
    peaks = {}
    for which in ["bf16 fused", "fp32 fused"]:
        peaks[which] = {}
        for size in sizes:
            settings = {"batch.micro_batch_size": size, "batch.tokens_per_step": 512 * size}
            report = bench.ours(which, "micro", steps=1, warmup=1, profile_steps=0, **settings)
            peaks[which][size] = report["peak_memory_bytes"]
    return {"peak_memory_bytes": peaks}


def trend(bench: Bench, steps: int, window: int) -> dict:
    """Measures the median step time of consecutive windows of steps."""
    log(f"trend over {steps} steps")
    seconds = bench.ours("bf16 fused", "micro", steps, profile_steps=0)["step_seconds"]
    windows = [statistics.median(seconds[i : i + window]) for i in range(0, len(seconds), window)]
    return {"steps": steps, "window": window, "window_seconds": windows, "step_seconds": seconds}


def agreement(bench: Bench, steps: int) -> dict:
    """Returns the losses of fused and reference kernels over the same steps."""
    log(f"agreement over {steps} steps")
    losses = {}
    for precision in ["fp32", "bf16"]:
        losses[precision] = {
            kernels: bench.ours(f"{precision} {kernels}", "micro", steps, warmup=0, profile_steps=0)["losses"]
            for kernels in ["fused", "reference"]
        }
    return {"steps": steps, "losses": losses}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-train", description=__doc__)
    parser.add_argument("--peers", type=Path, help="directory with the PyTorch side of the comparison")
    parser.add_argument("--config", action="append", choices=["micro", "small"], help="model size [default: micro]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of a comparison [default: 3]")
    parser.add_argument("--steps", type=int, default=5, help="timed steps per round [default: 5]")
    parser.add_argument("--memory-growth", action="store_true", help="measure peak memory by micro-batch size")
    parser.add_argument("--trend", action="store_true", help="measure the drift of the step time over 500 steps")
    parser.add_argument("--agreement", action="store_true", help="compare the losses of both kernels over 100 steps")
    parser.add_argument("--quick", action="store_true", help="smoke test: few steps, prints, writes no document")
    given = parser.parse_args()
    if given.rounds < 1 or given.steps < 1:
        parser.error("--rounds and --steps must be at least 1")
    if given.peers and not (given.peers / PROGRAM).is_file():
        parser.error(f"--peers: {given.peers} has no file {PROGRAM}")
    return given


def main() -> None:
    given = arguments()
    bench = Bench(given.peers)
    options = ["--peers DIR" if given.peers else ""]
    options += [f"--{name}" for name in ["memory-growth", "trend", "agreement"] if getattr(given, name.replace("-", "_"))]
    options += [f"--config {name}" for name in given.config or []]
    if given.config:
        options += [f"--rounds {given.rounds}", f"--steps {given.steps}"]
    about = {
        "date": str(datetime.date.today()),
        "machine": machine(os.cpu_count() or 1),
        "command": " ".join(["scripts/bench-train.sh", *filter(None, options)]),
        "load_before": os.getloadavg()[0],
        "torch": bench.torch if given.peers else None,
    }
    if about["load_before"] > 0.5:
        log(f"bench-train: warning: the load average is {about['load_before']:.1f}; another process is using the CPU")
    path = Path("runs/bench") / ("quick.json" if given.quick else "training.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() and not given.quick else {}

    def keep(kind: str, measured: dict) -> None:
        results[kind] = {**about, **measured}
        path.write_text(json.dumps(results, indent=1))

    # A smoke test runs every part with too few steps for a measurement.
    quick = given.quick
    if given.memory_growth:
        keep("memory growth", memory_growth(bench, [4, 8] if quick else [4, 8, 16]))
    if given.trend:
        keep("trend", trend(bench, *((4, 2) if quick else (500, 50))))
    if given.agreement:
        keep("agreement", agreement(bench, 2 if quick else 100))
    if not (given.memory_growth or given.trend or given.agreement):
        baselines = BASELINES if given.peers else []
        size = (1, 1, baselines[:1]) if quick else (given.rounds, given.steps, baselines)
        for config in given.config or ["micro"]:
            keep(config, compare(bench, config, *size))
    text = training_section.text(json.loads(path.read_text()))
    if quick:
        print(text)
    else:
        write_section("docs/measurements/benchmarks.md", "training", "scripts/bench-train.sh", text)


main()
