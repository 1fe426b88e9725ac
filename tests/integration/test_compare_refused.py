"""What a comparison refuses: other examples, other tokens, other tasks, damaged files, wrong names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stlm_kd.artifacts.results import ExampleScore, Json, Row, Score, SuiteResult, text_hash
from stlm_kd.comparison.compare import compare, compare_with
from stlm_kd.comparison.entries import scored_model
from stlm_kd.errors import CheckpointError, DataError, UsageError
from tests.support.compared import LABELS, classified, read_text, run_folder, score_file, whole_run
from tests.support.road import stlm_kd


@pytest.fixture
def run(tmp_path: Path) -> str:
    return whole_run(tmp_path / "run")


def masked(tokens: int, windows: Sequence[float], metric: str, suite: str) -> SuiteResult:
    mean = float(np.mean(windows))
    score = Score("text", metric, mean, 0.02, len(windows), higher_is_better=False)
    rows = tuple(ExampleScore("text", str(place), metric, value) for place, value in enumerate(windows))
    report: dict[str, Json] = {"documents": 7, "tokens": tokens, "windows": len(windows)}
    return SuiteResult(suite, (score,), rows, report=report)


def test_losses_per_token_of_other_tokenizers_are_refused_and_bits_per_byte_offered(tmp_path: Path) -> None:
    losses = {name: [masked(tokens, [1.0, 2.0, 2.5], "masked_loss", "masked-loss")] for name, tokens in
              (("a", 100), ("b", 90))}  # fmt: skip
    with pytest.raises(DataError, match=r"masked_loss: b and a are not compared: .* bits per byte compare"):
        compare([score_file(tmp_path / "s.json", losses)])
    windows = [0.5, 0.6]
    both = {
        name: [*losses[name], masked(tokens, windows, "pseudo_bits_per_byte", "pseudo-perplexity")]
        for name, tokens in (("a", 100), ("b", 90))
    }
    found = compare([score_file(tmp_path / "b.json", both)])
    (one,) = found.differences
    assert (one.metric.metric, one.evidence.num_examples) == ("pseudo_bits_per_byte", 0)
    assert any("masked_loss" in note for note in found.notes)


def with_other_ids() -> SuiteResult:
    return classified(0.7, 2, prefix="x")


def with_fewer() -> SuiteResult:
    return classified(0.7, 2, labels=LABELS[:200])


def with_other_labels() -> SuiteResult:
    return classified(0.7, 2, labels=1 - LABELS)


def with_other_texts() -> SuiteResult:
    found = classified(0.7, 2)
    return replace(found, report={**found.report, "texts": "another hash"})


def without_texts() -> SuiteResult:
    found = classified(0.7, 2)
    return replace(found, report={name: fact for name, fact in found.report.items() if name != "texts"})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            with_other_ids,
            r"0 of 300 and 300 ids are shared \('x0' is only here; '0' is only in the baseline",
        ),
        (with_fewer, r"200 of 200 and 300 ids are shared \('200' is only in the baseline\)"),
        (with_other_labels, r"labels: example '0' has \d here and \d in the baseline"),
        (
            with_other_texts,
            "the same ids have different texts, or the same texts in another order: .* column idx or id",
        ),
        (without_texts, "one of them does not record its texts, and its ids are only row numbers"),
    ],
)
def test_results_of_other_examples_are_refused(
    other: Callable[[], SuiteResult], message: str, tmp_path: Path
) -> None:
    path = score_file(tmp_path / "s.json", {"a": [classified(0.8, 1)], "b": [other()]})
    with pytest.raises(DataError, match=message) as caught:
        compare([path])
    assert "b, classification examples" in str(caught.value) and "--data FILE" in str(caught.value)
    assert stlm_kd("compare", path).exit_code == 1


def test_ids_of_their_own_join_results_that_do_not_say_their_texts(tmp_path: Path) -> None:
    first, other = (classified(accuracy, seed, prefix="q") for accuracy, seed in ((0.8, 1), (0.7, 2)))
    unknown = replace(other, report={**other.report, "texts": None})
    path = score_file(tmp_path / "s.json", {"a": [first], "b": [unknown]})
    assert {one.evidence.num_examples for one in compare([path]).differences} == {300}


def test_another_text_of_as_many_documents_is_refused(tmp_path: Path) -> None:
    models = {"a": [read_text([100.0, 110.0])], "b": [read_text([100.0, 110.0], size=399)]}
    with pytest.raises(DataError, match=r"(?s)bytes: 798 here, 800 in the baseline.*bits per byte") as caught:
        compare([score_file(tmp_path / "s.json", models)])
    assert "\n" in str(caught.value)


@pytest.mark.parametrize(
    ("fact", "told", "message"),
    [
        ("n-shot", (0, 5), "n-shot: 5 here, 0 in the baseline"),
        ("requests", ("a1", "b2"), "b, lm-eval t: their texts differ"),
    ],
)
def test_tasks_of_other_shots_or_texts_are_refused(
    fact: str, told: tuple[Json, Json], message: str, tmp_path: Path
) -> None:
    models = {
        name: [
            SuiteResult(
                "lm-eval",
                (Score("t", "acc", 0.5, 0.1, 2),),
                tuple(ExampleScore("t", str(place), "acc", float(place)) for place in range(2)),
                report={fact: {"t": one}},
            )
        ]
        for name, one in zip("ab", told, strict=True)
    }
    with pytest.raises(DataError, match=message):
        compare([score_file(tmp_path / "s.json", models)])


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"a": 1}', '{"a": [{"suite": "s"}]}', '{"rows": [1], "remarks": []}']
)
def test_a_file_that_is_something_else_is_one_message(content: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"s\.json: "):
        compare([str(tmp_path / "s.json")])


def test_examples_that_share_an_id_are_refused(tmp_path: Path) -> None:
    found = classified(0.8, 1)
    broken = replace(found, examples=(*found.examples[:-1], found.examples[0]))
    with pytest.raises(CheckpointError, match="two examples of classification have one id"):
        compare([score_file(tmp_path / "s.json", {"a": [found], "b": [broken]})])


def test_an_unfinished_run_and_what_is_not_there_are_told(tmp_path: Path) -> None:
    unfinished = run_folder(tmp_path / "run", {})
    (tmp_path / "run" / "results.json").unlink()
    for words, code, message in (
        ([unfinished], 5, "no results.json in it"),
        ([str(tmp_path / "nowhere")], 5, "no such run folder or file of scores"),
        ([str(tmp_path)], 1, "not a run's folder"),
        ([unfinished, unfinished], 2, "given twice"),
        ([unfinished, f"{tmp_path}/../{tmp_path.name}/run/"], 2, "given twice"),
    ):
        result = stlm_kd("compare", *words)
        assert (result.exit_code, message in result.stderr) == (code, True), result.output


def test_names_on_the_command_line_are_checked(run: str) -> None:
    with pytest.raises(UsageError, match=r"--baseline no-techer: no such row \(did you mean no-teacher\?\)"):
        compare([run], baseline="no-techer")
    with pytest.raises(UsageError, match=r"--baseline x: no such row; known: all-data, no-teacher, [^;]+$"):
        compare([run], baseline="x")
    with pytest.raises(UsageError, match=r"--metric acuracy: .* \(did you mean accuracy\?\)"):
        compare([run], only=["acuracy"])


def test_one_row_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one row"):
        compare([score_file(tmp_path / "s.json", {"a": [classified(0.8, 1)]})])


def test_runs_of_other_tasks_are_refused(run: str, tmp_path: Path) -> None:
    path = score_file(tmp_path / "s.json", {"a": [read_text([1.0, 2.0])]})
    with pytest.raises(DataError, match=r"(?s)not the same tasks.*perplexity text bits_per_byte"):
        compare([run, path])


def test_equal_ids_with_other_texts_are_not_paired() -> None:
    def row(name: str, texts: dict[str, str]) -> Row:
        examples = tuple(ExampleScore("t", one, "acc", float(one == name)) for one in "abc")
        score = Score("t", "acc", 1 / 3, 0.3, 3)
        return scored_model(
            name, [[SuiteResult("own", (score,), examples, texts={"t": texts} if texts else {})]]
        )

    hashes = {name: text_hash(f"text of {name}") for name in "abc"}
    first, same, unknown = (row(*one) for one in (("a", hashes), ("b", dict(hashes)), ("c", {})))
    assert len(compare_with(first, [first, same, unknown]).differences) == 2
    other = row("b", {**hashes, "c": text_hash("another text")})
    with pytest.raises(DataError, match="the texts of 1 of 3 examples differ, such as that of 'c'"):
        compare_with(first, [first, other])
