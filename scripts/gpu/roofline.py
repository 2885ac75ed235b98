"""Predicts the time of a training step on a GPU, without a GPU. Counts kernels, bytes and FLOPs of
each part on tensors without memory (PyTorch's meta device), and divides them by given rates.

    roofline.py [--size small] [--micro-batch 64] [--dropout 0.1] [--bandwidth 3.0] [--tflops 650]
    roofline.py --variant own       with the kernels of crates/torch-ext/cuda (default)
    roofline.py --variant libtorch  with operations of libtorch only, chosen for a GPU
    roofline.py --variant eager     with operations of libtorch as on a CPU: gradients of selected
                                    queries, keys and values, and 512 rows of logits per chunk

The counting of each variant is in roofline_variants.py.
"""

import argparse
import json
from collections import defaultdict

import reference
from arguments import positive_float, positive_int
from roofline_variants import VARIANTS, count_parts

KEYS = ("kernels", "gigabytes", "teraflops", "milliseconds", "product_milliseconds")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Predicts the time of a training step on a GPU.")
    parser.add_argument("--variant", choices=VARIANTS, default="own")
    parser.add_argument("--size", choices=reference.SIZES, default="small")
    parser.add_argument(
        "--micro-batch", type=positive_int, default=64, help="sequences per micro-batch"
    )
    parser.add_argument("--length", type=positive_int, default=512, help="tokens per sequence")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument(
        "--accumulation", type=positive_int, default=1, help="micro-batches per step"
    )
    parser.add_argument("--bandwidth", type=positive_float, default=3.0, help="TB/s of a copy")
    parser.add_argument(
        "--tflops", type=positive_float, default=650.0, help="TFLOP/s of matrix products"
    )
    parser.add_argument("--min-kernel", type=float, default=1.0, help="microseconds of an empty kernel")
    parser.add_argument(
        "--launch", type=float, default=6.0, help="microseconds of the host per kernel, with autograd"
    )
    parser.add_argument("--operations", type=int, default=0, help="also list N operations per part")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def milliseconds(operation, a: argparse.Namespace) -> float:
    by_memory = operation.bytes / a.bandwidth / 1e9
    by_products = operation.flops / a.tflops / 1e9
    return max(by_memory, by_products, operation.kernels * a.min_kernel / 1e3)


def summarize(operations: list, times: float, a: argparse.Namespace) -> dict:
    """Returns the totals of a part that occurs `times` times per micro-batch."""
    totals = dict.fromkeys(KEYS, 0.0)
    by_name = defaultdict(lambda: [0.0, 0.0, 0.0])
    for operation in operations:
        ms = milliseconds(operation, a)
        totals["kernels"] += operation.kernels * times
        totals["gigabytes"] += operation.bytes * times / 1e9
        totals["teraflops"] += operation.flops * times / 1e12
        totals["milliseconds"] += ms * times
        totals["product_milliseconds"] += ms * times if operation.flops else 0.0
        row = by_name[operation.name]
        row[0] += operation.kernels * times
        row[1] += operation.bytes * times / 1e9
        row[2] += ms * times
    longest = sorted(by_name.items(), key=lambda item: -item[1][2])[: a.operations]
    return {**totals, "operations": [[name, *values] for name, values in longest]}


def predict(a: argparse.Namespace) -> dict:
    """Returns the totals of each part and of a micro-batch with its share of the update."""
    shape = reference.Shape.of_size(a.size, dropout=a.dropout, n_positions=max(512, a.length))
    parts = {}
    for name, (times, operations) in count_parts(a.variant, shape, a.micro_batch, a.length).items():
        share = times / a.accumulation if name == "clip and AdamW" else times
        parts[name] = summarize(operations, share, a)
    total = {key: sum(part[key] for part in parts.values()) for key in KEYS}
    host = total["kernels"] * a.launch / 1e3
    seconds = max(total["milliseconds"], host) / 1e3
    tokens = a.micro_batch * a.length
    flops = shape.flops_per_token(a.length)
    return {
        "parts": parts,
        "total": total,
        "host_milliseconds": host,
        "flops_per_token": flops,
        "tokens_per_s": tokens / seconds,
        "tflops": tokens / seconds * flops / 1e12,
    }


def print_table(a: argparse.Namespace, found: dict) -> None:
    print(
        f"PREDICTED, not measured: {a.size}, variant {a.variant}, micro-batch {a.micro_batch} x {a.length} "
        f"tokens, dropout {a.dropout}, at {a.bandwidth} TB/s and {a.tflops} TFLOP/s"
    )
    print(f"{'part':<16} {'kernels':>8} {'GB':>8} {'TFLOP':>8} {'ms':>8} {'products':>9}")
    for name, part in {**found["parts"], "total": found["total"]}.items():
        numbers = [part[key] for key in KEYS]
        print("{:<16} {:8.0f} {:8.1f} {:8.2f} {:8.2f} {:9.2f}".format(name, *numbers))
        for operation in part.get("operations", []):
            print("    {:<28} {:8.0f} kernels {:8.1f} GB {:8.2f} ms".format(*operation))
    print(f"host: {found['host_milliseconds']:.1f} ms for {found['total']['kernels']:.0f} launches")
    print(
        f"rate: {found['tokens_per_s']:.0f} tokens/s, {found['tflops']:.0f} TFLOP/s "
        f"with {found['flops_per_token'] / 1e9:.3f} GFLOP per token"
    )


def main() -> None:
    a = parse_arguments()
    found = predict(a)
    if a.json:
        print(json.dumps({**vars(a), **found}))
    else:
        print_table(a, found)


if __name__ == "__main__":
    main()
