"""same_validation.py METRICS RESULTS STEP: does eval's loss of that step agree with training's?"""

import json
import pathlib
import sys

metrics, results, step = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
trained = [json.loads(line) for line in metrics.read_text().splitlines()]
trained = [line["val_loss"] for line in trained if line["step"] == step and "val_loss" in line]
measured = json.loads((results / f"step-{step:08}.val.json").read_text())["loss"]
if len(trained) != 1 or abs(trained[0] - measured) > 1e-4:
    sys.exit(print(f"FAILED: the training's loss at step {step} was {trained}, eval's is {measured}") or 1)
