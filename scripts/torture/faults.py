"""The faults, one function per fault. A function returns None if the run survived the fault, or a
description of what was lost. It raises Skipped if the fault cannot be tried on this machine."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from training import STEPS, Training, difference, kill, metrics, wait_for


class Skipped(Exception):
    """The reason why a fault cannot be tried on this machine."""


def succeeds(*arguments: str) -> bool:
    """Runs a command; returns whether it exists and succeeds."""
    try:
        return subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


class Tmpfs:
    """A file system of limited size, mounted on a new directory."""

    def __init__(self, directory: Path, megabytes: int):
        self.directory = directory
        directory.mkdir()
        if os.getuid() != 0 or not succeeds("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "torture", str(directory)):
            raise Skipped("cannot mount a tmpfs: it needs root")

    def grow(self, megabytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(self.directory)], check=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # The kernel may keep it busy for a moment after a process has exited.
        wait_for(lambda: succeeds("umount", str(self.directory)), 10, 0.1)


def finishes(training: Training, run: Path, expected, *more: str, **how) -> str | None:
    """Runs the training to its end; returns what differs from the undisturbed run."""
    code, output = training.run(run, *more, **how)
    return f"exit code {code}: {output.strip()[-300:]}" if code != 0 else difference(run, expected)


def failed_with(output: str, code: int, *words: str) -> str | None:
    """Returns None if a process failed with an error message that contains these words."""
    last = output.strip().splitlines()[-1] if output.strip() else ""
    if code != 1 or not last.startswith("error: "):
        return f"exit code {code} without an error message: {last[-300:]}"
    missing = [word for word in words if word not in last]
    return f"the error message lacks {missing}: {last}" if missing else None


def has_save_warning(output: str) -> bool:
    """Returns whether a training logged a warning about a checkpoint that it could not write."""
    return re.search(r"^warning .*step-\d+", output, re.MULTILINE) is not None


def checkpoint_bytes(training: Training) -> int:
    last = training.work / "whole" / "checkpoints" / f"step-{STEPS:08}"
    return sum(file.stat().st_size for file in last.iterdir())


def full_disk(training: Training, expected) -> str | None:
    """The disk has space for one and a half checkpoints. Later saves fail with a warning, and the
    last one with an error. With more space, the run resumes."""
    size = checkpoint_bytes(training) / 1e6
    with Tmpfs(training.work / "full", int(1.5 * size)) as disk:
        run = disk.directory / "run"
        code, output = training.run(run)
        wrong = failed_with(output, code, "No space left", f"step-{STEPS:08}")
        if wrong:
            return wrong
        if not has_save_warning(output):
            return f"no warning about a checkpoint that was not written: {output[-300:]}"
        disk.grow(int(6 * size))
        return finishes(training, run, expected)


def disk_full_for_a_while(training: Training, expected) -> str | None:
    """Another program fills the disk during the run and later frees the space. The run continues
    without intervention, and no line of the metrics is missing."""
    size = checkpoint_bytes(training) / 1e6
    with Tmpfs(training.work / "filled", int(6 * size)) as disk:
        run, filler = disk.directory / "run", disk.directory / "filler"
        process = training.start(run)
        if not wait_for(lambda: len(metrics(run)) > 10):
            kill(process)
            return "the training did not start"
        try:
            with open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        except OSError:
            pass
        wait_for(lambda: has_save_warning(training.log()) or process.poll() is not None)
        filler.unlink()
        code = process.wait()
        output = training.log()
        if code != 0 or not has_save_warning(output):
            return f"exit code {code}: {output.strip()[-300:]}"
        return difference(run, expected)


def file_size_limit(training: Training, expected) -> str | None:
    """A file-size limit (ulimit -f) in place of a disk quota. No checkpoint fits, and the run fails
    with an error. Without the limit, the run resumes from the checkpoint before."""
    import resource

    run = training.work / "quota"
    code, output = training.run(run, "--stop-after", "10")
    if code != 85:
        return f"exit code {code}: {output[-300:]}"
    limit = 10_000_000
    code, output = training.run(
        run, "--stop-after", "20", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    return failed_with(output, code, "step-00000020", "File too large") or finishes(training, run, expected)


def read_only_directory(training: Training, expected) -> str | None:
    """The run directory is read-only when the run is resumed."""
    run = training.work / "read-only"
    code, output = training.run(run, "--stop-after", "10")
    if code != 85:
        return f"exit code {code}: {output[-300:]}"
    if os.getuid() == 0:
        # File modes do not restrict root, but a read-only mount does.
        if not succeeds("mount", "--bind", str(run), str(run)):
            raise Skipped("file modes do not restrict root, and nothing can be mounted here")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True)
            code, output = training.run(run)
        finally:
            subprocess.run(["umount", str(run)], check=True)
    else:
        for directory in [run, run / "checkpoints"]:
            directory.chmod(0o555)
        code, output = training.run(run)
        for directory in [run, run / "checkpoints"]:
            directory.chmod(0o755)
    return failed_with(output, code, str(run)) or finishes(training, run, expected)


def flip_bit(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def delete_files(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def damages(rng: random.Random, quick: bool):
    """Yields ways to damage a checkpoint: a name, and a function of its directory."""
    files = ["model.safetensors", "optimizer.safetensors", "state.json", "config.json"]
    if quick:
        name = rng.choice(files)
        yield f"a flipped bit in {name}", lambda directory: flip_bit(directory / name, rng)
        yield "an empty directory", delete_files
        return
    for name in files:
        yield f"a flipped bit in {name}", lambda directory, name=name: flip_bit(directory / name, rng)
        yield f"{name} missing", lambda directory, name=name: (directory / name).unlink()
        yield f"{name} truncated", lambda directory, name=name: os.truncate(
            directory / name, rng.randrange((directory / name).stat().st_size)
        )
    yield "an empty directory", delete_files


def damaged_checkpoint(training: Training, expected, damage, name: str) -> str | None:
    """The newer of two checkpoints is damaged. The run skips it with a message that names it,
    resumes from the older one, and has the expected result."""
    source, run = training.work / "stopped", training.work / "damaged"
    if not source.exists():
        code, output = training.run(source, "--stop-after", "40")
        if code != 85:
            return f"exit code {code}: {output[-300:]}"
    shutil.copytree(source, run)
    newest = run / "checkpoints" / "step-00000040"
    damage(newest)
    code, output = training.run(run)
    skipped = f"{newest}: " in output
    if code != 0 or not skipped:
        return f"{name}: exit code {code}, skipped: {skipped}: {output.strip()[-300:]}"
    wrong = difference(run, expected)
    shutil.rmtree(run)
    return f"{name}: {wrong}" if wrong else None


# A library that replaces the real-time clock: each call returns a time up to two years before or
# after the real time.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long jump(void) {
  static _Atomic unsigned long state = 88172645463325252ul;
  unsigned long x = state;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;
  state = x;
  return (long)(x % 126144000ul) - 63072000l;
}
int clock_gettime(clockid_t clock, struct timespec *time) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(clock, time);
  if (code == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += jump();
  return code;
}
int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  struct timespec now;
  int code = clock_gettime(CLOCK_REALTIME, &now);
  (void)zone;
  time->tv_sec = now.tv_sec, time->tv_usec = now.tv_nsec / 1000;
  return code;
}
time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
"""


