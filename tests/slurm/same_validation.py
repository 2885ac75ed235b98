"""same_validation.py METRICS RESULTS STEP: exits with 1 if the validation losses of `eval` and
`train` at a step differ."""

import json
import pathlib
import sys

metrics, results, step = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
trained = [json.loads(line) for line in metrics.read_text().splitlines()]
trained = [line["val_loss"] for line in trained if line["step"] == step and "val_loss" in line]
measured = json.loads((results / f"step-{step:08}.val.json").read_text())["loss"]
if len(trained) != 1 or abs(trained[0] - measured) > 1e-4:
    sys.exit(print(f"FAILED: the validation loss at step {step} is {trained} in training and {measured} in eval") or 1)
