"""Runs the fault-injection test of training; scripts/torture.sh --help describes it."""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import faults
from faults import Skipped
from kills import kills
from training import Training, metrics, result


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    count = options.kills if options.kills is not None else 10 if options.quick else 50
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    rng = random.Random(seed)
    log = lambda text: print(text, flush=True)
    log(f"torture: seed {seed}")

    work = Path(tempfile.mkdtemp(prefix="torture-"))
    training = Training(os.environ["BACKPACK_BINARY"], work)
    rows: list[tuple[str, str, str, str]] = []
    lost: list[str] = []
    begun = time.monotonic()
    try:
        training.prepare()
        code, output = training.run(work / "whole")
        seconds = time.monotonic() - begun
        if code != 0:
            log(f"torture: the undisturbed run failed: {output.strip()[-500:]}")
            return 1
        expected = result(work / "whole")
        skipped = metrics(work / "whole")[-1].get("skipped", 0) or expected[0][-2].get("skipped", 0)
        log(f"undisturbed: {seconds:.1f} s, {len(expected[0])} lines of metrics, {skipped} steps skipped as loss spikes")

        phases, wrong = kills(training, expected, count, rng, seconds, log)
        lost += wrong
        for name, number in sorted(phases.items()):
            rows.append((f"SIGKILL during: {name}", str(number), "", ""))
        # If a run is lost, the kill that caused it is unknown.
        rows.append(("SIGKILL, all", str(count), str(count if not wrong else "?"), str(len(wrong))))

        def tried(name: str, tests: list) -> None:
            survived, failures = 0, []
            for test in tests:
                try:
                    problem = test()
                except Skipped as reason:
                    rows.append((name, "0", "-", f"skipped: {reason}"))
                    log(f"{name}: skipped: {reason}")
                    return
                except Exception as error:  # noqa: BLE001: the table must be printed in any case
                    problem = f"the test itself failed: {error!r}"
                survived += problem is None
                failures += [problem] if problem else []
            for failure in failures:
                log(f"LOST: {name}: {failure}")
            lost.extend(failures)
            rows.append((name, str(len(tests)), str(survived), str(len(failures))))
            log(f"{name}: {survived} of {len(tests)}")

        tried("disk full at a save", [lambda: faults.full_disk(training, expected)])
        tried("disk full for a while", [lambda: faults.disk_full_for_a_while(training, expected)])
        tried("file-size limit at a save", [lambda: faults.file_size_limit(training, expected)])
        tried("read-only run directory", [lambda: faults.read_only_directory(training, expected)])
        damaged = list(faults.damages(rng, options.quick))
        tried(
            "damaged checkpoint (bit, missing, truncated, empty)",
            [lambda n=name, d=damage: faults.damaged_checkpoint(training, expected, d, n) for name, damage in damaged],
        )
        tried("clock that jumps", [lambda: faults.jumping_clock(training, expected)])
        tried("two trainers in one run directory", [lambda: faults.two_trainers(training, expected)])
        tried("suspended longer than the watchdog", [lambda: faults.suspended(training, expected)])
    finally:
        if options.keep:
            log(f"torture: the run directories are in {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)

    log("")
    log(f"{'fault':<48} {'tried':>6} {'survived':>9} {'lost':>6}")
    for name, number, survived, wrong in rows:
        log(f"{name:<48} {number:>6} {survived:>9} {wrong:>6}")
    log(f"{time.monotonic() - begun:.0f} s; use --seed {seed} to repeat the random moments")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
