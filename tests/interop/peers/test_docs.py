"""Runs the commands and the snippet of docs/interop.md unchanged."""

import re
import shlex
import shutil
import sys

import pytest
from conftest import ROOT

TEXT = (ROOT / "docs/interop.md").read_text()
# The paths that the page uses, and the fixtures that replace them.
STAND_INS = {
    "runs/owt-small/checkpoints/step-00100000": "backpack/inv_scale",
    "backpack-gpt2": "import/bin",
    "authors.ckpt": "import/lightning/plain.ckpt",
    "gpt2": "import/gpt2",
}


def python_of(text):
    return re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sandbox")
    for name, source in STAND_INS.items():
        source, target = ROOT / "tests/fixtures" / source, directory / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return directory


def test_every_command_runs(sandbox, run):
    commands = re.findall(r"^    backpack (.*)$", TEXT, re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        run(shlex.split(command), sandbox)
    # The snippet of an exported model card runs in the directory of the model.
    for directory in [sandbox / "owt-small", sandbox / "exported-again"]:
        (directory / "card.py").write_text(python_of((directory / "README.md").read_text()))
        run(["card.py"], directory, program=sys.executable)
    snippet = python_of(TEXT)
    program = sandbox / "snippet.py"
    program.write_text(snippet + "assert probabilities.shape == (1, config.n_positions, config.vocab_size)\n")
    run([str(program)], sandbox, program=sys.executable)
