"""SIGKILL at random moments, and during phases that random moments rarely hit."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

from training import STEPS, Training, difference, kill, metrics, wait_for

VALIDATION_EVERY_STEPS = 9
# Four of ten at any moment, the others in phases that random moments rarely hit.
PHASES = ["anywhere", "save", "anywhere", "rename", "validation", "anywhere", "save", "start", "anywhere", "rename"]


def checkpoint_names(run: Path) -> list[str]:
    try:
        return sorted(os.listdir(run / "checkpoints"))
    except FileNotFoundError:
        return []


def has_partial(run: Path) -> bool:
    return any(name.startswith(".step-") for name in checkpoint_names(run))


def complete_names(run: Path) -> set[str]:
    return {name for name in checkpoint_names(run) if name.startswith("step-")}


def is_validating(run: Path) -> bool:
    """Whether the line of a step is written and the line of its validation is not."""
    lines = metrics(run)
    return bool(lines) and "loss" in lines[-1] and lines[-1]["step"] % VALIDATION_EVERY_STEPS == 0


def phase_at_kill(run: Path, lines_before: int, killed_at: float) -> str:
    """Returns the phase in which a process was killed, judged by the files that it left."""
    found = checkpoint_names(run)
    renamed = [(run / "checkpoints" / name).stat().st_ctime for name in found if name.startswith("step-")]
    if any(name.endswith(".replaced") for name in found) or any(abs(killed_at - at) < 0.02 for at in renamed):
        return "rename or cleanup"
    if len(metrics(run)) <= lines_before and not any(name.startswith(".step-") for name in found):
        return "start"
    inside = "validation" if is_validating(run) else "step"
    return f"{inside}, during a save" if any(name.startswith(".step-") for name in found) else inside


def wait_for_phase(phase: str, run: Path, rng: random.Random, process, seconds: float) -> None:
    """Waits until the training is approximately in this phase, or has ended."""
    ended = lambda: process.poll() is not None
    before = complete_names(run)
    if phase == "anywhere":
        time.sleep(rng.uniform(0.0, 1.2 * seconds))
    elif phase == "start":
        time.sleep(rng.uniform(0.0, 0.4 * seconds))
    elif phase == "save":
        wait_for(lambda: has_partial(run) or ended(), pause=0.0005)
        time.sleep(rng.uniform(0.0, 0.15))
    elif phase == "rename":
        wait_for(lambda: complete_names(run) - before or ended(), pause=0.0002)
        time.sleep(rng.uniform(0.0, 0.004))
    else:
        lines = len(metrics(run))
        wait_for(lambda: (len(metrics(run)) > lines and is_validating(run)) or ended(), pause=0.001)
        time.sleep(rng.uniform(0.0, 0.03))


def kills(training: Training, expected, count: int, rng: random.Random, seconds: float, log) -> tuple[Counter, list]:
    """Returns the number of kills by phase, and what was lost. A finished run is compared with the
    undisturbed run, and then a new run is started."""
    phases, lost, of_this_run, done, number = Counter(), [], 0, 0, 0
    run = training.work / "killed-0"
    while done < count or of_this_run:
        last = done >= count
        lines = len(metrics(run))
        phase = PHASES[done % len(PHASES)]
        if not last:
            process = training.start(run)
            wait_for_phase(phase, run, rng, process, seconds)
            killed_at = time.time()
            kill(process)
            code, output = process.wait(), training.log()
        else:
            code, output = training.run(run)
        if code == -signal.SIGKILL and not last:
            done, of_this_run = done + 1, of_this_run + 1
            where = phase_at_kill(run, lines, killed_at)
            phases[where] += 1
            step = max((line["step"] for line in metrics(run)), default=0)
            log(f"kill {done}/{count}: {where}, at step {step} of {STEPS}")
            continue
        wrong = f"exit code {code}: {output.strip()[-300:]}" if code != 0 else difference(run, expected)
        if wrong:
            lost.append(f"after {of_this_run} kills: {wrong}")
            log(f"LOST: {lost[-1]}")
        else:
            shutil.rmtree(run)
        number, of_this_run = number + 1, 0
        run = training.work / f"killed-{number}"
    return phases, lost
