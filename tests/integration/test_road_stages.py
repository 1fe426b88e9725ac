"""Change one word of a recipe, and only what depends on it is made again; nothing of before is touched."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.support.road import ADAPT, LLAMA, TEXT, TRAIN, built, distilled

CHAIN = f"""
task: clm
student: {{tokenizer: {{train: bpe, size: 300}}, architecture: {LLAMA}}}
teachers: [{{name: g, recipe: teacher-gpt2.yaml, adapt: {ADAPT}}}]
{TEXT}
objectives: [{{loss: labels}}, {{loss: forward_kl}}]
{TRAIN}
eval: [perplexity]
tracking: []
"""
"""A teacher that is trained, adapted, and teaches; two tokenizers are trained, and three models scored."""

EVERYTHING = {"tokenizer": 2, "model": 2, "adapted": 1, "eval": 3}


@pytest.fixture(scope="module")
def chain(road: Path) -> Path:
    """The output folder of the recipe ``chain``, which was run once."""
    (road / "chain.yaml").write_text(CHAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(road)
        distilled("chain", output_dir=Path("runs-chain"))
    return road / "runs-chain"


def kinds(names: set[str]) -> Counter[str]:
    return Counter(Path(name).parts[1].partition("-")[0] for name in names if name.endswith("stage.json"))


def test_everything_is_made_once(chain: Path) -> None:
    assert kinds(set(built(chain))) == EVERYTHING


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("train.log_every=1", {}),
        ("train.checkpoint_every=1", {}),
        ("teachers[0].name=h", {"model": 1}),  # the same weights, whose scores are found again
        ("combine={how: mean}", {}),
        ("engine={deepspeed: {zero: 1}}", {}),
        ("eval=[{suite: perplexity, window: 32}]", {"eval": 3}),
        ("train.learning_rate=1e-3", {"model": 1, "eval": 1}),
        ("objectives[1].weight=2", {"model": 1, "eval": 1}),
        ("student.architecture.num_hidden_layers=2", {"model": 1, "eval": 1}),
        ("teachers[0].adapt.tokens=5k", {"adapted": 1, "model": 1, "eval": 2}),
        ("data.fraction=0.5", {"adapted": 1, "model": 1, "eval": 2}),
        ("student.tokenizer.size=310", {"tokenizer": 1, "adapted": 1, "model": 1, "eval": 2}),
        ("teachers[0].recipe.train.steps=5", {"adapted": 1, "model": 2, "eval": 3}),
        ("teachers[0].recipe.student.tokenizer.size=330", EVERYTHING | {"tokenizer": 1}),
    ],
)
def test_a_changed_word_makes_again_what_depends_on_it_alone(
    chain: Path, place: Path, change: str, expected: dict[str, int]
) -> None:
    before = built(chain)
    distilled("chain", change, output_dir=Path("runs-chain"))
    after = built(chain)
    assert {name: after[name] for name in before} == before
    assert kinds(set(after) - set(before)) == expected
