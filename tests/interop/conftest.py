"""Fixtures that run the binary named by BACKPACK_BINARY, as a user would, and read its output."""

import os
import subprocess
import tempfile
from pathlib import Path

# transformers copies the Python files of a model into its cache, so this run uses a temporary
# cache. The network is not used. These variables are read when transformers is imported.
CACHE = tempfile.TemporaryDirectory(prefix="backpack-interop-")
os.environ.update(HF_HOME=CACHE.name, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import pytest  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
torch.set_num_threads(1)


class Backpack:
    """Runs the binary. Arguments may be paths and numbers as well as strings."""

    def __call__(self, *arguments, code=0) -> str:
        command = [os.environ["BACKPACK_BINARY"], *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def export(self, checkpoint, output, *options) -> Path:
        self("export", "--checkpoint", checkpoint, "--output", output, *options)
        return output

    def dump(self, model, ids) -> dict[str, torch.Tensor]:
        """Returns `backpack dump` of one sequence: logits, contextualization, senses, ids."""
        return self.dump_input(model, "--ids", ",".join(map(str, ids)))

    def dump_input(self, model, *options) -> dict[str, torch.Tensor]:
        with tempfile.TemporaryDirectory() as directory:
            output = Path(directory) / "dump.safetensors"
            self("dump", "--model", model, *options, "--output", output)
            return load_file(output)


@pytest.fixture(scope="session")
def backpack() -> Backpack:
    return Backpack()


@pytest.fixture(scope="session")
def run():
    """Returns a function that runs a program (by default the binary) in a directory."""

    def run_in(arguments, directory, program=os.environ["BACKPACK_BINARY"]) -> str:
        done = subprocess.run([program, *arguments], cwd=directory, capture_output=True, text=True)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run_in


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


@pytest.fixture(scope="session", params=["inv_scale", "no_inv_scale", "one_sense"])
def fixture_model(request) -> Path:
    """Random models with reference outputs from PyTorch: see tests/fixtures/backpack/README.md."""
    return ROOT / "tests/fixtures/backpack" / request.param


@pytest.fixture(scope="session")
def exported(fixture_model, backpack, tmp_path_factory) -> Path:
    return backpack.export(fixture_model, tmp_path_factory.mktemp("exported") / "model")
