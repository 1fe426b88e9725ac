"""Sources with shares: their part of what is trained on, and how often each is repeated."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from stlm_kd.pipeline.builders.data import BatchSizes, PackedText, build_training_data, repeats_note
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stage_keys import data_key
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.recipe import load

TWO = "data.train=[{{path: train.txt, documents: line, {}}}, {{sample: train, size: 20k, {}}}]"


def test_shares_are_those_of_the_rows_that_are_read(place: Path, tmp_path: Path) -> None:
    recipe = load("plain.yaml", [TWO.format("share: 0.25", "share: 0.75")])
    data = build_training_data(setup_of(recipe, RunContext(tmp_path)), fraction=None, seed=1, readers={})
    assert isinstance(data, PackedText)
    first, second = map(len, data.parts)
    assert [part.weight for part in data.parts] == pytest.approx(
        [0.25 * (first + second) / first, 0.75 * (first + second) / second]
    )
    stream = data.stream(BatchSizes(8, 8), seed=1)
    rows: Counter[bool] = Counter()
    for step in range(3 * stream.steps_per_epoch):
        for batch in stream.step(step):
            rows.update((batch.example_ids >= first).tolist())
    assert rows[True] / rows.total() == pytest.approx(0.75, abs=0.02)
    (note,) = repeats_note(recipe, data, 3.0)
    read = [count / size for count, size in ((rows[False], first), (rows[True], second))]
    noted = [float(words.split()[0].strip(",")) for words in re.split("train.txt |sample train ", note)[1:]]
    assert noted == pytest.approx(read, rel=0.05)
    assert note.endswith("(repeated)") and note.count("(repeated)") == (read[0] > 1) + 1


def test_sources_that_are_read_equally_often_are_not_noted(place: Path, tmp_path: Path) -> None:
    recipes = [load("plain.yaml", [TWO.format("weight: 1", f"weight: {weight}")]) for weight in (1, 2)]
    notes = []
    for recipe in recipes:
        setup = setup_of(recipe, RunContext(tmp_path))
        data = build_training_data(setup, fraction=None, seed=1, readers={})
        notes.append(repeats_note(recipe, data, 0.5))
    assert notes == [(), ("epochs of each source: train.txt 0.5, sample train 1",)]
    shared = load("plain.yaml", [TWO.format("share: 0.5", "share: 0.5")])
    assert len({str(data_key(one, 1.0)) for one in (*recipes, shared)}) == 3
