"""Results of suites, their JSON, their options and their table."""

import json

import pytest
from rich.console import Console

from stlm_kd.artifacts.results import ExampleScore, Score, SuiteResult
from stlm_kd.eval import SUITES
from stlm_kd.reporting.tables.scores import score_table

RESULT = SuiteResult(
    "lm-eval",
    (
        Score("blimp", "acc", 0.6543, 0.0021, 67_000, choices=2, chance=0.5),
        Score("blimp_causative", "acc", 0.7, 0.1, 1000, choices=2, chance=0.5, part_of="blimp"),
        Score("text", "bits_per_byte", 1.25, None, 3, higher_is_better=False),
    ),
    (ExampleScore("blimp_causative", "0", "acc", 1.0),),
    ("rows from local files",),
    {"results": {"blimp": {"acc,none": 0.6543}}},
)


def shown(**results: list[SuiteResult]) -> str:
    console = Console(width=140, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(score_table(results))
    return capture.get()


def test_json_keeps_everything() -> None:
    assert SuiteResult.from_json(json.loads(json.dumps(RESULT.to_json()))) == RESULT


def test_a_score_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match="no f1 of blimp"):
        RESULT.score("blimp", "f1")


def test_the_table_shows_chance_and_errors_and_leaves_parts_out() -> None:
    other = SuiteResult("lm-eval", (Score("blimp", "acc", 0.5, 0.002, 67_000, choices=2, chance=0.5),))
    table = shown(student=[RESULT], control=[other])
    row = next(line for line in table.splitlines() if " blimp " in line)
    for cell in ("67,000", " 2 ", "0.500", "0.654 ± 0.002", "0.500 ± 0.002"):
        assert cell in row
    assert "blimp_causative" not in table
    assert "bits_per_byte ↓" in table
    assert "rows from local files" in table


def test_models_scored_on_other_examples_are_not_passed_off_as_comparable() -> None:
    fewer = SuiteResult("lm-eval", (Score("blimp", "acc", 0.5, 0.1, 10, choices=2, chance=0.5),))
    assert "10 to 67,000" in shown(student=[RESULT], control=[fewer])


def test_where_nothing_is_chosen_the_table_has_no_column_of_chance() -> None:
    table = shown(student=[SuiteResult("perplexity", RESULT.scores[2:])])
    assert "bits_per_byte" in table and "chance" not in table and "choices" not in table
    assert "chance" in shown(student=[RESULT])


def test_the_options_of_the_suites_are_known_to_the_recipe() -> None:
    labelled = {"classification", "regression"}
    others = {"agreement", "interchange", "lm-eval", "masked-loss", "perplexity", "pseudo-perplexity"}
    assert {name for name in SUITES if not SUITES[name].fine_tunes} == others | labelled
    for suite in labelled:
        assert list(SUITES.options(suite)) == ["context", "batch_size", "precision"]
    assert list(SUITES.options("perplexity")) == ["on", "window", "stride", "batch_size", "precision", "hub"]
    pseudo = SUITES.options("pseudo-perplexity")
    assert list(pseudo) == ["window", "tokens", "seed", "batch_size", "precision"]
    assert list(SUITES.options("masked-loss")) == ["share", "seed", "window", "batch_size", "precision"]
    beside = ["alignment", "source", "positions", "rows", "context", "seed"]
    assert list(SUITES.options("interchange")) == beside
    options = SUITES.options("lm-eval")
    assert list(options) == ["tasks", "limit", "num_fewshot", "batch_size", "precision", "source", "hub"]
    assert options["batch_size"][1] == 16
