"""Writes the data section of docs/measurements/benchmarks.md from the results of
scripts/bench-data.sh."""
import datetime
import json
import os
import statistics
import sys

from section import machine, write_section

stages = [json.loads(line) for line in os.environ["STAGES"].splitlines()]
text = stages[0]["text_mb"]
cores = int(os.environ["CORES"])
once = statistics.median(map(float, os.environ["OURS"].split()))
many = min(map(float, os.environ["MANY"].split()))
theirs = float(os.environ["THEIRS"])
bare = stages[-1]["tokenizing_mb_s"]

lines = [
    "## Data preparation\n\n",
    f"{datetime.date.today()}, {machine(cores)}, `scripts/bench-data.sh {os.environ['NAME']}`.\n\n"
    f"The file holds {text:.0f} MB of text. MB are 10^6 bytes of UTF-8 text.\n\n",
    "| single stage | threads | MB/s |\n|---|---|---|\n",
    f"| reading Parquet | 1 | {stages[0]['reading_mb_s']:.0f} |\n",
]
for stage in stages:
    lines.append(f"| tokenizing | {stage['threads']} | {stage['tokenizing_mb_s']:.0f} |\n")
for stage in stages:
    lines.append(f"| tokenizing with the `tokenizers` crate | {stage['threads']} | {stage['tokenizers_mb_s']:.1f} |\n")
lines += [
    "\n| Parquet to finished shards | s | MB/s |\n|---|---|---|\n",
    f"| `backpack prepare-data`, the file once (includes loading the program and libtorch) | {once:.2f} | {text / once:.0f} |\n",
    f"| `backpack prepare-data`, the file 20 times | {many:.2f} | {20 * text / many:.0f} |\n",
    f"| Python: `datasets` and `tokenizers`, {cores} processes, the file once | {theirs:.2f} | {text / theirs:.2f} |\n",
    f"\n`prepare-data` is {theirs / once:.0f} times as fast as Python on the same file, and both write the same bytes.\n"
    f"With 20 files it reaches {100 * 20 * text / many / bare:.0f}% of the rate of tokenizing alone on the same cores.\n"
    f"Its peak resident memory over the 20 files is {int(os.environ['MEMORY']) / 1e9:.2f} GB.\n",
]
write_section(sys.argv[1], "data", "scripts/bench-data.sh", "".join(lines))
