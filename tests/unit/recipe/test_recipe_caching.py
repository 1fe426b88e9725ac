"""What a recipe may say of caches, and what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from stlm_kd.recipe import from_values, load
from tests.support.recipes import faults

HEAD = """
task: {task}
student: {{tokenizer: own, architecture: {{model_type: {family}, hidden_size: 16}}}}
data: {{train: a.txt, context: 64}}
train: {{steps: 6}}
teachers: [{{name: a, model: x, cache: {cache}}}, {{name: b, model: y}}]
objectives: {objectives}
"""
KL2 = "[{loss: forward_kl, temperature: 2}]"


def written(
    folder: Path, cache: str = "auto", objectives: str = KL2, task: str = "clm", family: str = "llama"
) -> str:
    path = folder / "recipe.yaml"
    text = HEAD.format(cache=cache, objectives=objectives, task=task, family=family)
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("cache", "numbers"),
    [
        ("auto", (16, 8)),
        ("{preset: small}", (8, 8)),
        ("{preset: large, draws: 4}", (32, 4)),
        ("{top: 2}", (2, 8)),
    ],
)
def test_presets_and_numbers_say_how_much_is_kept(
    tmp_path: Path, cache: str, numbers: tuple[int, int]
) -> None:
    recipe = load(written(tmp_path, cache))
    found = recipe.teachers[0].cache
    assert found is not None
    assert (found.top, found.draws) == numbers
    assert recipe.teachers[1].cache is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"objectives": "[{loss: diito}]"},
            "objectives[0].loss: diito runs its teachers after interventions",
        ),
        (
            {"objectives": "[{loss: attention_mse, teacher: a, sites: last}]"},
            "objectives[0].loss: attention_mse compares attention maps, which the cache of a does not store",
        ),
        (
            {"objectives": "[{loss: hint, teacher: a}]"},
            "objectives[0].loss: hint compares hidden states, but the cache of a stores none",
        ),
        (
            {"cache": "{temperature: 1}"},
            "teachers[0].cache.temperature: 1 given, but the objectives on a have 2",
        ),
        (
            {"objectives": "[{loss: forward_kl, temperature: 2}, {loss: reverse_kl}]"},
            "teachers[0].cache: given, but a cache has one temperature, and objectives on a have 1 and 2",
        ),
        (
            {"objectives": "[{loss: forward_kl, temperature: {schedule: linear, values: [4, 1]}}]"},
            "teachers[0].cache: given, but a cache has one temperature, and an objective has a schedule",
        ),
        ({"cache": "{variants: 2}"}, "teachers[0].cache.variants: only for masked language models"),
        (
            {"cache": "{path: here, top: 3}"},
            "teachers[0].cache.top: given, but path is an existing cache",
        ),
        (
            {"cache": "{presett: small}"},
            "teachers[0].cache.presett: not a key of cache (did you mean preset?)",
        ),
        ({"cache": "7"}, "teachers[0].cache: 7 found; expected auto, a folder, or a mapping"),
        (
            {"cache": "{states: [top]}"},
            "teachers[0].cache.states[0]: 'top' found; expected embeddings",
        ),
    ],
)
def test_what_a_cache_cannot_serve_is_refused(tmp_path: Path, given: dict[str, str], message: str) -> None:
    found = faults(written(tmp_path, **given))
    assert any(fault.startswith(message) for fault in found), found


def test_of_classes_all_logits_are_kept_whatever_the_temperature(tmp_path: Path) -> None:
    changing = "[{loss: forward_kl, temperature: {schedule: linear, values: [4, 1]}}]"
    recipe = load(written(tmp_path, objectives=changing, task="classification", family="bert"))
    assert recipe.teachers[0].cache is not None
    found = faults(written(tmp_path, "{preset: small}", changing, "classification", "bert"))
    assert (
        "teachers[0].cache.preset: given, but a classification cache stores all logits; use cache: auto"
        in found
    )


def test_a_teacher_may_be_a_cache_alone(tmp_path: Path) -> None:
    text = load(written(tmp_path)).model_dump(mode="json", exclude_none=True)
    teachers = [{"name": "a", "cache": "some/folder"}, {"name": "b", "model": "y"}]
    recipe = from_values({**text, "teachers": teachers}, origin="values")
    assert recipe.teachers[0].is_only_read
    assert not recipe.teachers[1].is_only_read
