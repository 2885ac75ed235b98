"""same_metrics.py A B: exits with 1 if two metrics.jsonl differ, except in throughput."""

import json
import sys


def lines(path):
    with open(path) as file:
        for line in file:
            record = json.loads(line)
            yield {key: value for key, value in record.items() if key not in ("tokens_per_s", "mfu")}


a, b = (list(lines(path)) for path in sys.argv[1:3])
for number, (left, right) in enumerate(zip(a, b), 1):
    if left != right:
        sys.exit(print(f"FAILED: line {number} of the metrics is {right}, in the undisturbed run {left}") or 1)
if len(a) != len(b):
    sys.exit(print(f"FAILED: {len(b)} lines of metrics, in the undisturbed run {len(a)}") or 1)
