"""Measures training with two processes. scripts/bench-distributed.sh runs it from the root of the
repository and describes its options."""
import argparse
import datetime
import json
import os
import socket
import statistics
import subprocess
import sys
import time

from section import machine, write_section

# One thread per rank, on the micro configuration.
SETTINGS = ["--config", "configs/owt/micro.toml", "--threads", "1", "--set", "run.device=cpu"]
SETTINGS += ["--set", "batch.tokens_per_step=8192", "--set", "batch.micro_batch_size=4"]

BINARY = os.environ.get("BACKPACK_BINARY", "backpack")


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def bench(ranks: int, steps: int, *settings: str) -> dict:
    """Runs `backpack bench` and returns its report (of rank 0)."""
    command = ["bench", "--json", *SETTINGS, "--steps", str(steps), "--warmup", "1", "--profile-steps", "0", *settings]
    if ranks > 1:
        command = ["launch", "--nproc", str(ranks), "--", *command]
    done = subprocess.run([BINARY, *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench-distributed: {' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    report = json.loads(done.stdout.strip().removeprefix("[0] "))
    log(f"  {ranks} rank(s) {' '.join(settings)}: {report['tokens_per_s']:.0f} tokens/s")
    return report


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def seconds_to_detect() -> float:
    """Kills one of two ranks between short steps; returns the seconds until the other one exits."""
    port = free_port()
    ranks = []
    for rank in range(2):
        command = [BINARY, "bench", "--config", "configs/quickstart.toml", "--threads", "1", "--set", "run.device=cpu"]
        command += ["--steps", "1000000", "--rank", str(rank), "--world-size", "2"]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        ranks.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    survivor, killed = ranks
    for line in survivor.stderr:
        if line.startswith("step 20/"):
            break
    killed.kill()
    begun = time.monotonic()
    output = survivor.stderr.read()
    code = survivor.wait()
    seconds = time.monotonic() - begun
    killed.wait()
    killed.stderr.close()
    if code != 1 or "error: rank 0: " not in output:
        sys.exit(f"bench-distributed: the surviving rank exited with code {code} and printed:\n{output[-2000:]}")
    log(f"  the other rank exited {seconds:.3f} s after the kill")
    return seconds


def text(one: list, two: list, after: list, detected: list) -> str:
    def rate(reports: list) -> str:
        rates = [report["tokens_per_s"] for report in reports]
        return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"

    speedup = statistics.median(b["tokens_per_s"] / a["tokens_per_s"] for a, b in zip(one, two))
    overlapped = statistics.median(b["tokens_per_s"] / a["tokens_per_s"] for a, b in zip(after, two))
    parts = [report["communication"] for report in two]
    mean = lambda key: statistics.mean(part[key] for part in parts)
    buckets = parts[0]["bucket_bytes"]
    return f"""{datetime.date.today()}, {machine(os.cpu_count() or 1)}, `scripts/bench-distributed.sh`, Gloo over loopback.

The model is micro in {one[0]["precision"]}. A step is 8,192 tokens in micro-batches of 4 sequences, with one
thread per rank. The figures are medians over {len(one)} rounds, with their range. The two ranks share the
memory bandwidth.

| | tokens/s |
|---|---|
| one rank | {rate(one)} |
| two ranks, gradients reduced during the backward pass | {rate(two)} |
| two ranks, gradients reduced after the backward pass | {rate(after)} |

Two ranks are {speedup:.2f} times as fast as one. With overlap they are {overlapped:.3f} times as fast as without it.

The gradients of a step are {sum(buckets) / 1e6:.0f} MB in {len(buckets)} buckets. The largest bucket is {max(buckets) / 1e6:.0f} MB. Times are means
over the steps that libtorch times. The reduction takes {mean("communication_seconds"):.2f} s from the start of the first bucket
to the end of the last. {mean("overlap_seconds"):.2f} s of that are within the backward pass of {mean("backward_seconds"):.2f} s.

After one rank was killed with SIGKILL, the other one exited with an error after {", ".join(f"{s * 1000:.0f}" for s in detected)} ms."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-distributed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="alternating rounds [default: 2]")
    parser.add_argument("--quick", action="store_true", help="smoke test: few steps, prints, writes no document")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    if os.getloadavg()[0] > 0.5:
        log(f"bench-distributed: warning: the load average is {os.getloadavg()[0]:.1f}; another process is using the CPU")
    rounds, steps = (1, 1) if given.quick else (given.rounds, 4)
    one, two, after = [], [], []
    for number in range(rounds):
        log(f"round {number + 1} of {rounds}")
        one.append(bench(1, steps))
        two.append(bench(2, steps))
        after.append(bench(2, steps, "--set", "distributed.overlap=false"))
    detected = [seconds_to_detect() for _ in range(1 if given.quick else 3)]
    section = text(one, two, after, detected)
    if given.quick:
        print(section)
    else:
        write_section("docs/measurements/scaling-gloo.md", "measured", "scripts/bench-distributed.sh", section)


main()
