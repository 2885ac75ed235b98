"""Runs the checks and measurements of this directory on a GPU. scripts/gpu/run.sh calls it and
describes its options.

Each step has its own process group and time limit, so a step that fails or hangs does not affect the
others. Steps that do not fit into the budget are skipped; the most important ones run first. The
results are written after each step.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import summaries
from arguments import positive_int
from steps import ROOT, Options, Step, StepList

PACK = ROOT / ".gpu"
# Seconds: the least time for a step, and the time that stays reserved for the table.
MIN_STEP_SECONDS, END_SECONDS = 15, 5
# Characters of the output of a step, and of all steps, that logs.txt keeps.
STEP_LOG_CHARACTERS, LOG_CHARACTERS = 60_000, 12_000_000
# Keys of `nvidia_smi` in results.json, and what nvidia-smi calls them.
GPU_QUERIES = {
    "memory_mib": "memory.used",
    "watts": "power.draw",
    "mhz": "clocks.sm",
    "utilization": "utilization.gpu",
    "celsius": "temperature.gpu",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Runs checks and measurements on a GPU.")
    parser.add_argument("--budget", type=positive_int, default=480, help="seconds for all steps [default: 480]")
    parser.add_argument("--only", default="", metavar="NAME,...", help="run only these steps")
    parser.add_argument("--list", action="store_true", help="print the steps and their time limits")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: a rehearsal")
    parser.add_argument("--binary", type=Path, help="the program [default: .gpu/backpack, else target/release/backpack]")
    parser.add_argument(
        "--libtorch",
        type=Path,
        help="directory of the libtorch for the program [default: torch of this Python for "
        ".gpu/backpack; for another program the libtorch that it was linked with]",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(os.environ.get("OUT") or ROOT / "runs/gpu"),
        help="directory for the results [default: $OUT, or runs/gpu]",
    )
    return parser.parse_args()


def python_torch() -> tuple:
    """Returns the version of this Python's torch and the directory of its libraries, if it also has
    the other packages that the scripts import."""
    code = "import torch, numpy, safetensors; print(torch.__version__, torch.__path__[0], sep='\\n')"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    if found.returncode != 0:
        return None, None
    version, directory = found.stdout.splitlines()
    return version, Path(directory) / "lib"


def library_directory(libtorch: Path) -> Path:
    for directory in (libtorch, libtorch / "lib", libtorch / "torch/lib"):
        if (directory / "libtorch_cpu.so").exists():
            return directory.resolve()
    sys.exit(f"run: {libtorch} contains no libtorch_cpu.so: name the directory of a libtorch (--libtorch).")


def options_of(a: argparse.Namespace) -> Options:
    version, libraries = python_torch()
    packed, built = PACK / "backpack", ROOT / "target/release/backpack"
    binary = (a.binary or (packed if packed.is_file() else built)).resolve()
    if not binary.is_file():
        sys.exit(f"run: {binary} does not exist: run cargo build --release or scripts/gpu/pack.sh, or use --binary.")
    is_packed = binary == packed.resolve()
    if a.libtorch:
        libraries = library_directory(a.libtorch)
    elif not is_packed:
        libraries = None
    built_for = PACK / "built-for"
    if is_packed and built_for.is_file():
        print(f".gpu/backpack is built for {built_for.read_text().strip()}", flush=True)
    program = libraries or "its own"
    print(f"torch of this Python: {version or 'none'}; libtorch of the program: {program}", flush=True)
    work = ROOT / "runs/gpu-work"
    return Options(binary, a.device, PACK, work, libraries, version is not None)


def kill_group(process: subprocess.Popen) -> None:
    """Kills the process group that `process` leads."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class GpuMonitor(threading.Thread):
    """Polls nvidia-smi and keeps the largest values since the last call of `reset`."""

    def __init__(self):
        super().__init__(daemon=True)
        self.largest, self.process = {}, None

    def run(self):
        query = f"--query-gpu={','.join(GPU_QUERIES.values())}"
        command = ["nvidia-smi", query, "--format=csv,noheader,nounits", "-lms", "400"]
        try:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        except OSError:
            return  # no nvidia-smi on this machine
        for line in self.process.stdout:
            for key, value in zip(GPU_QUERIES, line.split(",")):
                try:
                    self.largest[key] = max(self.largest.get(key, 0), float(value))
                except ValueError:
                    pass  # a value that this GPU does not report

    def reset(self):
        self.largest = {}

    def stop(self):
        if self.process:
            self.process.terminate()


class BackgroundCommands(threading.Thread):
    """Runs commands one after another until `stop`."""

    def __init__(self, commands: list, environment: dict, log: Path):
        super().__init__(daemon=True)
        self.commands, self.environment, self.log = list(commands), environment, log
        self.process = None

    def run(self):
        with self.log.open("w") as log:
            while self.commands:
                command = [str(word) for word in self.commands.pop(0)]
                self.process = subprocess.Popen(
                    command, stdout=log, stderr=log, env=self.environment, start_new_session=True
                )
                self.process.wait()

    def finish(self, seconds: float):
        """Waits for the commands, and ends them after the given time."""
        self.join(max(seconds, 0))
        if self.is_alive():
            self.stop()

    def stop(self):
        self.commands = []
        for _ in range(50):  # the thread may start one more command
            if not self.is_alive():
                break
            if self.process and self.process.poll() is None:
                kill_group(self.process)
            self.join(0.2)


