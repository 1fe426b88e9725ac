"""The curve of a vocabulary's size as a PNG: bits per byte of teachers, and parameters of the student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from statistics import NormalDist

from stlm_kd.artifacts.atomic import written_whole
from stlm_kd.reporting.figures import open_figure, short_number
from stlm_kd.statistics import CONFIDENCE


def draw_vocabulary_curve(
    bits: Mapping[str, Sequence[tuple[int, float, float | None]]],
    own: Mapping[str, tuple[int, float, float | None]],
    parameters: Mapping[str, Sequence[tuple[int, int]]],
    target: Path,
) -> None:
    """Draw a panel for each of the two over the size of the vocabulary; one without points is left out.

    If both are, there is no file.

    Args:
        bits: By teacher: size, bits per byte and standard error for each size of the student's vocabulary;
            an error that is not known is not drawn.
        own: The same for the own vocabulary of each of these teachers.
        parameters: By part of the student: size and number.
        target: The file.
    """
    known = {name: points for name, points in bits.items() if points}
    counted = {name: points for name, points in parameters.items() if points}
    reach = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    columns = bool(known) + bool(counted)
    if not columns:
        target.unlink(missing_ok=True)  # of an earlier command
        return
    with open_figure(6.5 * columns, 4, dpi=120, layout="constrained") as figure:
        if known:
            axes = figure.add_subplot(1, columns, 1)
            for place, (name, points) in enumerate(known.items()):
                sizes, values, errors = zip(*points, strict=True)
                halves = [nan if error is None else reach * error for error in errors]
                label = f"teacher {name}" + (", 95 % interval" if any(errors) else "")
                color = f"C{place}"
                axes.errorbar(sizes, values, yerr=halves, marker=".", capsize=3, color=color, label=label)
                size, value, _ = own[name]
                label = f"teacher {name}, its own {size:,} tokens"
                axes.axhline(value, color=color, alpha=0.5, linestyle=":")
                axes.plot(size, value, marker="D", color=color, linestyle=":", label=label)
            axes.set_ylabel("bits per byte, untrained")
        if counted:
            axes = figure.add_subplot(1, columns, columns)
            for name, numbers in counted.items():
                axes.plot(*zip(*numbers, strict=True), marker=".", label=name)
            axes.set_ylabel("parameters of the student")
            axes.set_ylim(bottom=0)
        for axes in figure.axes:
            axes.set_xlabel("tokens of the vocabulary")
            axes.grid(alpha=0.3)
            axes.legend()
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(lambda value, _: short_number(value))
        with written_whole(target) as unfinished:
            figure.savefig(unfinished, format="png")
