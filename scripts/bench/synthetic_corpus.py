"""Writes a test corpus for scripts/torture-data.sh: synthetic_corpus.py DIRECTORY MEGABYTES

The corpus holds passages of data/demo.jsonl in random order as plain and gzipped JSON Lines, many
short documents, a few very long documents (one letter, spaces, prose) and a directory of text
files.
"""
import gzip
import json
import os
import random
import sys

directory, megabytes = sys.argv[1], int(sys.argv[2])
here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(here, "../../data/demo.jsonl")) as file:
    passages = [json.loads(line)["text"] for line in file]
draw = random.Random(2357)
os.makedirs(os.path.join(directory, "texts"), exist_ok=True)


def write(file, size, document):
    written = 0
    while written < size:
        text = document()
        written += len(text)
        file.write(json.dumps({"text": text}) + "\n")


def passage():
    return f"{draw.random()} {draw.choice(passages)}"


with open(os.path.join(directory, "a-passages.jsonl"), "w") as file:
    write(file, 0.7 * megabytes * 1e6, passage)
with gzip.open(os.path.join(directory, "b-passages.jsonl.gz"), "wt", compresslevel=1) as file:
    write(file, 0.1 * megabytes * 1e6, passage)
with open(os.path.join(directory, "c-short.jsonl"), "w") as file:
    write(file, 0.1 * megabytes * 1e6, lambda: draw.choice(passages)[: draw.randrange(200)])
with open(os.path.join(directory, "d-long.jsonl"), "w") as file:
    for text in ["a" * 10_000_000, " " * 10_000_000, "\n".join(draw.choices(passages, k=5_000)), ""]:
        file.write(json.dumps({"text": text}) + "\n")
for number in range(2_000):
    with open(os.path.join(directory, "texts", f"{number:05}.txt"), "w") as file:
        file.write(passage())