def jumping_clock(training: Training, expected) -> str | None:
    """The real-time clock jumps by up to two years at every call. When the run is resumed, its
    files have modification times in 1971 and 2099. The program measures durations with the
    monotonic clock, which does not jump."""
    compiler = next((name for name in ["cc", "gcc", "clang"] if shutil.which(name)), None)
    if compiler is None:
        raise Skipped("there is no C compiler to build the library that replaces the clock")
    source, library = training.work / "clock.c", training.work / "clock.so"
    source.write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    env = {**os.environ, "LD_PRELOAD": str(library)}
    shown = subprocess.run(["date", "+%s"], env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    if abs(int(shown) - time.time()) < 60:
        raise Skipped("the dynamic linker does not load the library that replaces the clock")
    run = training.work / "clock"
    code, output = training.run(run, "--stop-after", "30", "--set", "checkpoint.every_minutes=1", env=env)
    if code != 85:
        return f"exit code {code}: {output.strip()[-300:]}"
    for number, path in enumerate(sorted(run.rglob("*"))):
        os.utime(path, ((31_536_000, 4_070_908_800)[number % 2],) * 2)
    return finishes(training, run, expected, env=env)


def two_trainers(training: Training, expected) -> str | None:
    """A second training in the same run directory is refused and does not disturb the first."""
    run = training.work / "two"
    first = training.start(run)
    if not wait_for(lambda: metrics(run)):
        kill(first)
        return "the first training did not start"
    code, output = training.run(run)
    wrong = failed_with(output, code, "another process")
    ended = first.wait()
    if ended != 0:
        return f"the first training exited with {ended}"
    return wrong or difference(run, expected)


def suspended(training: Training, expected) -> str | None:
    """The process is suspended for longer than the 6 s of the watchdog, which does not count that
    time."""
    run = training.work / "suspended"
    process = training.start(run, "--set", "run.watchdog_seconds=6")
    if not wait_for(lambda: len(metrics(run)) > 5):
        kill(process)
        return "the training did not start"
    kill(process, signal.SIGSTOP)
    time.sleep(9)
    kill(process, signal.SIGCONT)
    code = process.wait()
    output = training.log()
    return f"exit code {code}: {output.strip()[-300:]}" if code != 0 else difference(run, expected)
