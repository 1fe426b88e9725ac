"""Reports: they say what a run's files say, escape it, need nothing beside them, refuse what is damaged."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from stlm_kd.artifacts.record import new_record
from stlm_kd.artifacts.reports import AdaptationReport, TrainingReport
from stlm_kd.artifacts.results import Row, SuiteResult
from stlm_kd.artifacts.saved_results import read_results
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.errors import CheckpointError
from stlm_kd.recipe import load, resolved_yaml
from stlm_kd.reporting.run_page.curves import Told, panels_of
from stlm_kd.reporting.run_page.gather import gather
from stlm_kd.reporting.run_page.page import report
from stlm_kd.reporting.tables.results import as_json
from tests.support.compared import classified
from tests.support.road import stlm_kd

STRANGE = r"""<script>alert("x")</script> [bold]&amp; 'q' <img src=x onerror=y> $\frac{$ {{ x }}"""
VOID = {"meta"}
TRAINING = TrainingReport(1234, 60, 7777, 999, 50, 3.25, 12.5, "done", 123_456_789)
ADAPTED = AdaptationReport(
    "some/model", "clm", "subword-mean", 900, 700, {"exact": 350}, 1.5, 2.25, 1.625, 500, 4321, 4096, 1111,
    13, 5.5, "done", {"labels": 1.0}, 0.75,
)  # fmt: skip


class Seen(HTMLParser):
    """A page as a browser takes it: elements in order, their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.pieces: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def words(self) -> str:
        return "".join(self.pieces)


def rows(name: str = "distilled student", remark: str = "") -> list[Row]:
    def scored(accuracy: float, first: int, count: int) -> tuple[tuple[SuiteResult, ...], ...]:
        return tuple((replace(classified(accuracy, first + n), notes=(remark,)),) for n in range(count))

    return [
        Row("teacher t", "teacher", 5555, None, None, (), scored(0.97, 50, 1)),
        Row(name, "student", 1234, 999, 7777, (1, 2), scored(0.85, 10, 2), "student", steps=60, flops=10**9),
        Row("no-teacher", "control", 1234, 999, 7777, (1, 2), scored(0.6, 20, 2), "no-teacher", steps=60),
    ]


def metrics(scale: float = 1.0, term: str = "labels") -> list[dict[str, object]]:
    measure = f"weights/of {term.replace('/', '|')}"
    steps = [
        {
            "kind": "step", "step": step, "loss": scale * 4 / step, "losses": {term: scale / step},
            "learning_rate": 1e-3, "measures": {"diito/layer 0": step / 128, measure: 0.5},
        }
        for step in (10, 20, 40)
    ]  # fmt: skip
    return [*steps, {"kind": "validation", "step": 40, "losses": {"labels": scale * 1.75}}]


def lines(values: Sequence[object]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def run_of(
    folder: Path, found: Sequence[Row] | None = None, *, words: str = "fine", term: str = "labels"
) -> Path:
    """A run with everything in it, in which ``words`` stand wherever words can."""
    folder.mkdir(parents=True)
    record = replace(new_record(words, "0" * 64, words), status="done", message=words, started="then")
    (folder / "run.json").write_text(json.dumps(asdict(record)))
    (folder / "recipe.yaml").write_text(resolved_yaml(load("sample-two-teachers")) + f"# {words}\n")
    table = ResultsTable(rows(words, words) if found is None else found)
    content = as_json(table, [f"remark {words}"], {})
    (folder / "results.json").write_text(json.dumps(content))
    for variant in ("student", "no-teacher"):
        for seed in (1, 2):
            place = folder / "students" / variant / f"seed-{seed}"
            place.mkdir(parents=True)
            (place / "report.json").write_text(json.dumps(asdict(replace(TRAINING, stopped=words))))
            (place / "metrics.jsonl").write_text(lines(metrics(seed, term)))
    place = folder / "making" / "gpt2" / "adaptation"
    place.mkdir(parents=True)
    (place / "report.json").write_text(json.dumps(asdict(replace(ADAPTED, teacher=words, init=words))))
    (place / "metrics.jsonl").write_text(lines(metrics(9)))
    return folder


def page_of(*runs: Path) -> str:
    target = runs[0].parent / "out" / "report.html"
    report([str(run) for run in runs], target=target)
    return target.read_text(encoding="utf-8")


def test_every_number_of_the_results_is_in_the_page_as_it_is(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    words = Seen(page_of(run)).words
    content = json.loads((run / "results.json").read_text())
    for row in content["rows"]:
        for found in row["estimates"].values() if row["seeds"] else ():
            assert f"{found['mean']:.4f} ± {found['half_width']:.4f}" in words
        for count in (row["parameters"], row["tokens_of_text"], row["tokens_seen"], row["steps"]):
            assert count is None or f"{count:,}" in words
    assert all(remark in words for remark in content["remarks"])
    shown = (
        "1.00e+09",
        "1.23e+08",
        "3.2500",
        "12.5",
        "step 50",
        "900 → 700",
        "50.0%",
        "2.2500",
        "1.6250",
        "4,096",
    )
    assert [number for number in shown if number not in words] == []


def test_rows_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(as_json(ResultsTable(rows()), ["a"], {})))
    found = read_results(tmp_path / "results.json")
    assert (found.rows, found.remarks) == (tuple(rows()), ("a",))


def test_each_logged_number_is_a_point_that_says_its_value(tmp_path: Path) -> None:
    words = Seen(page_of(run_of(tmp_path / "run"))).words
    for seed in (1, 2):
        for line in metrics(seed):
            step = line["step"]
            for value in (*line["losses"].values(), *([line["loss"]] if "loss" in line else [])):  # type: ignore[attr-defined]  # JSON
                assert f"fine, seed {seed}: {value:.4g} at step {step}" in words
        assert f"fine: layer 0, seed {seed}: 0.3125 at step 40" in words
    assert "gpt2, adaptation: 15.75 at step 40" in words


def test_what_stands_in_a_run_is_shown_and_never_becomes_part_of_the_page(tmp_path: Path) -> None:
    places = {words: tmp_path / name / "run" for words, name in ((STRANGE, "one"), ("fine", "two"))}
    strange, usual = (Seen(page_of(run_of(at, words=words, term=words))) for words, at in places.items())
    assert sorted(strange.tags) == sorted(usual.tags) and not strange.open
    assert {name for name, _ in strange.attributes} == {name for name, _ in usual.attributes}
    expected = [piece.replace("fine", STRANGE).replace("/two/", "/one/") for piece in usual.pieces]
    measure = STRANGE.replace("/", "|")
    assert Counter(strange.pieces) == Counter(
        piece.replace(f"of {STRANGE}", f"of {measure}") if f"of {STRANGE}" in piece else piece
        for piece in expected
    )


def test_a_page_needs_nothing_beside_it_and_runs_nothing(tmp_path: Path) -> None:
    page = page_of(run_of(tmp_path / "run"))
    seen = Seen(page)
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(seen.tags)
    names = {name for name, _ in seen.attributes}
    assert not {
        name for name in names if name.startswith("on") or name in ("src", "href", "xlink:href", "style")
    }
    assert "@import" not in page and "url(" not in page and "http:" not in page and "https:" not in page
    assert seen.attributes.count(("role", "img")) == seen.tags.count("figure") > 0
    assert page_of(tmp_path / "run") == page
    assert ("lang", "en") in seen.attributes and any(name == "viewport" for _, name in seen.attributes)


def test_a_run_that_only_adapts_tells_what_that_cost(tmp_path: Path) -> None:
    run, result = run_of(tmp_path / "run"), classified(0.7, 1)
    suites = {"gpt2, adapted": [result.to_json()]}
    content = {"adaptations": {"gpt2": asdict(ADAPTED)}, "suites": suites}
    (run / "results.json").write_text(json.dumps(content))
    words = Seen(page_of(run)).words
    assert "gpt2, adapted" in words and f"{result.score('examples', 'accuracy').value:.3f}" in words
    assert "new rows: exact 350; trained on 1 labels, 75.0% of the tokens in shared spans, 13 steps" in words


def test_pages_of_attributions_stand_in_frames_that_may_do_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (run / "attributions.html").write_text(f"<p>words</p>{STRANGE}")
    (run / "attributions-t-2.html").write_text("<p>others</p>")
    seen = Seen(page_of(run))
    shown = [value for name, value in seen.attributes if name == "srcdoc"]
    assert shown == ["<p>others</p>", f"<p>words</p>{STRANGE}"]
    assert seen.attributes.count(("sandbox", "")) == 2 and seen.tags.count("iframe") == 2
    assert "script" not in seen.tags and f"{run}/attributions-t-2.html" in seen.words
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in seen.attributes


def test_several_runs_are_compared_and_drawn_together(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / name, rows()) for name in ("one", "two")]
    words = Seen(page_of(*runs)).words
    for name in ("one", "two"):
        assert f"{name}: distilled student, seed 1: 1.75 at step 40" in words
    assert "corrected p" in words and "(baseline)" in words and "within noise" in words


def test_what_a_run_lacks_is_said_or_left_out(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (run / "results.json").unlink()
    (run / "recipe.yaml").write_text("task: none\n")
    words = Seen(page_of(run)).words
    assert "no results.json: the run is done" in words and "the recipe is not one" in words
    assert "Scores" not in words and "student, seed 1: 1.75 at step 40" in words
    both = gather([str(run), str(run_of(tmp_path / "whole"))])
    assert both.comparison is None and "no results.json in it" in both.not_compared
    found = gather([str(run_of(tmp_path / "alone", rows()[1:2]))])
    assert found.comparison is None and "name a second to compare" in found.not_compared


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.json", "{"),
        ("results.json", '{"rows": [{"name": "x"}]}'),
        ("results.json", '{"adaptations": {"a": {"nonsense": 1}}}'),
        ("run.json", "[]"),
        ("students/student/seed-1/report.json", '{"steps": 1}'),
        ("making/gpt2/adaptation/report.json", "[]"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(tmp_path: Path, name: str, content: str) -> None:
    run = run_of(tmp_path / "run")
    (run / name).write_text(content)
    with pytest.raises(CheckpointError, match=name):
        page_of(run)
    result = stlm_kd("report", str(run), "--html", str(tmp_path / "x.html"))
    assert result.exit_code == 1 and not (tmp_path / "x.html").exists()


def test_numbers_that_are_none_are_not_drawn() -> None:
    values: list[object] = [math.nan, math.inf, "7", None, True, [1], 2.5]
    told = [{"kind": "step", "step": step, "losses": {"a": value}} for step, value in enumerate(values)]
    told += [
        {"kind": "step", "step": "x", "losses": {"a": 1.0}},
        {"kind": "step", "losses": 3},
        {"kind": "note"},
    ]
    (panel,) = panels_of([Told("s", "1", told)], unit="")  # type: ignore[arg-type]  # lines as JSON has them
    assert [line.points for line in panel.lines] == [((6.0, 2.5),)]
    assert panels_of([Told("s", "1", told[:6])], unit="") == ()  # type: ignore[arg-type]  # likewise
