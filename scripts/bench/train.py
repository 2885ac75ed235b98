"""Measures training steps; scripts/bench-train.sh says how it is called. Runs from the root."""
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

# 4 x 512 tokens a step, as the yardsticks; their rate, too.
THREADS = 2
SETTINGS = {
    "run.threads": THREADS,
    "run.device": "cpu",
    "model.dropout": 0,
    "data.sequence_length": 512,
    "batch.tokens": 2048,
    "batch.micro_batch": 4,
    "optimizer.learning_rate": 1e-4,
}
# malloc keeps what is freed, which our program asks for itself.
RAISED = {"MALLOC_MMAP_THRESHOLD_": "8589934592", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


@dataclass(frozen=True)
class Yardstick:
    """A variant of bench_torch.py, and which of ours is measured in turns with it."""

    name: str
    variant: str
    ours: str
    raised: bool = False

    def environment(self) -> dict:
        return {**(RAISED if self.raised else {}), "TH": str(THREADS)}


YARDSTICKS = [
    Yardstick("a_pyvene", "a_pyvene", "bf16 fused"),
    Yardstick("b_ref", "b_ref", "fp32 fused"),
    Yardstick("c_ref_ac", "c_ref_ac", "bf16 fused"),
    Yardstick("d_compile_ac", "d_compile_ac", "bf16 fused"),
    Yardstick("c_ref_ac, raised", "c_ref_ac", "bf16 fused", raised=True),
    Yardstick("d_compile_ac, raised", "d_compile_ac", "bf16 fused", raised=True),
]
OURS = ["bf16 fused", "fp32 fused", "bf16 plain"]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(command: list, **environment: str) -> str:
    """The standard output of a command; its words when it fails."""
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

    def ours(self, which: str, config: str, steps: int, warmup: int = 2, part_steps: int = 2, **settings) -> dict:
        precision, kernels = which.split()
        keys = {**SETTINGS, "run.precision": precision, "run.kernels": kernels, **settings}
        command = [self.binary, "bench", "--json", "--config", f"configs/owt/{config}.toml", *self.tokens]
        command += ["--steps", steps, "--warmup", warmup, "--part-steps", part_steps]
        for key, value in keys.items():
            command += ["--set", f"{key}={value}"]
        report = json.loads(run([str(part) for part in command]))
        say(f"  ours, {which}: {report['tokens_per_s']:.0f} tok/s, mfu {report['mfu']:.3f}")
        return report

    def theirs(self, yardstick: Yardstick, config: str, mode: str, *arguments) -> str:
        command = [self.python, self.peers / "bench_torch.py", mode, config, *map(str, arguments)]
        return run(command, PYTHONDONTWRITEBYTECODE="1", **yardstick.environment())

    def tokens_per_s(self, yardstick: Yardstick, config: str, steps: int) -> float:
        out = self.theirs(yardstick, config, "time", steps, yardstick.variant)
        line = next(line for line in out.splitlines() if line.startswith("JSON "))
        rate = json.loads(line.removeprefix("JSON "))["res"][yardstick.variant]["tok_s"]
        say(f"  {yardstick.name}: {rate:.0f} tok/s")
        return rate

    def memory_bytes(self, yardstick: Yardstick, config: str) -> float:
        # A compiled variant compiles in its first step: the third is like all later ones.
        steps = 3 if "compile" in yardstick.variant else 2
        out = self.theirs(yardstick, config, "rss", yardstick.variant, steps)
        found = re.search(r"peak ([\d.]+) GiB", out)
        if not found:
            sys.exit(f"bench-train: no peak in what bench_torch.py rss said:\n{out[-2000:]}")
        return float(found[1]) * 2**30


def version_of(folder: Path, package: str) -> str:
    found: Distribution = next(iter(distributions(name=package, path=[str(folder)])))
    return found.version


def compare(bench: Bench, config: str, rounds: int, steps: int, yardsticks: list) -> dict:
    """Rounds of pairs: ours, then the yardstick, each alone on the machine."""
    ours = {which: [] for which in OURS}
    theirs = {y.name: {"ours": y.ours, "tokens_per_s": [], "ratios": []} for y in yardsticks}
    for turn in range(rounds):
        say(f"{config}, round {turn + 1} of {rounds}")
        for yardstick in yardsticks:
            report = bench.ours(yardstick.ours, config, steps)
            ours[yardstick.ours].append(report)
            rate = bench.tokens_per_s(yardstick, config, steps)
            theirs[yardstick.name]["tokens_per_s"].append(rate)
            theirs[yardstick.name]["ratios"].append(report["tokens_per_s"] / rate)
        for which in OURS:
            if len(ours[which]) <= turn:
                ours[which].append(bench.ours(which, config, steps))
    for yardstick in yardsticks:
        memory = bench.memory_bytes(yardstick, config)
        theirs[yardstick.name]["peak_memory_bytes"] = memory
        own = statistics.median(report["peak_memory_bytes"] for report in ours[yardstick.ours])
        theirs[yardstick.name]["memory_ratio"] = own / memory
    return {"rounds": rounds, "steps": steps, "ours": ours, "theirs": theirs}


def memory_growth(bench: Bench, sizes: list) -> dict:
    """Peak memory at several sizes of a pass; the step is one pass."""
    say("memory growth")
    peaks = {}
    for which in ["bf16 fused", "fp32 fused"]:
        peaks[which] = {}
        for size in sizes:
            settings = {"batch.micro_batch": size, "batch.tokens": 512 * size}
            report = bench.ours(which, "micro", steps=1, warmup=1, part_steps=0, **settings)
            peaks[which][size] = report["peak_memory_bytes"]
    return {"peak_memory_bytes": peaks}


def trend(bench: Bench, steps: int, window: int) -> dict:
    """Medians of windows of steps, in order."""
    say(f"trend over {steps} steps")
    seconds = bench.ours("bf16 fused", "micro", steps, part_steps=0)["step_seconds"]
    windows = [statistics.median(seconds[i : i + window]) for i in range(0, len(seconds), window)]
    return {"steps": steps, "window": window, "window_seconds": windows, "step_seconds": seconds}


def agreement(bench: Bench, steps: int) -> dict:
    """The losses of both kernels on the same steps."""
    say(f"agreement over {steps} steps")
    losses = {}
    for precision in ["fp32", "bf16"]:
        losses[precision] = {
            kernels: bench.ours(f"{precision} {kernels}", "micro", steps, warmup=0, part_steps=0)["losses"]
            for kernels in ["fused", "plain"]
        }
    return {"steps": steps, "losses": losses}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-train", add_help=False)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--config", action="append", choices=["micro", "small"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    for check in ["--memory-growth", "--trend", "--agreement", "--quick"]:
        parser.add_argument(check, action="store_true")
    given = parser.parse_args()
    if given.rounds < 1 or given.steps < 1:
        parser.error("--rounds and --steps must be at least 1")
    if given.peers and not (given.peers / "bench_torch.py").is_file():
        parser.error(f"--peers {given.peers} holds no bench_torch.py")
    return given


def main() -> None:
    given = arguments()
    bench = Bench(given.peers)
    words = ["--peers DIR" if given.peers else ""]
    words += [f"--{name}" for name in ["memory-growth", "trend", "agreement"] if getattr(given, name.replace("-", "_"))]
    words += [f"--config {name}" for name in given.config or []]
    if given.config:
        words += [f"--rounds {given.rounds}", f"--steps {given.steps}"]
    about = {
        "date": str(datetime.date.today()),
        "machine": machine(os.cpu_count() or 1),
        "command": " ".join(["scripts/bench-train.sh", *filter(None, words)]),
        "load_before": os.getloadavg()[0],
        "torch": bench.torch if given.peers else None,
    }
    if about["load_before"] > 0.5:
        say(f"bench-train: warning: the load average is {about['load_before']:.1f}: something else runs here")
    path = Path("runs/bench") / ("quick.json" if given.quick else "training.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    results = json.loads(path.read_text()) if path.exists() and not given.quick else {}

    def keep(kind: str, measured: dict) -> None:
        results[kind] = {**about, **measured}
        path.write_text(json.dumps(results, indent=1))

    # A smoke run shows that everything runs, and measures nothing.
    quick = given.quick
    if given.memory_growth:
        keep("memory growth", memory_growth(bench, [4, 8] if quick else [4, 8, 16]))
    if given.trend:
        keep("trend", trend(bench, *((4, 2) if quick else (500, 50))))
    if given.agreement:
        keep("agreement", agreement(bench, 2 if quick else 100))
    if not (given.memory_growth or given.trend or given.agreement):
        yardsticks = YARDSTICKS if given.peers else []
        turns = (1, 1, yardsticks[:1]) if quick else (given.rounds, given.steps, yardsticks)
        for config in given.config or ["micro"]:
            keep(config, compare(bench, config, *turns))
    text = training_section.text(json.loads(path.read_text()))
    if quick:
        print(text)
    else:
        write_section("docs/benchmarks.md", "training", "scripts/bench-train.sh", text)


main()
