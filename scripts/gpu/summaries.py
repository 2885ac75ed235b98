"""One line per step of run.py, and the table at the end. A summary is a function of the JSON result
of a step and of its whole output."""

MARKS = {True: "ok", False: "FAILED", None: "skipped"}


def of_doctor(_: dict, text: str) -> str:
    headings = ("CUDA", "libtorch", "NCCL")
    lines = [line for line in text.splitlines() if line.startswith(headings) or " GPU 0" in line]
    return "; ".join(" ".join(line.split()) for line in lines)[:260]


def of_last_line(_: dict, text: str) -> str:
    lines = text.strip().splitlines()
    return " ".join(lines[-1].split())[:160] if lines else "no output"


def of_bench(result: dict, _: str) -> str:
    if "tokens_per_s" not in result:
        return f"first step after {result['first_step_seconds']:.0f} s"
    rate, losses = result["tokens_per_s"], result["losses"]
    words = [
        f"{rate:.0f} tok/s",
        f"{rate * result['flops_per_token'] / 1e12:.0f} TFLOP/s",
        f"loss {losses[0]:.4f} to {losses[-1]:.4f}",
    ]
    if memory := result.get("peak_device_memory_bytes"):
        words.append(f"{memory / 1e9:.1f} GB")
    parts = result.get("seconds_by_part") or {}
    longest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    words += [f"{name} {seconds * 1e3:.1f} ms" for name, seconds in longest]
    return ", ".join(words)


def of_check(result: dict, _: str) -> str:
    """Prints the differences that have a limit."""
    words = []
    for name, values in result["differences"].items():
        found = [f"{key} {values[key]:.1e}" for key in result["limits"] if key in values]
        words.append(f"{name}: {', '.join(found)}")
    return "; ".join(words)[:400]


def of_test(_: dict, text: str) -> str:
    results = [line for line in text.splitlines() if line.startswith("test result")]
    return results[-1][:120] if results else "no result"


def of_hardware(result: dict, _: str) -> str:
    products, copies = result["products_tflops"], result["copies_gb_s"]
    return (
        f"{result.get('gpu', 'CPU')}: bf16 {products['bf16 square']} TFLOP/s, copy {copies['device']} GB/s, "
        f"launch {result['launch_us']['queued']} us"
    )


def of_trace(result: dict, text: str) -> str:
    if "by_kind" not in result:  # a rehearsal has no trace
        return of_bench(result, text) if "losses" in result else result["error"]
    kinds = ", ".join(f"{row['name']} {row['ms']:.1f}" for row in result["by_kind"][:6])
    return (
        f"step {result['step_ms']} ms, busy {result['busy_ms']} ms, "
        f"{result['kernels_per_step']:.0f} kernels; ms: {kinds}"
    )


def of_parts(result: dict, _: str) -> str:
    failures = [f"{name} FAILED: {error}" for name, error in result["failures"].items()]
    parts = [
        f"{name}: {', '.join(f'{way} {ms}' for way, ms in ways.items())}"
        for name, ways in result["ms"].items()
    ]
    return "; ".join([*failures, *parts])[:500]


def of_training(_: dict, text: str) -> str:
    words = ("tok/s", "micro-batch", "profile ")
    lines = [line for line in text.splitlines() if any(word in line for word in words)]
    return " | ".join(" ".join(line.split()) for line in lines[-3:])[:300]


def line(result: dict) -> str:
    mark = MARKS[result["ok"]]
    return f"{mark:<8}{result['step']:<27}{result['seconds']:6.1f} s  {result['summary']}"


def table(results: list, seconds: float) -> str:
    """Returns all lines, the rates, and the number of steps that passed, failed and were skipped."""
    lines = ["", *[line(result)[:180] for result in results], ""]
    heading = ("rate", "tokens/s", "TFLOP/s", "GB", "GB (smi)", "W")
    lines.append("{:<27} {:>10} {:>8} {:>6} {:>9} {:>5}".format(*heading))
    for result in results:
        found = result["result"]
        if "tokens_per_s" not in found:
            continue
        rate, gpu = found["tokens_per_s"], result["nvidia_smi"]
        numbers = (
            rate,
            rate * found["flops_per_token"] / 1e12,
            (found.get("peak_device_memory_bytes") or 0) / 1e9,
            gpu.get("memory_mib", 0) * 2**20 / 1e9,
            gpu.get("watts", 0),
        )
        lines.append("{:<27} {:>10.0f} {:>8.1f} {:>6.1f} {:>9.1f} {:>5.0f}".format(result["step"], *numbers))
    failed = [result["step"] for result in results if result["ok"] is False]
    passed = sum(result["ok"] is True for result in results)
    skipped = len(results) - passed - len(failed)
    names = f" ({', '.join(failed)})" if failed else ""
    lines.append(f"{passed} passed, {len(failed)} failed{names}, {skipped} skipped, in {seconds:.0f} s")
    return "\n".join(lines) + "\n"
