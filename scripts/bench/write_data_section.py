"""Writes the data section of docs/benchmarks.md from what scripts/bench-data.sh measured."""
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
bare = stages[-1]["tokenising_mb_s"]

lines = [
    "## Text to shards\n\n",
    f"{datetime.date.today()}, {machine(cores)}, `scripts/bench-data.sh {os.environ['NAME']}` "
    f"({text:.0f} MB of text; MB are 10^6 bytes of UTF-8 text).\n\n",
    "| stage by itself | threads | MB/s |\n|---|---|---|\n",
    f"| reading parquet | 1 | {stages[0]['reading_mb_s']:.0f} |\n",
]
for stage in stages:
    lines.append(f"| tokenising | {stage['threads']} | {stage['tokenising_mb_s']:.0f} |\n")
for stage in stages:
    lines.append(f"| the `tokenizers` crate, the definition | {stage['threads']} | {stage['tokenizers_mb_s']:.1f} |\n")
lines += [
    "\n| parquet to finished shards | s | MB/s |\n|---|---|---|\n",
    f"| `backpack prepare-data`, the file once (a start of the program and libtorch included) | {once:.2f} | {text / once:.0f} |\n",
    f"| the file twenty times over | {many:.2f} | {20 * text / many:.0f} |\n",
    f"| Python: `datasets` and `tokenizers`, {cores} processes, the file once | {theirs:.2f} | {text / theirs:.2f} |\n",
    f"\nThat is {theirs / once:.0f} times as fast as Python on the same file, and {100 * 20 * text / many / bare:.0f}% of the bare "
    f"tokenising rate on the same cores; both wrote the same bytes. Peak resident memory over the twenty files: "
    f"{int(os.environ['MEMORY']) / 1e9:.2f} GB.\n",
]
write_section(sys.argv[1], "data", "scripts/bench-data.sh", "".join(lines))
