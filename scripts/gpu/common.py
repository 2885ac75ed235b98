"""Functions that several scripts of this folder use."""

import math
import sys
from pathlib import Path

import numpy as np
import torch


def synchronize(device: str) -> None:
    """Waits until the device has finished all queued work."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(device: str) -> int | None:
    """Returns the largest number of bytes that tensors have occupied on the GPU."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def zipf_ids(rows: int, length: int, vocab_size: int, seed: int = 1) -> torch.Tensor:
    """Returns [rows, length + 1] random ids with a Zipf distribution, which has about as many
    distinct ids per batch as text has."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(rows, length + 1, generator=generator, dtype=torch.float64)
    return (uniform * math.log(vocab_size + 1)).exp().long().clamp(1, vocab_size) - 1


def write_ids(path: Path, ids: torch.Tensor) -> None:
    """Writes ids as uint16, little-endian: the format of shards and of `bench --tokens-file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ids.flatten().numpy().astype("<u2").tofile(path)


def read_ids(path: Path, length: int, rows: int) -> torch.Tensor:
    """Returns [rows, length + 1] ids of a file. Row r begins at token r * length. The rows repeat
    if the file is too short. Exits if it has fewer than length + 1 tokens."""
    if not path.is_file():
        sys.exit(f"cannot read token ids: {path} does not exist or is not a file.")
    ids = torch.from_numpy(np.fromfile(path, "<u2").astype(np.int64))
    if len(ids) <= length:
        sys.exit(
            f"cannot read token ids: {path} has {len(ids)} tokens, and a sequence needs {length + 1}: "
            "use a larger file or shorter sequences."
        )
    available = (len(ids) - 1) // length
    begins = [(row % available) * length for row in range(rows)]
    return torch.stack([ids[begin : begin + length + 1] for begin in begins])
