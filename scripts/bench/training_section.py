"""The training section of docs/benchmarks.md, from what train.py measured."""
import statistics
from statistics import median

# Of the micro model: tokens/s and peak memory, ours over theirs.
TARGETS = {
    "a_pyvene": (2.5, 0.45),
    "b_ref": (1.45, 0.75),
    "c_ref_ac": (1.65, 0.65),
    "d_compile_ac": (1.35, 0.7),
    "c_ref_ac, raised": (1.2, None),
    "d_compile_ac, raised": (1.2, None),
}
# What of them another size must reach: the same within a tenth.
SHARE = {"micro": 1.0, "small": 0.9}
MFU_TARGET = 0.85  # bf16 fused
GROWTH_TARGET = 1.2  # MB for each token more in a pass
TREND_TARGET = 0.05  # between the slowest and the fastest window
AGREEMENT_TARGET = {"fp32": ("relative", 1e-5), "bf16": ("absolute", 2e-2)}


def verdict(met: bool) -> str:
    return "met" if met else "**not met**"


def spread(values: list) -> str:
    return f"{median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def about(result: dict, what: str) -> str:
    torch = f", yardsticks on torch {result['torch']}" if result["torch"] else ""
    return (
        f"{what}\n\n{result['date']}, {result['machine']}{torch}, `{result['command']}`; "
        f"load average before {result['load_before']:.1f}.\n\n"
    )


def at_least(value: float, target: float | None) -> str:
    return "" if target is None else f"at least {target}: {verdict(value >= target)}"


def at_most(value: float, target: float | None) -> str:
    return "" if target is None else f"at most {target}: {verdict(value <= target)}"


def comparison(config: str, result: dict) -> str:
    ours, theirs = result["ours"], result["theirs"]
    first = ours["bf16 fused"][0]
    lines = [
        about(result, f"### {config}, {first['parameters'] / 1e6:.1f} million parameters"),
        f"A step is {first['accumulation']} x {first['micro_batch']} sequences of {first['sequence_length']} tokens on "
        f"{first['threads']} threads, without dropout: forward, backward, clipping and AdamW. Medians over "
        f"{result['rounds']} round{'s' if result['rounds'] > 1 else ''} of {result['steps']} timed steps, with the range of all runs' medians; memory is the "
        "process's most resident (10^9 bytes).\n\n",
        "| ours | tokens/s | GB | utilisation | of GFLOP/s | |\n|---|---|---|---|---|---|\n",
    ]
    for which, reports in ours.items():
        mfu = median(report["mfu"] for report in reports)
        target = MFU_TARGET if config == "micro" and which == "bf16 fused" else None
        lines.append(
            f"| {which} | {spread([report['tokens_per_s'] for report in reports])} "
            f"| {median(report['peak_memory_bytes'] for report in reports) / 1e9:.2f} | {100 * mfu:.0f}% "
            f"| {median(report['matmul_peak_flops'] for report in reports) / 1e9:.0f} | {at_least(mfu, target)} |\n"
        )
    if theirs:
        lines.append(
            "\nYardsticks: the same model in PyTorch, each run right after one of ours; a ratio is the median of the pairs'. "
            "Raised: with malloc's thresholds raised, as ours does by itself. What each of them is, and what holds what is not "
            "met: `docs/speed.md`.\n\n"
            "| yardstick | tokens/s | ours | ours / it | | GB | ours / it | |\n|---|---|---|---|---|---|---|---|\n"
        )
    for name, its in theirs.items():
        faster, smaller = TARGETS[name]
        share = SHARE[config]
        faster, smaller = round(faster * share, 3), None if smaller is None else round(smaller / share, 3)
        ratio = median(its["ratios"])
        lines.append(
            f"| {name} | {spread(its['tokens_per_s'])} | {its['ours']} | {ratio:.2f} | {at_least(ratio, faster)} "
            f"| {its['peak_memory_bytes'] / 1e9:.2f} | {its['memory_ratio']:.2f} | {at_most(its['memory_ratio'], smaller)} |\n"
        )
    lines.append("\n" + by_part({which: ours[which] for which in ["bf16 fused", "fp32 fused"]}))
    return "".join(lines)


def by_part(ours: dict) -> str:
    """Milliseconds a step by part, means over the runs."""
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
    heading = ["ours", *(f"{size} sequences, GB" for size in sizes), "MB for each token more", ""]
    lines = [
        about(result, "### Memory for a larger pass"),
        "micro; a step is one pass. MB are 10^6 bytes.\n\n",
        f"| {' | '.join(heading)} |\n{'|---' * len(heading)}|\n",
    ]
    for which, peaks in result["peak_memory_bytes"].items():
        sizes = list(map(int, peaks))
        grown = (peaks[str(sizes[-1])] - peaks[str(sizes[0])]) / (512 * (sizes[-1] - sizes[0])) / 1e6
        cells = " | ".join(f"{peak / 1e9:.2f}" for peak in peaks.values())
        lines.append(f"| {which} | {cells} | {grown:.2f} | below {GROWTH_TARGET}: {verdict(grown < GROWTH_TARGET)} |\n")
    return "".join(lines)


def trend(result: dict) -> str:
    windows = result["window_seconds"]
    off = max(windows) / min(windows) - 1
    return about(result, "### Whether it stays so") + (
        f"micro, bf16 fused, {result['steps']} steps: medians of {result['window']} steps lie between {min(windows):.3f} and "
        f"{max(windows):.3f} s, the first at {windows[0]:.3f} and the last at {windows[-1]:.3f}; {100 * off:.1f}% between the slowest "
        f"and the fastest (at most {100 * TREND_TARGET:.0f}%: {verdict(off <= TREND_TARGET)}).\n"
    )


def agreement(result: dict) -> str:
    lines = [
        about(result, "### Fused and plain kernels"),
        f"micro, the same {result['steps']} steps with both; the largest difference of a step's loss.\n\n"
        "| ours | absolute | relative | |\n|---|---|---|---|\n",
    ]
    for precision, losses in result["losses"].items():
        pairs = list(zip(losses["fused"], losses["plain"], strict=True))
        difference = {
            "absolute": max(abs(fused - plain) for fused, plain in pairs),
            "relative": max(abs(fused - plain) / plain for fused, plain in pairs),
        }
        kind, most = AGREEMENT_TARGET[precision]
        lines.append(
            f"| {precision} | {difference['absolute']:.1e} | {difference['relative']:.1e} "
            f"| {kind} at most {most:.0e}: {verdict(difference[kind] <= most)} |\n"
        )
    return "".join(lines)


def text(results: dict) -> str:
    """Of what there is, in the order of the page."""
    blocks = [comparison(config, results[config]) for config in ["micro", "small"] if config in results]
    for kind, block in [("memory growth", memory_growth), ("trend", trend), ("agreement", agreement)]:
        if kind in results:
            blocks.append(block(results[kind]))
    return "## Training\n\n" + "\n".join(blocks)
