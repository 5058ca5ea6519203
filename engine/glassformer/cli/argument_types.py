"""Numbers as arguments: what a value must be, said in the error."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def _number(kind: type, accepts: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = float("nan")
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return parse


_LARGEST = 2**63 - 1
positive_int = _number(int, lambda n: 1 <= n <= _LARGEST, "a whole number from 1")
natural_int = _number(int, lambda n: 0 <= n <= _LARGEST, "a whole number from 0")
positive_float = _number(float, lambda x: 0 < x < float("inf"), "a number above 0")
natural_float = _number(float, lambda x: 0 <= x < float("inf"), "a number from 0")
probability = _number(float, lambda x: 0 <= x <= 1, "a number in [0, 1]")
