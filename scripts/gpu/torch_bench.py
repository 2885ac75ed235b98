"""Measures a training step in PyTorch, with the model, batch and update of `backpack bench`. Prints
one JSON object on the last line.

    torch_bench.py --model small --micro-batch 64 --mode eager
    torch_bench.py --model gpt2-124m --mode compile --length 1024 --micro-batch 32
    torch_bench.py --model small --mode compile --steps 0     only fills the compiler's cache
"""

import argparse
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch

import reference
from arguments import positive_int
from common import peak_memory, read_ids, synchronize, zipf_ids

# Modes of torch.compile.
MODES = {"eager": None, "compile": "default", "graphs": "reduce-overhead"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--model", default="small", choices=[*reference.SIZES, "gpt2-124m", "tiny"])
    parser.add_argument("--mode", default="eager", choices=MODES)
    parser.add_argument("--mix", default="product", choices=["product", "senses"])
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--length", type=positive_int, default=512, help="tokens per sequence")
    parser.add_argument("--micro-batch", type=positive_int, default=64, help="sequences per micro-batch")
    parser.add_argument(
        "--accumulation", type=positive_int, default=1, help="micro-batches per step"
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the timed ones")
    parser.add_argument("--tokens-file", type=Path, help="token ids [default: random ids]")
    return parser.parse_args()


def shape_of(a: argparse.Namespace) -> reference.Shape:
    if a.model == "gpt2-124m":  # the model of nanoGPT and llm.c
        return reference.Shape(
            architecture="gpt2",
            n_positions=max(1024, a.length),
            vocab_size=50304,
            dropout=a.dropout,
            scale_attn_by_inverse_layer_idx=False,
        )
    if a.model == "tiny":  # for CPUs
        return reference.Shape(
            n_embd=64,
            n_layer=2,
            n_head=2,
            num_senses=4,
            vocab_size=512,
            dropout=a.dropout,
            n_positions=max(128, a.length),
        )
    return reference.Shape.of_size(a.model, dropout=a.dropout, n_positions=max(512, a.length))


class Step:
    """Forward and backward passes, clipping and AdamW, with fp32 weights and autocast."""

    def __init__(self, a: argparse.Namespace):
        self.a, self.shape = a, shape_of(a)
        torch.manual_seed(0)
        model = reference.build(self.shape, mix=a.mix)
        self.model = reference.initialize(model, 0).to(a.device).train()
        self.optimizer = reference.optimizer(self.model)
        mode = MODES[a.mode]
        self.loss = torch.compile(self.model.loss, mode=mode) if mode else self.model.loss
        rows = (a.steps + a.warmup + 1) * a.accumulation * a.micro_batch
        if a.tokens_file:
            ids = read_ids(a.tokens_file, a.length, rows)
        else:
            ids = zipf_ids(rows, a.length, self.shape.vocab_size)
        self.ids = ids.pin_memory() if a.device == "cuda" else ids
        self.row = 0

    def next_batch(self):
        a = self.a
        rows = self.ids[self.row : self.row + a.micro_batch].to(a.device, non_blocking=True)
        self.row += a.micro_batch
        return rows[:, :-1], rows[:, 1:]

    def __call__(self) -> torch.Tensor:
        a = self.a
        total = torch.zeros((), device=a.device)
        cast = torch.autocast(a.device, torch.bfloat16) if a.precision == "bf16" else nullcontext()
        for _ in range(a.accumulation):
            ids, targets = self.next_batch()
            if a.mode == "graphs":
                torch.compiler.cudagraph_mark_step_begin()
            with cast:
                loss = self.loss(ids, targets) / a.accumulation
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total


def main() -> None:
    a = parse_arguments()
    step = Step(a)
    begin = time.perf_counter()
    losses, seconds = [float(step())], []
    report = {"first_step_seconds": time.perf_counter() - begin}
    for _ in range(max(a.warmup - 1, 0) if a.steps else 0):
        losses.append(float(step()))
    for _ in range(a.steps):
        synchronize(a.device)
        begin = time.perf_counter()
        loss = step()
        synchronize(a.device)
        seconds.append(time.perf_counter() - begin)
        losses.append(float(loss))
    tokens = a.length * a.micro_batch * a.accumulation
    report |= {key: value for key, value in vars(a).items() if key != "tokens_file"}
    report |= {
        "torch": torch.__version__,
        "losses": losses,
        "step_seconds": seconds,
        "flops_per_token": step.shape.flops_per_token(a.length),
        "parameters": sum(p.numel() for p in step.model.parameters()),
        "peak_device_memory_bytes": peak_memory(a.device),
    }
    if seconds:
        report["tokens_per_s"] = tokens / statistics.median(seconds)
        report["tokens_per_s_best"] = tokens / min(seconds)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
