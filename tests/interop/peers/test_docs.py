"""The commands and the snippet of docs/interop.md, as they stand."""

import re
import shlex
import shutil
import sys

import pytest
from conftest import ROOT

TEXT = (ROOT / "docs/interop.md").read_text()
# The names that the page uses, and what stands for them here.
STAND_INS = {
    "runs/owt-small/checkpoints/step-00100000": "backpack/inv_scale",
    "backpack-gpt2": "import/bin",
    "authors.ckpt": "import/lightning/plain.ckpt",
    "gpt2": "import/gpt2",
}


def python_of(text):
    return re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    for name, source in STAND_INS.items():
        source, target = ROOT / "tests/fixtures" / source, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return folder


def test_every_command_runs(desk, run):
    commands = re.findall(r"^    backpack (.*)$", TEXT, re.MULTILINE)
    assert len(commands) == 8
    for command in commands:
        run(shlex.split(command), desk)
    # The exported model card's own, from within its folder.
    for folder in [desk / "owt-small", desk / "exported-again"]:
        (folder / "card.py").write_text(python_of((folder / "README.md").read_text()))
        run(["card.py"], folder, program=sys.executable)
    snippet = python_of(TEXT)
    program = desk / "snippet.py"
    program.write_text(snippet + "assert probabilities.shape == (1, config.n_positions, config.vocab_size)\n")
    run([str(program)], desk, program=sys.executable)
