"""Prepares a corpus by nanoGPT's recipe with the Python packages `datasets` and `tokenizers`:
nanogpt_prepare.py FILE.parquet tokenizer.json DIRECTORY PROCESSES

Holds out a share of 0.0005 for validation with seed 2357. Encodes each text without special tokens,
appends 50256, and writes train.bin and val.bin as uint16. Written for the comparison in
scripts/bench-data.sh, after nanoGPT's data/openwebtext/prepare.py.
"""
import json
import os
import sys

import numpy as np
from datasets import load_dataset
from tokenizers import Tokenizer

END_OF_TEXT = 50256
source, tokenizer_file, directory, processes = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
with open(tokenizer_file) as file:
    definition = json.load(file)
definition["added_tokens"] = []  # a literal <|endoftext|> in a text is encoded as ordinary text
tokenizer = Tokenizer.from_str(json.dumps(definition))


def encode(batch):
    ids = [e.ids + [END_OF_TEXT] for e in tokenizer.encode_batch(batch["text"], add_special_tokens=False)]
    return {"ids": ids, "length": [len(i) for i in ids]}


def main():
    data = load_dataset("parquet", data_files=source, cache_dir=os.path.join(directory, "cache"))["train"]
    split = data.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    split["val"] = split.pop("test")
    encoded = split.map(encode, batched=True, remove_columns=["text"], num_proc=processes)
    for name, part in encoded.items():
        ids = np.memmap(os.path.join(directory, f"{name}.bin"), np.uint16, "w+", shape=(sum(part["length"]),))
        at = 0
        for number in range(min(1024, len(part))):
            piece = part.shard(min(1024, len(part)), number, contiguous=True).with_format("numpy")["ids"]
            piece = np.concatenate(list(piece))
            ids[at : at + len(piece)] = piece
            at += len(piece)
        ids.flush()


if __name__ == "__main__":
    os.makedirs(directory, exist_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # `datasets` starts one process per core instead
    main()
