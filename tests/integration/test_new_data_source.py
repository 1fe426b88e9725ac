"""A new data source is one file: recipes name it, check its options, read it, and key stages by it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SOURCE = '''
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

from annotated_types import Ge

from stlm_kd.data.sources import expanded, file_facts, register_data_source


def identity(path: str, /, **options: object) -> list[object]:
    return ["web-dump", file_facts([expanded(path)]), options]


def rows(path: str, columns: Sequence[str], optional: Sequence[str], /) -> Iterator[tuple[str, dict]]:
    for number, page in enumerate(expanded(path).read_text().split("%%"), start=1):
        yield f"{path}: page {number}", {"sentence": page, "label": number % 2}


@register_data_source(
    "web-dump",
    identity=identity,
    rows=rows,
    files=lambda path, labelled: [expanded(path)],
    noun="pages of the web",
)
def web_dump(path: str, /, *, shortest: Annotated[int, Ge(1)] = 1) -> Iterator[str]:
    """The pages of a dump, which %% separates, that have enough characters."""
    for page in expanded(path).read_text().split("%%"):
        if len(page) >= shortest:
            yield page
'''


PROBE = """
import json, sys
from pathlib import Path

import web
from stlm_kd.data.labelled import LabelledSource, read_examples
from stlm_kd.data.sources import Source, documents, fingerprint
from stlm_kd.errors import StlmKdError
from stlm_kd.recipe import load


def fault(change):
    try:
        load("plain.yaml", [f"data.train={{{change}}}"])
    except StlmKdError as error:
        return str(error)


Path("two.dump").write_text("one%%three")
of = {"web-dump": "two.dump"}
print(json.dumps({
    "texts": [*documents(Source(**of, shortest=4))],
    "rows": read_examples(LabelledSource(**of)).texts,
    "prints": len({fingerprint(Source(**of, **more)) for more in ({}, {"shortest": 1}, {"shortest": 2})}),
    "faults": [fault(change) for change in sys.argv[1:]],
}))
"""


@pytest.fixture
def dump(place: Path) -> Path:
    """The folder of the recipes, with a module that registers a source, and a dump of its kind."""
    (place / "web.py").write_text(SOURCE)
    pages = (place / "train.txt").read_text().split("\n")
    (place / "pages.dump").write_text("%%".join([*pages, "a dog"]))
    return place


def command(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(place)]), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=place, env=variables, capture_output=True, text=True)


def told(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return command(place, "-m", "stlm_kd", "--import", "web", *words)


@pytest.mark.long
def test_a_recipe_reads_text_from_a_users_source(dump: Path, tmp_path: Path) -> None:
    given = "data.train={web-dump: pages.dump, shortest: 8}"
    distil = ("distill", "-r", "plain.yaml", given)
    planned = told(dump, *distil, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "train on web-dump pages.dump (shortest 8, domain default, weight 1)" in planned.stdout
    stages = []
    for page in ("", "a cat"):
        with (dump / "pages.dump").open("a") as file:
            file.write(page)
        done = told(dump, *distil, "--output-dir", str(tmp_path), "--json")
        assert done.returncode == 0, done.stderr
        stages.append(len(list(tmp_path.glob("stages/model-*"))))
    assert stages == [1, 2], "keyed by the content that its identity names"
    stored = (Path(json.loads(done.stdout)["folder"]) / "recipe.yaml").read_text()
    assert "web-dump: pages.dump" in stored and "shortest: 8" in stored
    (dump / "copy.txt").write_bytes((dump / "pages.dump").read_bytes())
    same = told(dump, *distil, "data.validation=copy.txt", "--output-dir", str(tmp_path))
    assert same.returncode == 1
    assert "copy.txt has the same content as the training file pages.dump" in same.stderr
    (dump / "pages.dump").unlink()
    gone = told(dump, *distil, "--output-dir", str(tmp_path))
    assert gone.returncode == 5 and "pages.dump: cannot be read (No such file or directory)" in gone.stderr


FAULTS = {
    "web-dump: pages.dump, shortest: x": "'x' found; expected an integer",
    "web-dump: pages.dump, shortest: 0": "0 found; expected at least 1",
    "web-dump: 3": "3 found; expected text",
    "web-dump: pages.dump, shortes: 3": "not a key of a source (did you mean shortest?)",
    "web-dmp: pages.dump": "not a key of a source (did you mean web-dump?)",
    "web-dump: pages.dump, size: 3": "only for generated text (sample: …)",
    "path: train.txt, shortest: 3": "only for pages of the web (web-dump: …)",
    "path: a.txt, web-dump: b": "and web-dump given; expected exactly one of path, hub, sample, web-dump",
}


def test_a_users_source_is_checked_read_and_hashed(dump: Path) -> None:
    done = command(dump, "-c", PROBE, *FAULTS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["texts"], found["rows"], found["prints"]) == (["three"], [["one"], ["three"]], 2)
    for message, expected in zip(found["faults"], FAULTS.values(), strict=True):
        assert "1 fault\n" in message and message.endswith(expected)
    wrong = told(dump, "recipe", "validate", "plain.yaml", "data.train={web-dump: a, shortest: x}")
    assert wrong.returncode == 3 and wrong.stderr.count("\n") == 2
    assert wrong.stderr.rstrip().endswith("): 'x' found; expected an integer")