def run_command(words: list, limit: float, environment: dict) -> tuple:
    """Returns the exit code, standard output and standard error. The exit code is None if the command
    was ended after `limit` seconds."""
    try:
        process = subprocess.Popen(
            [str(word) for word in words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,
            cwd=ROOT,
        )
    except OSError as error:
        return 127, "", str(error)
    try:
        out, log = process.communicate(timeout=limit)
        return process.returncode, out, log
    except subprocess.TimeoutExpired:
        kill_group(process)
        out, log = process.communicate()
        return None, out, log
    except BaseException:  # for example KeyboardInterrupt, which the process does not receive
        kill_group(process)
        process.wait()
        raise


def last_json(text: str) -> dict:
    """Returns the last line that is a JSON object, or an empty object."""
    for line in reversed(text.strip().splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return {}


class Runner:
    def __init__(self, a: argparse.Namespace, options: Options):
        self.budget, self.output, self.options = a.budget, a.output, options
        for directory in (self.output, options.work):
            directory.mkdir(parents=True, exist_ok=True)
        self.begin = time.monotonic()
        self.results, self.logs = [], []
        self.monitor = GpuMonitor()
        self.environment = dict(
            os.environ,
            PYTHONUNBUFFERED="1",
            PYTHONDONTWRITEBYTECODE="1",
            TORCHINDUCTOR_CACHE_DIR=str(options.work / "inductor"),
            TORCHINDUCTOR_FX_GRAPH_CACHE="1",
            TRITON_CACHE_DIR=str(options.work / "triton"),
        )

    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def seconds_left(self) -> float:
        return self.budget - self.seconds()

    def run_all(self, steps: list, compile_commands: list) -> bool:
        """Runs the steps and writes the results. Returns false if a step failed."""
        log = self.options.work / "background.log"
        background = BackgroundCommands(compile_commands, self.environment, log)
        try:
            self.monitor.start()
            background.start()
            for step in steps:
                if step.is_timed:
                    background.finish(min(90, self.seconds_left() - 120))
                if step.skip:
                    self.add(step, {"summary": step.skip})
                elif self.seconds_left() < MIN_STEP_SECONDS:
                    self.add(step, {"summary": "the budget is used up"})
                else:
                    self.add(step, self.run(step))
        finally:
            background.stop()
            self.monitor.stop()
        table = summaries.table(self.results, self.seconds())
        (self.output / "table.txt").write_text(table)
        (self.output / "logs.txt").write_text("\n".join(self.logs)[-LOG_CHARACTERS:])
        profile = self.options.work / "run/profile.json"
        if profile.is_file():
            shutil.copy(profile, self.output / "profile.json")
        print(table)
        return all(result["ok"] is not False for result in self.results)

    def run(self, step: Step) -> dict:
        if step.fresh:
            shutil.rmtree(step.fresh, ignore_errors=True)
        self.monitor.reset()
        begin = time.monotonic()
        limit = min(step.limit, max(self.seconds_left() - END_SECONDS, END_SECONDS))
        code, out, log = run_command(step.command, limit, {**self.environment, **step.environment})
        if code == 0 and step.report:
            code, out, report_log = run_command(step.report, 60, self.environment)
            log += report_log
        seconds = round(time.monotonic() - begin, 1)
        words = " ".join(map(str, step.command))
        out_end, log_end = out[-STEP_LOG_CHARACTERS:], log[-STEP_LOG_CHARACTERS:]
        self.logs.append(f"===== {step.name}: {seconds} s, exit code {code}\n{words}\n{out_end}\n{log_end}")
        result = last_json(out)
        return {
            "ok": code == 0 and bool(result.get("ok", True)),
            "seconds": seconds,
            "exit_code": code,
            "summary": self.summary(step, code, limit, result, out, log),
            "nvidia_smi": self.monitor.largest,
            "result": result,
        }

    @staticmethod
    def summary(step: Step, code, limit: float, result: dict, out: str, log: str) -> str:
        if code is None:
            return f"ended after {limit:.0f} s"
        if code != 0 and not result:
            return f"exit code {code}: {summaries.of_last_line({}, log)}"
        try:
            return step.summarize(result, out + log)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            return f"unexpected result: {error!r}"

    def add(self, step: Step, result: dict) -> None:
        defaults = {"ok": None, "seconds": 0.0, "nvidia_smi": {}, "result": {}}
        self.results.append({"step": step.name, **defaults, **result})
        print(summaries.line(self.results[-1]), flush=True)
        (self.output / "results.json").write_text(json.dumps(self.results, indent=1))


def main() -> None:
    a = parse_arguments()
    options = options_of(a)
    step_list = StepList(options)
    steps = step_list.all()
    if a.list:
        print("\n".join(f"{step.name:<27} {step.limit:4} s" for step in steps))
        return
    only = [name.strip() for name in a.only.split(",") if name.strip()]
    unknown = set(only) - {step.name for step in steps}
    if unknown:
        sys.exit(f"run: unknown step '{min(unknown)}' (see --list).")
    if only:
        steps = [step for step in steps if step.name in only]
    needs_compiler = any(step.is_compiled for step in steps)
    commands = step_list.compile_commands() if needs_compiler else []
    try:
        passed = Runner(a, options).run_all(steps, commands)
    except KeyboardInterrupt:
        sys.exit("run: interrupted.")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
