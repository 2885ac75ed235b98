"""The steps of run.py: commands, time limits and summaries, the most important first."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import summaries

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent.parent
# A CPU computes the small sizes of a rehearsal, but PyTorch alone takes seconds to start.
CPU_LIMIT_FACTOR = 5

# Sizes of a rehearsal on a CPU.
QUICK_MODEL = {
    "model.n_embd": 64,
    "model.n_head": 2,
    "model.n_layer": 2,
    "model.num_senses": 4,
    "data.sequence_length": 64,
}
QUICK_TORCH = ["--model", "tiny", "--micro-batch", 4, "--length", 64, "--steps", 3, "--warmup", 1]
# Arguments of torch_bench.py: small, micro and nanoGPT's GPT-2.
SMALL = ["--model", "small", "--micro-batch", 64]
MICRO = ["--model", "micro", "--micro-batch", 64, "--accumulation", 2]
GPT2 = ["--model", "gpt2-124m", "--length", 1024, "--micro-batch", 32, "--dropout", 0]
COMPILE = ["--mode", "compile"]


@dataclass
class Step:
    name: str
    command: list
    limit: int  # seconds
    summarize: object  # a function of the JSON result and of the whole output
    environment: dict = field(default_factory=dict)
    # A command that reads the files of the step. Its JSON then is the result.
    report: list = field(default_factory=list)
    # True if no other process may run during the step, because it measures time.
    is_timed: bool = False
    # True if the step uses torch.compile, whose cache `compile_commands` fills.
    is_compiled: bool = False
    # A directory that is deleted before the step.
    fresh: Path | None = None
    # Why the step cannot run, if so.
    skip: str = ""


@dataclass
class Options:
    """What the steps run on."""

    binary: Path
    device: str
    pack: Path
    work: Path
    # Directory with libtorch_cpu.so for the program; None: the one that the program finds itself.
    libraries: Path | None
    has_torch: bool


class StepList:
    def __init__(self, options: Options):
        self.o = options
        self.is_cpu = options.device == "cpu"
        self.device = ["--device", options.device]
        self.tokens = options.pack / "tokens.bin"
        self.data = options.pack / "data"
        if not self.data.is_dir():
            self.data = options.work / "data"

    def all(self) -> list:
        steps = [
            self.program("doctor", 60, ["doctor"], summaries.of_doctor),
            *self.prepare_data(),
            self.bench("first steps", "micro", 60, 8, steps=2, warmup=1, profile=0, is_timed=False),
            self.check("forward", 60),
            self.check("reference", 45),
            self.check("training", 120, *(["--steps", 6] if self.is_cpu else [])),
            *self.tests(),
            self.bench("bench small 64", "small", 60, micro_batch=64),
            self.torch_bench("torch small 64", 60, *SMALL),
            self.torch_bench("compile small 64", 150, *SMALL, is_compiled=True),
            self.script("hardware", 60, "hardware.py", summaries.of_hardware),
            self.check("resume", 60),
            self.traced(self.bench("trace small 64", "small", 60, micro_batch=64, steps=6, profile=0)),
            self.bench("bench small 16", "small", 45, micro_batch=16, passes=4),
            self.bench("bench small 128", "small", 60, micro_batch=128, steps=5),
            self.bench("bench small 64 no dropout", "small", 45, 64, **{"model.dropout": 0}),
            self.bench("bench small 64 reference", "small", 45, 64, **{"run.kernels": "reference"}),
            self.bench("bench micro 64", "micro", 45, micro_batch=64, passes=2),
            self.torch_bench("torch micro 64", 45, *MICRO),
            self.torch_bench("compile micro 64", 90, *MICRO, is_compiled=True),
            self.script("parts", 75, "parts.py", summaries.of_parts),
            self.torch_bench("torch gpt2 32x1024", 45, *GPT2),
            self.torch_bench("compile gpt2 32x1024", 120, *GPT2, is_compiled=True),
            self.bench("bench gpt2 64", "gpt2-small", 45, micro_batch=64),
            self.traced(
                self.torch_bench("trace compile small 64", 120, *SMALL, "--steps", 5, is_compiled=True)
            ),
            self.bench("bench small 64 fp16", "small", 45, 64, steps=5, **{"run.precision": "fp16"}),
            self.bench("bench small 16 fp32", "small", 45, 16, steps=3, **{"run.precision": "fp32"}),
            self.profiled_training(),
        ]
        if self.is_cpu:
            for step in steps:
                step.limit *= CPU_LIMIT_FACTOR
        return steps

    def compile_commands(self) -> list:
        """Commands that fill the cache of torch.compile. They run while the checks run."""
        if self.is_cpu or not self.o.has_torch:
            return []
        command = [sys.executable, SCRIPTS / "torch_bench.py", *self.device, *COMPILE, "--steps", 0]
        return [[*command, *model] for model in (SMALL, MICRO, GPT2)]

    def program(self, name: str, limit: int, arguments: list, summarize, **fields) -> Step:
        """A step that runs the program itself."""
        environment = {"LD_LIBRARY_PATH": str(self.o.libraries)} if self.o.libraries else {}
        command = [self.o.binary, *arguments]
        return Step(name, command, limit, summarize, environment=environment, **fields)

    def script(self, name: str, limit: int, script: str, summarize, *arguments, **fields) -> Step:
        """A step that runs a Python script of this directory."""
        command = [sys.executable, SCRIPTS / script, *self.device, *arguments]
        step = Step(name, command, limit, summarize, **{"is_timed": True, **fields})
        if not self.o.has_torch:
            step.skip = "this Python has no torch, numpy and safetensors"
        return step

    def prepare_data(self) -> list:
        """The step that writes shards, unless .gpu/ has them."""
        if self.data.parent == self.o.pack:
            return []
        arguments = ["prepare-data", "--input", ROOT / "data/demo.jsonl", "--output", self.data]
        arguments += ["--val-fraction", 0.05]
        step = self.program("prepare data", 60, arguments, summaries.of_last_line, fresh=self.data)
        return [step]

    def bench(
        self,
        name: str,
        config: str,
        limit: int,
        micro_batch: int,
        passes: int = 1,
        steps: int = 8,
        warmup: int = 3,
        profile: int = 2,
        is_timed: bool = True,
        **keys,
    ) -> Step:
        """`backpack bench` with a configuration of configs/owt, with 512 tokens per sequence."""
        settings = {
            "run.device": self.o.device,
            "batch.micro_batch_size": micro_batch,
            "batch.tokens_per_step": micro_batch * passes * 512,
            **keys,
        }
        if self.is_cpu:
            settings |= QUICK_MODEL
            settings |= {"batch.micro_batch_size": 4, "batch.tokens_per_step": 256 * passes}
            steps, warmup = 3, 1
        arguments = ["bench", "--json", "--config", ROOT / f"configs/owt/{config}.toml"]
        arguments += ["--steps", steps, "--warmup", warmup, "--profile-steps", profile]
        if self.tokens.is_file():
            arguments += ["--tokens-file", self.tokens]
        for key, value in settings.items():
            arguments += ["--set", f"{key}={value}"]
        return self.program(name, limit, arguments, summaries.of_bench, is_timed=is_timed)

    def torch_bench(self, name: str, limit: int, *arguments, is_compiled: bool = False) -> Step:
        arguments = [*arguments, *(COMPILE if is_compiled else [])]
        if self.is_cpu:
            arguments += [*QUICK_TORCH, "--mode", "eager"]  # compilation for a CPU takes minutes
        elif self.tokens.is_file():
            arguments += ["--tokens-file", self.tokens]
        return self.script(
            name, limit, "torch_bench.py", summaries.of_bench, *arguments, is_compiled=is_compiled
        )

    def traced(self, step: Step) -> Step:
        """Records the kernels of a step, and reports them instead of its rate."""
        if self.is_cpu:
            return step  # a CPU has no CUDA kernels
        tracer = self.o.pack / "libkernel_trace.so"
        if not tracer.is_file():
            step.skip = f"{tracer.name} is missing (scripts/gpu/README.md)"
        path = self.o.work / f"{step.name.replace(' ', '-')}.trace"
        step.environment |= {"CUDA_INJECTION64_PATH": str(tracer), "KERNEL_TRACE": str(path)}
        step.report = [sys.executable, SCRIPTS / "trace_report.py", path]
        step.summarize = summaries.of_trace
        return step

    def check(self, name: str, limit: int, *arguments) -> Step:
        options = ["--binary", self.o.binary, "--work", self.o.work / f"check-{name}"]
        options += ["--fixtures", ROOT / "tests/fixtures/backpack"]
        if self.o.libraries:
            options += ["--libraries", self.o.libraries]
        words = [name, *options, *arguments]
        return self.script(name, limit, "check.py", summaries.of_check, *words, is_timed=False)

    def tests(self) -> list:
        """The device tests of .gpu/, which are built for the same torch as .gpu/backpack."""
        if self.o.binary.parent != self.o.pack:
            return []
        steps = []
        for path in sorted((self.o.pack / "tests").glob("*")):
            step = self.program(f"test {path.name}", 90, ["--test-threads", 1], summaries.of_test)
            step.command[0] = path
            step.environment |= {
                "BACKPACK_TEST_DEVICE": self.o.device,
                "BACKPACK_FIXTURES": str(ROOT / "tests/fixtures/backpack"),
            }
            steps.append(step)
        return steps

    def profiled_training(self) -> Step:
        """A short run with a profile, a validation, a checkpoint, and `micro_batch_size = "auto"`."""
        settings = {
            "run.device": self.o.device,
            "data.path": self.data,
            "schedule.max_steps": 16,
            "schedule.warmup_steps": 4,
            "batch.tokens_per_step": 131072,
            "validation.max_sequences": 64,
        }
        if self.is_cpu:
            settings |= {**QUICK_MODEL, "batch.tokens_per_step": 512}
        run = self.o.work / "run"
        arguments = ["train", "--config", ROOT / "configs/owt/micro.toml", "--run-dir", run]
        arguments += ["--profile", 4]
        for key, value in settings.items():
            arguments += ["--set", f"{key}={value}"]
        return self.program("profiled training", 75, arguments, summaries.of_training, fresh=run)
