"""Types of command-line arguments, for argparse. This module does not need PyTorch."""

import argparse
import math


def positive_int(text: str) -> int:
    return _positive(int, "a positive integer", text)


def positive_float(text: str) -> float:
    return _positive(float, "a positive number", text)


def _positive(convert, what: str, text: str):
    try:
        value = convert(text)
    except ValueError:
        value = 0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not {what}")
    return value
