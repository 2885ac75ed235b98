"""SIGKILL at random moments: wherever the training is, and on purpose where it is rarely."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

from training import STEPS, Training, difference, kill, metrics, wait_for

VALIDATION_EVERY = 9
# Four of ten wherever it is, and the rest where a random moment seldom falls.
PLACES = ["anywhere", "save", "anywhere", "rename", "validation", "anywhere", "save", "start", "anywhere", "rename"]


def names(run: Path) -> list[str]:
    try:
        return sorted(os.listdir(run / "checkpoints"))
    except FileNotFoundError:
        return []


def partial(run: Path) -> bool:
    return any(name.startswith(".step-") for name in names(run))


def complete(run: Path) -> set[str]:
    return {name for name in names(run) if name.startswith("step-")}


def is_validating(run: Path) -> bool:
    """A step's line is there and its validation's is not."""
    lines = metrics(run)
    return bool(lines) and "loss" in lines[-1] and lines[-1]["step"] % VALIDATION_EVERY == 0


def phase(run: Path, lines_before: int, killed_at: float) -> str:
    """Where a process was, by what it left."""
    found = names(run)
    renamed = [(run / "checkpoints" / name).stat().st_ctime for name in found if name.startswith("step-")]
    if any(name.endswith(".replaced") for name in found) or any(abs(killed_at - at) < 0.02 for at in renamed):
        return "rename or clean-up"
    if len(metrics(run)) <= lines_before and not any(name.startswith(".step-") for name in found):
        return "start"
    inside = "validation" if is_validating(run) else "step"
    return f"{inside}, beside a save" if any(name.startswith(".step-") for name in found) else inside


def wait_for_place(place: str, run: Path, draw: random.Random, process, seconds: float) -> None:
    """Until the training is about there, or has ended."""
    ended = lambda: process.poll() is not None
    before = complete(run)
    if place == "anywhere":
        time.sleep(draw.uniform(0.0, 1.2 * seconds))
    elif place == "start":
        time.sleep(draw.uniform(0.0, 0.4 * seconds))
    elif place == "save":
        wait_for(lambda: partial(run) or ended(), pause=0.0005)
        time.sleep(draw.uniform(0.0, 0.15))
    elif place == "rename":
        wait_for(lambda: complete(run) - before or ended(), pause=0.0002)
        time.sleep(draw.uniform(0.0, 0.004))
    else:
        lines = len(metrics(run))
        wait_for(lambda: (len(metrics(run)) > lines and is_validating(run)) or ended(), pause=0.001)
        time.sleep(draw.uniform(0.0, 0.03))


def kills(training: Training, expected, count: int, draw: random.Random, seconds: float, say) -> tuple[Counter, list]:
    """Kills by phase, and what was lost. A run that has come to its end is held against the
    undisturbed one and begun anew."""
    phases, lost, of_this_run, done, number = Counter(), [], 0, 0, 0
    run = training.work / "killed-0"
    while done < count or of_this_run:
        last = done >= count
        lines = len(metrics(run))
        place = PLACES[done % len(PLACES)]
        if not last:
            process = training.start(run)
            wait_for_place(place, run, draw, process, seconds)
            killed_at = time.time()
            kill(process)
            code, said = process.wait(), training.said()
        else:
            code, said = training.run(run)
        if code == -signal.SIGKILL and not last:
            done, of_this_run = done + 1, of_this_run + 1
            where = phase(run, lines, killed_at)
            phases[where] += 1
            step = max((line["step"] for line in metrics(run)), default=0)
            say(f"kill {done}/{count}: {where}, at step {step} of {STEPS}")
            continue
        wrong = f"exit code {code}: {said.strip()[-300:]}" if code != 0 else difference(run, expected)
        if wrong:
            lost.append(f"after {of_this_run} kills: {wrong}")
            say(f"LOST: {lost[-1]}")
        else:
            shutil.rmtree(run)
        number, of_this_run = number + 1, 0
        run = training.work / f"killed-{number}"
    return phases, lost
