"""The grid of trainings by processes, engine, split, task, objectives and placement, and pairwise covers.

A cell that a recipe cannot ask for is refused by the recipe's own validation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from itertools import combinations, product
from typing import Any

from stlm_kd.errors import RecipeError
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.load import from_values

EFFECTIVE_BATCH = 16
KL = {"loss": "forward_kl", "temperature": 2.0}
INTERCHANGE = {"loss": "diito", "alignment": {"0": [0, 1], "1": [2, 3]}, "fraction": 0.5}
OBJECTIVES: dict[str, list[dict[str, Any]]] = {
    "labels": [],
    "chunked KL": [KL],
    "dense KL": [KL],
    "hints": [{"loss": "hint", "sites": "full"}, {"loss": "cosine", "sites": "last"}],
    "embeddings": [{"loss": "hint", "sites": "embeddings"}],
    "attention": [{"loss": "attention_cross_entropy", "sites": "full"}],
    "interchange in the batch": [INTERCHANGE],
    "interchange from a pool": [
        {**INTERCHANGE, "source": {"name": "other-example", "pairing": "independent"}}
    ],
    "learned gate": [KL],
    "two teachers": [KL, {"loss": "reverse_kl", "teacher": "b"}],
}
TWO_TEACHERS = ("learned gate", "two teachers")
AXES: dict[str, tuple[Any, ...]] = {
    "processes": (1, 2, 4),
    "zero": (None, 0, 1, 2, 3),
    "accumulation": (1, 4),
    "optimizer": ("sgd", "adamw"),
    "task": ("clm", "mlm", "classification"),
    "objectives": tuple(OBJECTIVES),
    "placement": ("replicate", "shard"),
}


@dataclass(frozen=True)
class Cell:
    """One training. ``accumulation``: micro-batches of a process in a step whose rows are all there.

    ``placement`` is that of the teachers.
    """

    processes: int
    zero: int | None
    accumulation: int
    optimizer: str
    task: str
    objectives: str
    placement: str

    @property
    def engine(self) -> str:
        return "ddp" if self.zero is None else f"zero {self.zero}"

    @property
    def micro_batch(self) -> int:
        return EFFECTIVE_BATCH // (self.processes * self.accumulation)

    def __str__(self) -> str:
        split = f"{self.processes} x {self.accumulation}"
        return f"{self.objectives}, {self.task}, {self.engine}, {split}, {self.optimizer}, {self.placement}"


@cache
def recipe_of(cell: Cell) -> Recipe:
    """What the cell asks for, as a recipe; RecipeError if it is refused."""
    labelled = cell.task == "classification"
    text = "sentiment" if labelled else "train"
    held_out = {"sample": "sentiment", "split": "validation"} if labelled else {"sample": "validation"}
    engine: dict[str, Any] = {} if cell.zero is None else {"deepspeed": {"zero": cell.zero}}
    if cell.objectives == "dense KL":
        engine["vocabulary_loss"] = "dense"
    names = "ab" if cell.objectives in TWO_TEACHERS else "a" if OBJECTIVES[cell.objectives] else ""
    values: dict[str, Any] = {
        "task": cell.task,
        "student": {
            "tokenizer": "own",
            "architecture": {"model_type": "bert" if labelled else _family(cell)},
        },
        "teachers": [
            {"name": name, "model": f"teacher-{name}", "placement": cell.placement} for name in names
        ],
        "data": {
            "train": {"sample": text, "size": 200},
            "validation": {**held_out, "size": 50},
            "context": 12,
        },
        "objectives": [{"loss": "labels", "weight": 0.5}, *OBJECTIVES[cell.objectives]],
        "train": {"steps": 3, "effective_batch": EFFECTIVE_BATCH, "micro_batch": cell.micro_batch},
        "engine": engine,
        "eval": [],
    }
    if cell.objectives == "learned gate":
        values["combine"] = {"how": "learned"}
    return from_values(values, origin="grid.yaml")


def _family(cell: Cell) -> str:
    return "gpt2" if cell.task == "clm" else "bert"


def refusal(cell: Cell) -> str | None:
    """Why a cell is refused, as a user would read it; None if it is not."""
    try:
        recipe_of(cell)
    except RecipeError as error:
        return str(error).splitlines()[-1].strip()
    return None


def all_cells() -> list[Cell]:
    """The whole grid, in the order of its axes; only several processes divide teachers."""
    cells = [Cell(*values) for values in product(*AXES.values())]
    return [
        cell
        for cell in cells
        if cell.placement == "replicate" or (cell.processes > 1 and OBJECTIVES[cell.objectives])
    ]


Pair = tuple[tuple[int, object], tuple[int, object]]


def pairs_of(cell: Cell) -> set[Pair]:
    """The pairs of values of a cell, by the numbers of their axes."""
    return set(combinations(enumerate(astuple(cell)), 2))


def covering(cells: Iterable[Cell]) -> list[Cell]:
    """A subset with every pair of values that is in ``cells``; greedy, so nearly the smallest.

    Of cells that add as many pairs, those of fewer processes are taken, which are faster.
    """
    remaining: Sequence[Cell] = sorted(
        cells, key=lambda cell: (cell.processes, cell.optimizer != "sgd", str(cell))
    )
    missing = set[Pair]().union(*map(pairs_of, remaining))
    chosen = []
    while missing:
        gains = {cell: len(pairs_of(cell) & missing) for cell in remaining}
        best = max(remaining, key=lambda cell: gains[cell])
        chosen.append(best)
        missing -= pairs_of(best)
        remaining = [cell for cell in remaining if gains[cell] and cell != best]
    return chosen
