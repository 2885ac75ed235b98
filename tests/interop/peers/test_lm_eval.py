"""Tests that lm-evaluation-harness scores an export like the logits of the binary, on a task from
local files."""

import json
import math

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from models import PUBLISHED, config_json, write_model

TASK = """
task: last_word
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: " {{{{word}}}}"
metric_list:
  - metric: perplexity
    aggregation: perplexity
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
DOCUMENTS = [("The cat sat on the", "mat"), ("Once upon a", "time"), ("It was the best of", "times")]


def test_a_task_from_local_files(backpack, tmp_path):
    checkpoint = write_model(tmp_path / "checkpoint", config_json(PUBLISHED))
    exported = backpack.export(checkpoint, tmp_path / "exported")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    lines = [json.dumps({"context": context, "word": word}) for context, word in DOCUMENTS]
    (tasks / "data.json").write_text("\n".join(lines) + "\n")
    (tasks / "last_word.yaml").write_text(TASK.format(data=tasks / "data.json"))
    answer = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(exported), "trust_remote_code": True, "dtype": "float32"},
        tasks=["last_word"],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        device="cpu",
        batch_size=2,
        bootstrap_iters=0,
    )
    perplexity = answer["results"]["last_word"]["perplexity,none"]

    total = 0.0
    for context, word in DOCUMENTS:
        dumped = backpack.dump_input(exported, "--text", f"{context} {word}")
        # Each of these words is one token.
        total += dumped["logits"].log_softmax(-1)[-2, dumped["ids"][-1]].item()
    assert math.isclose(perplexity, math.exp(-total / len(DOCUMENTS)), rel_tol=1e-4)
