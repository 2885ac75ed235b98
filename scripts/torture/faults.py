"""One fault each. A test gives None when it was survived, or what was lost; Skipped where it
cannot be tried here."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

from training import STEPS, Training, difference, kill, metrics, wait_for


class Skipped(Exception):
    """Why a fault cannot be tried here."""


def command(*arguments: str) -> bool:
    try:
        return subprocess.run(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


class Mounted:
    """A file system of so many MB at a folder."""

    def __init__(self, folder: Path, megabytes: int):
        self.folder = folder
        folder.mkdir()
        if os.getuid() != 0 or not command("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "torture", str(folder)):
            raise Skipped("no tmpfs can be mounted: it needs root")

    def grow(self, megabytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={megabytes}m", str(self.folder)], check=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A process that just ended may hold it for a moment.
        wait_for(lambda: command("umount", str(self.folder)), 10, 0.1)


def ends_well(training: Training, run: Path, expected, *more: str, **how) -> str | None:
    code, said = training.run(run, *more, **how)
    return f"exit code {code}: {said.strip()[-300:]}" if code != 0 else difference(run, expected)


def refused(said: str, code: int, *words: str) -> str | None:
    """Whether it ended with one sentence that holds these words."""
    last = said.strip().splitlines()[-1] if said.strip() else ""
    if code != 1 or not last.startswith("error: "):
        return f"exit code {code}, and no sentence: {last[-300:]}"
    missing = [word for word in words if word not in last]
    return f"the sentence lacks {missing}: {last}" if missing else None


def checkpoint_bytes(training: Training) -> int:
    last = training.work / "whole" / "checkpoints" / f"step-{STEPS:08}"
    return sum(file.stat().st_size for file in last.iterdir())


def full_disk(training: Training, expected) -> str | None:
    """Room for one checkpoint and a half: the second fails, with a warning, and so on to the last,
    which is an error; with room again the run goes on."""
    size = checkpoint_bytes(training) / 1e6
    with Mounted(training.work / "full", int(1.5 * size)) as disk:
        run = disk.folder / "run"
        code, said = training.run(run)
        wrong = refused(said, code, "No space left", f"step-{STEPS:08}", "those from before are untouched")
        if wrong:
            return wrong
        if "warning     the checkpoint" not in said or "the run goes on" not in said:
            return f"no warning of a checkpoint that was not written: {said[-300:]}"
        disk.grow(int(6 * size))
        return ends_well(training, run, expected)


def disk_full_for_a_while(training: Training, expected) -> str | None:
    """Another program fills the disk in the middle of the run and lets go of it: nobody has to
    do anything, and no line of the metrics is missing."""
    size = checkpoint_bytes(training) / 1e6
    with Mounted(training.work / "filled", int(6 * size)) as disk:
        run, filler = disk.folder / "run", disk.folder / "filler"
        process = training.start(run)
        if not wait_for(lambda: len(metrics(run)) > 10):
            kill(process)
            return "it did not start"
        try:
            with open(filler, "wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        except OSError:
            pass
        wait_for(lambda: "the run goes on" in training.said() or process.poll() is not None)
        filler.unlink()
        code = process.wait()
        said = training.said()
        if code != 0 or "the run goes on" not in said:
            return f"exit code {code}: {said.strip()[-300:]}"
        return difference(run, expected)


def file_size_limit(training: Training, expected) -> str | None:
    """A quota, as far as a process can set itself one (ulimit -f): no checkpoint fits, and the run
    says so; without it the run goes on from the one before."""
    import resource

    run = training.work / "quota"
    code, said = training.run(run, "--stop-after", "10")
    if code != 85:
        return f"exit code {code}: {said[-300:]}"
    limit = 10_000_000
    code, said = training.run(
        run, "--stop-after", "20", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    return refused(said, code, "cannot be written", "File too large") or ends_well(training, run, expected)


def read_only_folder(training: Training, expected) -> str | None:
    run = training.work / "read-only"
    code, said = training.run(run, "--stop-after", "10")
    if code != 85:
        return f"exit code {code}: {said[-300:]}"
    if os.getuid() == 0:
        # Root writes where modes forbid it, but not to a read-only mount.
        if not command("mount", "--bind", str(run), str(run)):
            raise Skipped("root ignores modes, and nothing can be mounted here")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True)
            code, said = training.run(run)
        finally:
            subprocess.run(["umount", str(run)], check=True)
    else:
        for folder in [run, run / "checkpoints"]:
            folder.chmod(0o555)
        code, said = training.run(run)
        for folder in [run, run / "checkpoints"]:
            folder.chmod(0o755)
    return refused(said, code, str(run)) or ends_well(training, run, expected)


def flip(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def damages(draw: random.Random, quick: bool):
    """Ways to damage a checkpoint: a name, and what does it to a folder."""
    files = ["model.safetensors", "optimizer.safetensors", "state.json", "config.json"]
    if quick:
        name = draw.choice(files)
        yield f"a flipped bit in {name}", lambda folder: flip(folder / name, draw)
        yield "an empty folder", empty
        return
    for name in files:
        yield f"a flipped bit in {name}", lambda folder, name=name: flip(folder / name, draw)
        yield f"{name} missing", lambda folder, name=name: (folder / name).unlink()
        yield f"{name} cut short", lambda folder, name=name: os.truncate(
            folder / name, draw.randrange((folder / name).stat().st_size)
        )
    yield "an empty folder", empty


def damaged_checkpoint(training: Training, expected, damage, name: str) -> str | None:
    """The newest of two is damaged: it is passed over by name, and the run ends as it should."""
    source, run = training.work / "stopped", training.work / "damaged"
    if not source.exists():
        code, said = training.run(source, "--stop-after", "40")
        if code != 85:
            return f"exit code {code}: {said[-300:]}"
    shutil.copytree(source, run)
    newest = run / "checkpoints" / "step-00000040"
    damage(newest)
    code, said = training.run(run)
    passed = [line for line in said.splitlines() if line.startswith("passed over") and str(newest) in line]
    if code != 0 or not passed:
        return f"{name}: exit code {code}, passed over: {passed}: {said.strip()[-300:]}"
    wrong = difference(run, expected)
    shutil.rmtree(run)
    return f"{name}: {wrong}" if wrong else None


# The real-time clock as the program sees it: off by up to two years either way, at every look.
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
    """The time of day jumps by up to two years at every look at it; files of the folder are from
    1971 and 2099 when the run is resumed. Durations are of the monotonic clock, which does not jump."""
    compiler = next((name for name in ["cc", "gcc", "clang"] if shutil.which(name)), None)
    if compiler is None:
        raise Skipped("no C compiler makes the library that lies about the time")
    source, library = training.work / "clock.c", training.work / "clock.so"
    source.write_text(CLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    lies = {**os.environ, "LD_PRELOAD": str(library)}
    told = subprocess.run(["date", "+%s"], env=lies, stdout=subprocess.PIPE, text=True, check=True).stdout
    if abs(int(told) - time.time()) < 60:
        raise Skipped("the dynamic linker takes no library that lies about the time")
    run = training.work / "clock"
    code, said = training.run(run, "--stop-after", "30", "--set", "checkpoint.every_minutes=1", env=lies)
    if code != 85:
        return f"exit code {code}: {said.strip()[-300:]}"
    for number, path in enumerate(sorted(run.rglob("*"))):
        os.utime(path, ((31_536_000, 4_070_908_800)[number % 2],) * 2)
    return ends_well(training, run, expected, env=lies)


def two_trainers(training: Training, expected) -> str | None:
    run = training.work / "two"
    first = training.start(run)
    if not wait_for(lambda: metrics(run)):
        kill(first)
        return "the first did not start"
    code, said = training.run(run)
    wrong = refused(said, code, "is in use by another process")
    ended = first.wait()
    if ended != 0:
        return f"the first ended with {ended}"
    return wrong or difference(run, expected)


def suspended(training: Training, expected) -> str | None:
    """Longer than the watchdog's 6 s: time in which the process could not run does not count."""
    run = training.work / "suspended"
    process = training.start(run, "--set", "run.watchdog=6")
    if not wait_for(lambda: len(metrics(run)) > 5):
        kill(process)
        return "it did not start"
    kill(process, signal.SIGSTOP)
    time.sleep(9)
    kill(process, signal.SIGCONT)
    code = process.wait()
    said = training.said()
    return f"exit code {code}: {said.strip()[-300:]}" if code != 0 else difference(run, expected)
