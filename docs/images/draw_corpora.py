"""Draw what corpora of growing size cost: ``python docs/images/draw_corpora.py RECORD TARGET.svg``.

RECORD is what ``benchmarks/data/corpus.py start --record`` wrote.
"""

import json
import sys
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure

COLOURS = {
    "packed": "#0b6e99",
    "packed in memory, as each process did before": "#d08c2e",
    "first start": "#5b8c5a",
    "second start": "#7a4988",
    "8 at once, the slowest": "#999999",
}


def draw(record: str, target: str) -> None:
    """Memory and seconds against the size of the store, one line for each thing that was measured."""
    rows = [json.loads(line) for line in Path(record).read_text("utf-8").splitlines()]
    rcParams.update({"svg.hashsalt": "stlm-kd", "svg.fonttype": "none", "font.size": 11})
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for place, (measure, label) in enumerate((("mib", "peak memory, MiB"), ("seconds", "seconds"))):
        axes = figure.add_subplot(1, 2, place + 1)
        for what, colour in COLOURS.items():
            own = sorted((row["gigabytes"], row[measure]) for row in rows if row["what"] == what)
            axes.loglog(*zip(*own, strict=True), "o-", color=colour, label=what, markersize=4)
        axes.set_xlabel("token store, GB")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(target, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    draw(*sys.argv[1:])
