"""A corpus of several shapes for scripts/torture-data.sh: synthetic_corpus.py FOLDER MEGABYTES

Passages of data/demo.jsonl in ever new order, in plain and gzipped jsonl; many short
documents; a few very long ones, of one letter, of spaces and of prose; a folder of texts.
"""
import gzip
import json
import os
import random
import sys

folder, megabytes = sys.argv[1], int(sys.argv[2])
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "../../data/demo.jsonl")) as file:
    passages = [json.loads(line)["text"] for line in file]
draw = random.Random(2357)
os.makedirs(os.path.join(folder, "texts"), exist_ok=True)


def write(file, size, document):
    written = 0
    while written < size:
        text = document()
        written += len(text)
        file.write(json.dumps({"text": text}) + "\n")


def passage():
    return f"{draw.random()} {draw.choice(passages)}"


with open(os.path.join(folder, "a-passages.jsonl"), "w") as file:
    write(file, 0.7 * megabytes * 1e6, passage)
with gzip.open(os.path.join(folder, "b-passages.jsonl.gz"), "wt", compresslevel=1) as file:
    write(file, 0.1 * megabytes * 1e6, passage)
with open(os.path.join(folder, "c-short.jsonl"), "w") as file:
    write(file, 0.1 * megabytes * 1e6, lambda: draw.choice(passages)[: draw.randrange(200)])
with open(os.path.join(folder, "d-long.jsonl"), "w") as file:
    for text in ["a" * 10_000_000, " " * 10_000_000, "\n".join(draw.choices(passages, k=5_000)), ""]:
        file.write(json.dumps({"text": text}) + "\n")
for number in range(2_000):
    with open(os.path.join(folder, "texts", f"{number:05}.txt"), "w") as file:
        file.write(passage())
