"""The parts of a training step with the kernels of crates/torch-ext/cuda, for parts.py. Each function
takes a part of parts_torch.py, compares the results of the kernels with those of libtorch, and
returns the errors and the ways to compute the part. `directory` contains the sources."""

from ctypes import c_float, c_int, c_longlong, c_uint32, c_uint64
from pathlib import Path
from types import SimpleNamespace

import torch

from kernel_module import compile_kernels
from parts_torch import BF16, Sizes

FILES = ("common.cuh", "cross_entropy.cu", "sense_weights.cu", "layer_norm.cu", "gelu.cu")
# Macros of the sources, as in crates/torch-ext/src/cuda_kernels/kernel.rs. A warp has 32 threads.
LOSS_THREADS, NORM_WARPS, GELU_THREADS = 512, 4, 128
MAX_WEIGHT_WARPS, MIN_MAX_LENGTH = 8, 64
# Columns per thread and rows per block of GELU, and the largest number of blocks that write a row
# of partial sums each, as in linear.cpp and add_layer_norm.cpp of crates/torch-ext/cpp/ops.
GELU_COLUMNS, GELU_ROWS, MAX_BLOCKS = 8, 16, 512


def ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


def num_blocks(rows: int, rows_per_block: int) -> int:
    """Returns the number of blocks that write a row of partial sums each."""
    return min(max(ceil_div(rows, rows_per_block), 1), MAX_BLOCKS)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.float(), expected.float()
    return ((actual - expected).norm() / expected.norm()).item()


def result(errors: dict, ways: dict) -> SimpleNamespace:
    return SimpleNamespace(errors=errors, ways=ways)


def head(part: SimpleNamespace, s: Sizes, directory: Path, device: str) -> SimpleNamespace:
    module = compile_kernels(
        directory / "cross_entropy.cu", device, VOCAB_SIZE=s.vocab_size, THREADS=LOSS_THREADS
    )
    losses = torch.empty(s.rows, device=device)

    def own(chunk: int, fp32_sums: bool):
        grad_weight = torch.zeros(s.vocab_size, s.width, device=device)
        logits = torch.empty(chunk, s.vocab_size, device=device, dtype=BF16)
        for i in range(0, s.rows, chunk):
            h = part.hidden[i : i + chunk]
            torch.mm(h, part.weight.t(), out=logits)
            module.launch(
                "cross_entropy",
                (chunk,),
                LOSS_THREADS,
                logits,
                part.targets[i : i + chunk],
                losses[i : i + chunk],
                c_float(1 / s.rows),
                c_int(1),
            )
            torch.mm(logits, part.weight, out=part.grad_hidden[i : i + chunk])
            if fp32_sums:  # the product adds to the fp32 sum
                torch.addmm(grad_weight, logits.t(), h, out_dtype=torch.float32, out=grad_weight)
            else:
                grad_weight.add_(logits.t() @ h)
        return losses.mean(), grad_weight

    loss, grad_weight = part.in_chunks(s.logit_rows)
    small, large = s.logit_rows, min(8 * s.logit_rows, s.rows)
    errors, ways = {}, {}
    variants = [(f"own, {small} rows", small, False), (f"own, {large} rows", large, False)]
    if device == "cuda":  # libtorch has this product on CUDA only
        variants.append((f"own, {large} rows, fp32 sums", large, True))
    for name, chunk, fp32_sums in variants:
        own_loss, own_grad = own(chunk, fp32_sums)
        errors[f"{name}: loss"] = abs(float(own_loss) - float(loss))
        errors[f"{name}: gradient of the weight"] = relative_error(own_grad, grad_weight)
        ways[name] = lambda chunk=chunk, fp32_sums=fp32_sums: own(chunk, fp32_sums)
    return result(errors, ways)


