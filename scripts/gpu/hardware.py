"""Measures the limits of a GPU: matrix products, copies, kernel launches and attention. Prints one
JSON object on the last line."""

import argparse
import json
import os
import statistics
import subprocess
import time
from contextlib import nullcontext
from functools import partial

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

BF16 = torch.bfloat16


def seconds(device: str, work, repeats: int = 10, warmup: int = 3) -> float:
    """Returns the median time of one call of `work`."""
    for _ in range(warmup):
        work()
    if device == "cpu":
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


def products(device: str, quick: bool) -> dict:
    """Returns TFLOP/s of products [m, k] x [k, n] of a step of small with 64 x 512 tokens."""
    shapes = {
        "square": (8192, 8192, 8192),
        "mlp": (32768, 768, 3072),
        "mlp projection": (32768, 3072, 768),
        "senses": (32768, 3072, 12288),
        "head, 512 rows": (512, 768, 50264),
        "head, 4096 rows": (4096, 768, 50264),
        "gradient of the head's weight, 512 rows": (50264, 512, 768),
        "gradient of the head's weight, 4096 rows": (50264, 4096, 768),
    }
    if quick:
        shapes = {"square": (256, 256, 256)}
    rates = {}
    for dtype, name in ((BF16, "bf16"), (torch.float32, "fp32")):
        for label, (m, k, n) in shapes.items():
            if dtype is torch.float32 and label != "square":
                continue
            a, b = (torch.randn(size, device=device, dtype=dtype) for size in ((m, k), (k, n)))
            out = torch.empty(m, n, device=device, dtype=dtype)
            taken = seconds(device, partial(torch.mm, a, b, out=out))
            rates[f"{name} {label}"] = round(2 * m * k * n / taken / 1e12, 2)
    # Mixing of senses: a batch of products [T, L T] x [L T, D].
    b, t, num_senses, d = (2, 32, 4, 64) if quick else (64, 512, 16, 768)
    weights = torch.randn(b, t, t * num_senses, device=device, dtype=BF16)
    senses = torch.randn(b, t * num_senses, d, device=device, dtype=BF16)
    taken = seconds(device, lambda: weights @ senses, repeats=5)
    rates["bf16 mixing"] = round(2 * b * t * t * num_senses * d / taken / 1e12, 2)
    return rates


def copies(device: str, quick: bool) -> dict:
    """Returns GB/s on the device, where reads and writes count, and between host and device."""
    size = 1 << (20 if quick else 31)
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    source.fill_(1)
    rates = {"device": 2 * size / seconds(device, lambda: target.copy_(source)) / 1e9}
    x = torch.randn(size // 8, device=device)
    y = torch.empty_like(x)
    taken = seconds(device, lambda: torch.mul(x, 1.5, out=y))
    rates["elementwise fp32"] = 2 * 4 * x.numel() / taken / 1e9
    if device == "cuda":
        size = 256 << 20
        pageable = torch.ones(size, dtype=torch.uint8)
        pinned = torch.ones(size, dtype=torch.uint8).pin_memory()
        on_gpu = torch.empty(size, dtype=torch.uint8, device=device)
        for label, to, origin in (
            ("to the host, pageable", pageable, on_gpu),
            ("to the host, pinned", pinned, on_gpu),
            ("from the host, pinned", on_gpu, pinned),
        ):
            taken = seconds(device, partial(to.copy_, origin, non_blocking=True), 5, 1)
            rates[label] = size / taken / 1e9
    return {key: round(value, 1) for key, value in rates.items()}


def launches(device: str) -> dict:
    """Returns microseconds per small operation: until the host has queued it, and until the device
    has finished it."""
    x = torch.zeros(1, device=device)
    for _ in range(100):
        x.add_(1)
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(5000):
        x.add_(1)
    queued = time.perf_counter() - begin
    if device == "cuda":
        torch.cuda.synchronize()
    finished = time.perf_counter() - begin
    return {"queued": round(queued / 5000 * 1e6, 2), "finished": round(finished / 5000 * 1e6, 2)}


def mean_output(shape: tuple, dropout: float) -> float:
    """Returns the mean output of attention with equal scores and values of 1. It is 1 if the kept
    fraction is 1 - dropout, and differs from 1 if the backend rounds the dropout rate."""
    zeros = torch.zeros(shape, device="cuda", dtype=BF16)
    y = F.scaled_dot_product_attention(zeros, zeros, torch.ones_like(zeros), dropout_p=dropout)
    return y.float().mean().item()


def attention() -> dict:
    """Returns milliseconds of a forward and backward pass, and the mean output, per backend."""
    b, h, t, d = 64, 12, 512, 64
    packed = torch.randn(b, t, 3, h, d, device="cuda", dtype=BF16, requires_grad=True)
    backends = {
        "default": None,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }

    def both_passes(dropout: float):
        q, k, v = (x.transpose(1, 2) for x in packed.unbind(2))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y.backward(y.detach())
        packed.grad = None

    results = {}
    for name, backend in backends.items():
        for dropout in (0.0, 0.1):
            label = f"{name}, dropout {dropout}"
            try:
                with sdpa_kernel([backend]) if backend is not None else nullcontext():
                    ms = seconds("cuda", partial(both_passes, dropout)) * 1e3
                    mean = mean_output((8, h, t, d), dropout)
                    results[label] = {"ms": round(ms, 3), "mean": round(mean, 4)}
            except RuntimeError as error:
                results[label] = str(error).splitlines()[0][:120]
    return results


def default_attention_kernels() -> dict:
    """Returns the names of the attention kernels that libtorch selects."""
    kernels = {}
    for dropout in (0.0, 0.1):
        q, k, v = (
            torch.randn(4, 12, 512, 64, device="cuda", dtype=BF16, requires_grad=True) for _ in range(3)
        )
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).sum().backward()
            torch.cuda.synchronize()
        names = [row.key[:90] for row in profiled.key_averages()]
        words = ("flash", "sdpa", "fmha", "attention")
        names = [name for name in names if any(word in name.lower() for word in words)]
        kernels[f"dropout {dropout}"] = names
    return kernels


def gpu() -> dict:
    properties = torch.cuda.get_device_properties(0)
    query = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit"
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    smi = subprocess.run(command, check=False, capture_output=True, text=True)
    return {
        "gpu": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "cudnn": torch.backends.cudnn.version(),
        "cuda": torch.version.cuda,
        "nvidia_smi": smi.stdout.strip(),
        "attention": attention(),
        "attention_kernels": default_attention_kernels(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    device = parser.parse_args().device
    quick = device == "cpu"
    report = {
        "ok": True,
        "torch": torch.__version__,
        "cpus": os.cpu_count(),
        "products_tflops": products(device, quick),
        "copies_gb_s": copies(device, quick),
        "launch_us": launches(device),
    }
    if device == "cuda":
        report |= gpu()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
