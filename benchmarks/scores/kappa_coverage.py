"""How often the interval of Cohen's κ holds the true one, and how wide it is, by simulation.

    python benchmarks/scores/kappa_coverage.py [--sets 2000]

Target: .93 and more in every row. Sets of examples in which κ is not defined do not count.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stlm_kd.eval.agreement.predictions import cohen_kappa

SIZES = (30, 50, 100, 300)
KAPPAS = (0.0, 0.3, 0.6, 0.8, 0.9, 0.95)
CLASSES = ((0.5, 0.5), (0.8, 0.2), (0.9, 0.1), (0.95, 0.05), (0.4, 0.3, 0.3), (0.8, 0.15, 0.05), (0.25,) * 4)


@dataclass(frozen=True, slots=True)
class Coverage:
    """The share of intervals that hold the true κ, and their mean width."""

    share: float
    width: float


def table_of(kappa: float, classes: Sequence[float]) -> npt.NDArray[np.float64]:
    """Shares of pairs of classes, (C, C), with this κ, where both models give each class as often."""
    shares = np.array(classes)
    return kappa * np.diag(shares) + (1 - kappa) * np.outer(shares, shares)


def coverage(
    table: npt.NDArray[np.float64], kappa: float, *, examples: int, sets: int, seed: int = 0
) -> Coverage:
    """Over drawn sets of examples; equal ones are computed once."""
    drawn = np.random.default_rng(seed).multinomial(examples, table.reshape(-1), size=sets)
    cells, counts = np.unique(drawn, axis=0, return_counts=True)
    held, widths, weights = [], [], []
    for cell, count in zip(cells, counts, strict=True):
        first, second = np.divmod(np.repeat(np.arange(table.size), cell), len(table))
        found = cohen_kappa(first, second)
        if found.low is not None and found.high is not None:
            held.append(found.low <= kappa <= found.high)
            widths.append(found.high - found.low)
            weights.append(count)
    return Coverage(*(float(np.average(values, weights=weights)) for values in (held, widths)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=2000)
    sets = parser.parse_args().sets
    print("examples  kappa  classes                  coverage  width")
    for examples in SIZES:
        for classes in CLASSES:
            for kappa in KAPPAS:
                found = coverage(table_of(kappa, classes), kappa, examples=examples, sets=sets)
                shares = " ".join(f"{share:g}" for share in classes)
                print(f"{examples:8d}  {kappa:5.2f}  {shares:23s}  {found.share:8.3f}  {found.width:.3f}")


if __name__ == "__main__":
    main()