def mixing(part: SimpleNamespace, s: Sizes, directory: Path, device: str) -> SimpleNamespace:
    warps = min(s.num_senses, MAX_WEIGHT_WARPS)
    module = compile_kernels(
        directory / "sense_weights.cu",
        device,
        NUM_SENSES=s.num_senses,
        MAX_LENGTH=max(1 << (s.length - 1).bit_length(), MIN_MAX_LENGTH),
        WARPS=warps,
    )
    grid, threads, scale = (s.length, s.batch), 32 * warps, c_float(part.scale)
    pairs = part.senses.detach().view(s.batch, s.length * s.num_senses, s.width)

    def own(block: int):
        """Both passes without autograd. Products omit the words after the last position of a
        block, so alpha and its gradient are undefined there."""
        query, key = (
            x.view(s.batch, s.length, s.num_senses, -1).transpose(1, 2)
            for x in part.qk.detach().split(s.width, 2)
        )
        scores = query @ key.transpose(2, 3)
        alpha = torch.empty(s.batch, s.length, s.length * s.num_senses, device=device, dtype=BF16)
        module.launch("sense_weights", grid, threads, scores, alpha, scale, c_int(s.length), c_int(block))
        output = torch.empty(s.batch, s.length, s.width, device=device, dtype=BF16)
        d_alpha, d_pairs = torch.empty_like(alpha), torch.zeros_like(pairs)
        for first in range(0, s.length, block):
            end = first + block
            words, rows = slice(0, end * s.num_senses), slice(first, end)
            output[:, rows] = alpha[:, rows, words] @ pairs[:, words]
            d_alpha[:, rows, words] = part.grad[:, rows] @ pairs[:, words].transpose(1, 2)
            d_pairs[:, words] += alpha[:, rows, words].transpose(1, 2) @ part.grad[:, rows]
        d_scores = torch.empty_like(scores)
        module.launch(
            "sense_weights_backward", grid, threads, alpha, d_alpha, d_scores, scale, c_int(s.length)
        )
        grads = d_scores @ key, d_scores.transpose(2, 3) @ query
        d_qk = torch.cat([x.transpose(1, 2).reshape(s.batch, s.length, s.width) for x in grads], 2)
        return output, d_qk, d_pairs.view_as(part.senses)

    expected = part.whole()
    errors, ways = {}, {}
    for name, block in (("own", s.length), (f"own, blocks of {part.block}", part.block)):
        for label, actual, want in zip(("output", "queries and keys", "senses"), own(block), expected):
            errors[f"{name}: {label}"] = relative_error(actual, want)
        ways[name] = lambda block=block: own(block)
    return result(errors, ways)


def norm(part: SimpleNamespace, s: Sizes, directory: Path, device: str) -> SimpleNamespace:
    module = compile_kernels(directory / "layer_norm.cu", device, WIDTH=s.width, WARPS=NORM_WARPS)
    rows, is_float, threads = c_int(s.rows), c_int(0), 32 * NORM_WARPS

    def own(dropout: float):
        total, normed = torch.empty_like(part.stream), torch.empty_like(part.output)
        stats = torch.empty(s.rows, 2, device=device)
        mask = c_uint32(int(dropout * 2**32)), c_float(1 / (1 - dropout)), c_uint64(77)
        grid = (ceil_div(s.rows, NORM_WARPS),)
        module.launch(
            "add_layer_norm",
            grid,
            threads,
            part.stream,
            part.output,
            is_float,
            None,
            total,
            part.weight,
            part.bias,
            normed,
            is_float,
            stats,
            rows,
            c_float(1e-5),
            *mask,
        )
        d_stream, d_output = torch.empty_like(part.stream), torch.empty_like(part.output)
        blocks = num_blocks(s.rows, NORM_WARPS)
        partials = torch.empty(blocks, 3, s.width, device=device)
        module.launch(
            "add_layer_norm_backward",
            (blocks,),
            threads,
            total,
            stats,
            part.weight,
            part.d_normed,
            is_float,
            part.d_sum,
            d_stream,
            d_output,
            is_float,
            partials,
            rows,
            *mask,
        )
        return normed, d_stream, d_output, partials.sum(0)[0]

    labels = ("normed", "gradient of the stream", "gradient of the output", "gradient of the weight")
    errors = {
        label: relative_error(actual, want)
        for label, actual, want in zip(labels, own(0.0), part.libtorch(0.0))
    }
    errors["fraction dropped at 0.1"] = abs((own(0.1)[2] == 0).float().mean().item() - 0.1)
    return result(errors, {"own": lambda: own(0.1)})


def gelu(part: SimpleNamespace, s: Sizes, directory: Path, device: str) -> SimpleNamespace:
    module = compile_kernels(directory / "gelu.cu", device, THREADS=GELU_THREADS)
    width = part.x.shape[1]
    grid = ceil_div(width, GELU_COLUMNS * GELU_THREADS), num_blocks(s.rows, GELU_ROWS)
    sizes = c_longlong(s.rows), c_int(width)

    def own():
        y, again, d = (torch.empty_like(part.x) for _ in range(3))
        d.copy_(part.grad)  # the kernel replaces the gradient of y by that of x
        partials = torch.empty(grid[1], width, device=device)
        module.launch("bias_gelu", grid, GELU_THREADS, part.x, part.bias, y, *sizes)
        module.launch(
            "bias_gelu_backward", grid, GELU_THREADS, part.x, part.bias, d, again, partials, *sizes
        )
        return y, d, partials.sum(0), again

    expected = part.libtorch()
    labels = ("output", "gradient", "gradient of the bias", "activation of the backward pass")
    errors = {
        label: relative_error(actual, want)
        for label, actual, want in zip(labels, own(), (*expected, expected[0]))
    }
    return result(errors, {"own, with a copy of the gradient": own})


PARTS = {"head and loss": head, "mixing": mixing, "sum and norm": norm, "gelu": gelu}
