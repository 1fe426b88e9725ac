"""Draw the README's picture from a run of its demo: ``python docs/images/draw.py RUN TARGET.svg``."""

import sys

from matplotlib import rcParams
from matplotlib.figure import Figure

import stlm_kd
from stlm_kd.comparison.entries import read_rows
from stlm_kd.comparison.results_table import ResultsTable

COLOURS = {"student": "#0b6e99", "control": "#999999"}


def draw(run: str, target: str) -> None:
    """Bits per byte of all rows: 95 % intervals over seeds; for single models, ± a standard error."""
    table = ResultsTable(read_rows([str(stlm_kd.open_run(run).path)]))
    metric = next(metric for metric in table.metrics if metric.metric == "bits_per_byte")
    rcParams.update({"svg.hashsalt": "stlm-kd", "svg.fonttype": "none", "font.size": 11})
    figure = Figure(figsize=(8, 0.42 * len(table.rows) + 0.9), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(table.rows):
        found = table.spread(row, metric)
        assert found is not None
        colour = COLOURS.get(row.kind, "#d08c2e")
        axes.errorbar(found.mean, place, xerr=found.half_width, fmt="o", capsize=4, color=colour)
        axes.plot(found.values, [place] * len(found.values), "|", color=colour, alpha=0.5)
    axes.set_yticks(range(len(table.rows)), [row.name for row in table.rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("bits per byte of held-out synthetic text (lower is better)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(*sys.argv[1:])
