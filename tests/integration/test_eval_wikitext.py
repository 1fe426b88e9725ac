"""Perplexity on WikiText: the same articles from a file and from the Hub; and ``stlm`` as one name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stlm_kd.data.sources import hub
from stlm_kd.errors import MissingResourceError, RecipeError, UsageError
from stlm_kd.eval import SUITES
from stlm_kd.eval.language_modeling import wikitext
from stlm_kd.pipeline.scoring.evaluate import evaluate
from stlm_kd.recipe import load
from stlm_kd.recipe.suites import suites

LINES = [" \n", " = A = \n", " \n", "the dog sees the cat\n", " \n", " = B = \n", " \n", "a cat\n"]


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "lm" / "wikitext-2-raw"
    folder.mkdir(parents=True)
    (folder / "test.txt").write_text("".join(LINES), encoding="utf-8")
    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path))
    return folder / "test.txt"


def test_the_articles_are_the_same_from_a_file_and_from_the_hub(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = wikitext.articles()
    assert [text.split()[1] for text in own] == ["A", "B"]

    def rows_of_hub(dataset: str, *asked: object) -> Iterator[tuple[str, dict[str, str]]]:
        assert (dataset, *asked) == (*wikitext.HUB, "test", None, ["text"])
        return (("row", {"text": line}) for line in of_hub)

    of_hub = ["" if line.isspace() else line for line in LINES]
    monkeypatch.setattr(wikitext, "identity", lambda hub: "known")
    monkeypatch.setattr(hub, "_rows_of_hub", rows_of_hub)
    local.unlink()
    assert wikitext.articles() == own


def test_perplexity_of_wikitext_is_that_of_the_same_text_held_out(local: Path, place: Path) -> None:
    (place / "wiki.txt").write_text("".join(LINES), encoding="utf-8")
    given = {"text": None, "label": None, "trust_remote_code": False}
    found = [
        evaluate(["same"], suites=[{"suite": "perplexity", "on": on}], data=data, **given)["same"][0]  # type: ignore[arg-type]
        for on, data in (("wikitext", []), ("held-out", ["wiki.txt"]))
    ]
    assert found[0].scores == found[1].scores
    assert (
        found[0].notes[0] == "perplexity: on WikiText-2's test text" and found[0].notes[1:] == found[1].notes
    )


def test_a_kept_perplexity_is_of_the_bytes_of_wikitext(local: Path) -> None:
    before = SUITES["perplexity"].identity({"on": "wikitext"})
    local.write_text("other", encoding="utf-8")
    assert SUITES["perplexity"].identity({"on": "wikitext"}) != before


def test_where_wikitext_may_lie_is_told_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path))
    with pytest.raises(
        MissingResourceError, match=r"wikitext: no test.txt\[.gz\] .*lm/wikitext-2-raw.*Salesforce"
    ):
        wikitext.articles()


def test_a_recipe_without_held_out_text_may_be_measured_on_wikitext(place: Path) -> None:
    bare = ("data.validation=null", "train.validate_every=null", "train.keep=last")
    wanted = "eval=[{suite: perplexity, on: wikitext}]"
    assert load("plain.yaml", (*bare, wanted)).eval[0].options["on"] == "wikitext"
    with pytest.raises(RecipeError, match=r"perplexity is measured on data\.validation"):
        load("plain.yaml", (*bare, "eval=[perplexity]"))


def test_stlm_is_a_name_for_its_tasks_of_lm_eval(place: Path) -> None:
    (named,) = suites(["{suite: stlm, limit: 3}"], options={"batch_size": 2})
    (written,) = suites(["{suite: lm-eval, tasks: [stlm], limit: 3, batch_size: 2}"], options={})
    assert named == written and "stlm" not in SUITES
    entries = [load("plain.yaml", (f"eval=[{entry}]",)).eval[0].options for entry in ("stlm", "lm-eval")]
    assert entries[0] == entries[1]
    with pytest.raises(UsageError, match="stlm sets tasks already; use lm-eval with your own"):
        suites(["{suite: stlm, tasks: [blimp]}"], options={})
