"""Measures runs of two processes; scripts/bench-distributed.sh says how it is called. Runs from
the root."""
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

# The target: two ranks of one thread against one, on the micro config.
SETTINGS = ["--config", "configs/owt/micro.toml", "--threads", "1", "--set", "run.device=cpu"]
SETTINGS += ["--set", "batch.tokens=8192", "--set", "batch.micro_batch=4"]
LEAST_SPEEDUP = 1.75
MOST_SECONDS_TO_NOTICE = 1.0

BINARY = os.environ["BACKPACK_BINARY"]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def bench(ranks: int, steps: int, *settings: str) -> dict:
    """The report of one bench; that of rank 0 where there are two."""
    command = ["bench", "--json", *SETTINGS, "--steps", str(steps), "--warmup", "1", "--part-steps", "0", *settings]
    if ranks > 1:
        command = ["launch", "--nproc", str(ranks), "--", *command]
    done = subprocess.run([BINARY, *command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"bench-distributed: {' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    report = json.loads(done.stdout.strip().removeprefix("[0] "))
    say(f"  {ranks} rank(s) {' '.join(settings)}: {report['tokens_per_s']:.0f} tok/s")
    return report


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def seconds_to_notice() -> float:
    """From the SIGKILL of one of two ranks, in the midst of short steps, to the other's end."""
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
    said = survivor.stderr.read()
    code = survivor.wait()
    seconds = time.monotonic() - begun
    killed.wait()
    killed.stderr.close()
    if code != 1 or "error: rank 0: " not in said:
        sys.exit(f"bench-distributed: the surviving rank ended with {code} and said:\n{said[-2000:]}")
    say(f"  a rank's death was noticed after {seconds:.3f} s")
    return seconds


def verdict(met: bool) -> str:
    return "met" if met else "**not met**"


def text(one: list, two: list, after: list, noticed: list) -> str:
    def rate(reports: list) -> str:
        rates = [report["tokens_per_s"] for report in reports]
        return f"{statistics.median(rates):.0f} ({min(rates):.0f} to {max(rates):.0f})"

    speedup = statistics.median(b["tokens_per_s"] / a["tokens_per_s"] for a, b in zip(one, two))
    overlapped = statistics.median(b["tokens_per_s"] / a["tokens_per_s"] for a, b in zip(after, two))
    parts = [report["communication"] for report in two]
    mean = lambda key: statistics.mean(part[key] for part in parts)
    buckets = parts[0]["bucket_bytes"]
    return f"""{datetime.date.today()}, {machine(os.cpu_count() or 1)}, `scripts/bench-distributed.sh`; Gloo over loopback.

micro, {one[0]["precision"]}, 8,192 tokens a step by 4 sequences a pass, each rank with one thread; medians over {len(one)} turns, with
their range. The two ranks share memory bandwidth and clock with one another.

| | tokens/s | |
|---|---|---|
| one rank | {rate(one)} | |
| two ranks, reduced during the backward pass | {rate(two)} | {speedup:.2f} of one; at least {LEAST_SPEEDUP}: {verdict(speedup >= LEAST_SPEEDUP)} |
| two ranks, reduced after it | {rate(after)} | overlapped is {overlapped:.3f} of it; at least 1 within the noise: {verdict(overlapped >= 0.99)} |

A step's gradients are {sum(buckets) / 1e6:.0f} MB in {len(buckets)} buckets, the largest {max(buckets) / 1e6:.0f} MB. Reducing them took {mean("communication_seconds"):.2f} s from the
first bucket's start to the last one's end, {mean("overlap_seconds"):.2f} s of it while the backward pass of {mean("backward_seconds"):.2f} s went on (means of
the steps that libtorch times). On two busy cores little of that is hidden: whoever reduces takes the time from who computes.

A rank that is killed (SIGKILL) was noticed by the other, which said so and had ended, after {", ".join(f"{s * 1000:.0f}" for s in noticed)} ms;
at most {MOST_SECONDS_TO_NOTICE:.0f} s: {verdict(max(noticed) <= MOST_SECONDS_TO_NOTICE)}."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-distributed", add_help=False)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    if os.getloadavg()[0] > 0.5:
        say(f"bench-distributed: warning: the load average is {os.getloadavg()[0]:.1f}: something else runs here")
    rounds, steps = (1, 1) if given.quick else (given.rounds, 4)
    one, two, after = [], [], []
    for turn in range(rounds):
        say(f"round {turn + 1} of {rounds}")
        one.append(bench(1, steps))
        two.append(bench(2, steps))
        after.append(bench(2, steps, "--set", "distributed.overlap=false"))
    noticed = [seconds_to_notice() for _ in range(1 if given.quick else 3)]
    section = text(one, two, after, noticed)
    if given.quick:
        print(section)
    else:
        write_section("docs/scaling.md", "measured", "scripts/bench-distributed.sh", section)


main()
