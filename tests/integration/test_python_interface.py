"""The public functions, as a user calls them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stlm_kd
from stlm_kd.errors import MissingResourceError, UsageError
from tests.support.paths import ROOT


def test_importing_it_imports_nothing_but_the_standard_library() -> None:
    program = (
        "import sys; before = set(sys.modules); import stlm_kd; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(ast.literal_eval(done.stdout)) <= {"stlm_kd", *sys.stdlib_module_names}


def test_a_run_gives_its_results_and_its_models(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(road)
    recipe = stlm_kd.load_recipe("teacher-gpt2.yaml", ["train.steps=2", "seeds=[3, 4]"])
    run = stlm_kd.distill(recipe, name="mine", output_dir=tmp_path)
    assert run.path.name.startswith("mine-")
    assert run.table is not None and "student" in run.table
    assert [row["seeds"] for row in run.results["rows"]] == [[3, 4]]
    assert [model.parent.name for model in run.models] == ["seed-3", "seed-4"]
    (first, tokenizer), (fourth, _) = run.load(), run.load("student", seed=4)
    ids = tokenizer("A tale.", return_tensors="pt")["input_ids"]
    assert not first.training and not torch.equal(first(ids).logits, fourth(ids).logits)
    with pytest.raises(MissingResourceError, match=r"no model student of seed 5; finished models: students"):
        run.model(seed=5)
    with pytest.raises(MissingResourceError, match="no model no-teacher; finished models"):
        run.load("no-teacher")
    again = stlm_kd.open_run(run.path)
    assert again.results == run.results
    with pytest.raises(UsageError, match="pass them to load_recipe"):
        stlm_kd.distill(recipe, ["train.steps=3"], output_dir=tmp_path)


def test_a_run_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="no such run folder"):
        stlm_kd.open_run(tmp_path / "none")


def test_an_adapted_teacher_is_loaded_from_a_run_that_used_it(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(road)
    adapt = "adapt={tokens: 2k, learning_rate: 3e-3, effective_batch: 8, validate_every: 4}"
    changes = ["train.steps=2", f"teachers[0].{adapt}", "eval=[]"]
    run = stlm_kd.distill("taught.yaml", changes, output_dir=tmp_path / "odd [1]", rehearsal=False)
    (student, tokenizer), (teacher, own) = run.load(), run.load("a")
    rows = [model.get_input_embeddings().weight for model in (student, teacher)]
    assert tokenizer.get_vocab() == own.get_vocab() and not torch.equal(*rows)
    with pytest.raises(MissingResourceError, match=r"no model a of seed 1"):
        run.model("a", seed=1)
    adapted = stlm_kd.adapt_teacher("taught.yaml", changes, output_dir=tmp_path / "odd [1]", rehearsal=False)
    again, _ = adapted.load("a")
    assert all(torch.equal(*pair) for pair in zip(teacher.parameters(), again.parameters(), strict=True))


def test_what_cannot_be_done_is_said_as_by_the_commands(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(road)
    with pytest.raises(UsageError, match="taught: none of its teachers has adapt"):
        stlm_kd.adapt_teacher("taught.yaml", output_dir=tmp_path)
    with pytest.raises(UsageError, match="gg: not a teacher that adapts adapts"):
        stlm_kd.adapt_teacher("adapts.yaml", teacher="gg", output_dir=tmp_path)
    with pytest.raises(UsageError, match="adapts: trains no student"):
        stlm_kd.distill("adapts.yaml", output_dir=tmp_path)
    with pytest.raises(UsageError, match="no model given"):
        stlm_kd.evaluate([], ["perplexity"])
    with pytest.raises(UsageError, match="nothing; name a second to compare"):
        stlm_kd.compare([])
    assert list(tmp_path.iterdir()) == []
