"""Formats the training section of docs/measurements/benchmarks.md from the results of train.py."""
import statistics
from statistics import median


def spread(values: list) -> str:
    return f"{median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def about(result: dict, heading: str) -> str:
    torch = f", PyTorch {result['torch']}" if result["torch"] else ""
    return (
        f"{heading}\n\n{result['date']}, {result['machine']}{torch}. Load average before: {result['load_before']:.1f}.\n"
        f"Command: `{result['command']}`.\n\n"
    )


def comparison(config: str, result: dict) -> str:
    ours, theirs = result["ours"], result["theirs"]
    first = ours["bf16 fused"][0]
    rounds = f"{result['rounds']} round{'s' if result['rounds'] > 1 else ''}"
    lines = [
        about(result, f"### {config}, {first['parameters'] / 1e6:.1f} million parameters"),
        f"A step is {first['accumulation']} x {first['micro_batch']} sequences of {first['sequence_length']} tokens on "
        f"{first['threads']} threads without dropout. It includes the forward pass,\n"
        f"the backward pass, clipping and AdamW. Rates are medians over {rounds} of {result['steps']} timed steps, with\n"
        "the range of the medians of all runs. GB is the peak resident memory of the process (10^9 bytes).\n"
        "MFU is relative to the GFLOP/s in the last column, the best matrix product in the same process.\n\n"
        "| backpack | tokens/s | GB | MFU | GFLOP/s |\n|---|---|---|---|---|\n",
    ]
    for which, reports in ours.items():
        lines.append(
            f"| {which} | {spread([report['tokens_per_s'] for report in reports])} "
            f"| {median(report['peak_memory_bytes'] for report in reports) / 1e9:.2f} "
            f"| {100 * median(report['mfu'] for report in reports):.0f}% "
            f"| {median(report['matmul_peak_flops'] for report in reports) / 1e9:.0f} |\n"
        )
    if theirs:
        lines.append(
            "\nEach PyTorch run directly follows a run of `backpack`. The speed ratio is the median of the ratios\n"
            "of these pairs. Both ratios are `backpack` divided by PyTorch. The PyTorch programs are not part of\n"
            "this repository (`docs/benchmarks.md`).\n\n"
            "| PyTorch | tokens/s | compared with | speed ratio | GB | memory ratio |\n|---|---|---|---|---|---|\n"
        )
    for name, its in theirs.items():
        lines.append(
            f"| {name} | {spread(its['tokens_per_s'])} | {its['ours']} | {median(its['ratios']):.2f} "
            f"| {its['peak_memory_bytes'] / 1e9:.2f} | {its['memory_ratio']:.2f} |\n"
        )
    lines.append("\n" + by_part({which: ours[which] for which in ["bf16 fused", "fp32 fused"]}))
    return "".join(lines)


def by_part(ours: dict) -> str:
    """Returns a table of milliseconds per step by part, as means over the runs."""
    columns = {}
    for which, reports in ours.items():
        parts = reports[0]["seconds_by_part"]
        columns[which] = {part: statistics.mean(report["seconds_by_part"][part] for report in reports) for part in parts}
    names = list(dict.fromkeys(part for column in columns.values() for part in column))
    lines = ["| part of a step | " + " | ".join(f"{which}, ms | %" for which in columns) + " |\n"]
    lines.append("|---|" + "---|---|" * len(columns) + "\n")
    for name in names:
        cells = [
            f"{1e3 * column.get(name, 0.0):.0f} | {100 * column.get(name, 0.0) / sum(column.values()):.1f}"
            for column in columns.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |\n")
    return "".join(lines)


def memory_growth(result: dict) -> str:
    sizes = next(iter(result["peak_memory_bytes"].values()))
    heading = ["backpack", *(f"{size} sequences, GB" for size in sizes), "MB per additional token"]
    lines = [
        about(result, "### Memory by micro-batch size"),
        "The model is micro. A step is one micro-batch. MB are 10^6 bytes.\n\n",
        f"| {' | '.join(heading)} |\n{'|---' * len(heading)}|\n",
    ]
    for which, peaks in result["peak_memory_bytes"].items():
        sizes = list(map(int, peaks))
        grown = (peaks[str(sizes[-1])] - peaks[str(sizes[0])]) / (512 * (sizes[-1] - sizes[0])) / 1e6
        cells = " | ".join(f"{peak / 1e9:.2f}" for peak in peaks.values())
        lines.append(f"| {which} | {cells} | {grown:.2f} |\n")
    return "".join(lines)


def trend(result: dict) -> str:
    windows = result["window_seconds"]
    off = max(windows) / min(windows) - 1
    return about(result, "### Drift of the step time") + (
        f"micro, bf16 fused, {result['steps']} steps. The medians of windows of {result['window']} steps lie between {min(windows):.3f} and "
        f"{max(windows):.3f} s.\nThe first window is at {windows[0]:.3f} s, the last at {windows[-1]:.3f} s. The slowest is "
        f"{100 * off:.1f}% slower than the fastest.\n"
    )


def agreement(result: dict) -> str:
    lines = [
        about(result, "### Losses of fused and reference kernels"),
        f"micro, the same {result['steps']} steps with both kernels. The table shows the largest difference of a step's loss.\n\n"
        "| precision | absolute | relative |\n|---|---|---|\n",
    ]
    for precision, losses in result["losses"].items():
        pairs = list(zip(losses["fused"], losses["reference"], strict=True))
        absolute = max(abs(fused - reference) for fused, reference in pairs)
        relative = max(abs(fused - reference) / reference for fused, reference in pairs)
        lines.append(f"| {precision} | {absolute:.1e} | {relative:.1e} |\n")
    return "".join(lines)


def text(results: dict) -> str:
    """Returns the section, with the results that exist, in a fixed order."""
    blocks = [comparison(config, results[config]) for config in ["micro", "small"] if config in results]
    for kind, block in [("memory growth", memory_growth), ("trend", trend), ("agreement", agreement)]:
        if kind in results:
            blocks.append(block(results[kind]))
    return "## Training\n\n" + "\n".join(blocks)
