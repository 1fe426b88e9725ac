"""Interchange accuracy: by hand, against whole runs with hooks, and on models through the command."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.record import new_record
from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.data.batch import TENSORS, Batch
from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.eval.interchange import metrics
from stlm_kd.eval.interchange.config import ALL
from stlm_kd.eval.interchange.metrics import Exchange, draw_exchanges, measure
from stlm_kd.eval.language_modeling.likelihood import ratio_stderr
from stlm_kd.interventions import SourceInputs
from stlm_kd.interventions.plan import OwnStates, Tokens
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.layer_alignment import Alignment
from stlm_kd.models.load import save_model
from stlm_kd.teachers.live import LiveTeacher
from tests.support.interchange_case import both, supplies
from tests.support.pico import MASKED, packed_batch, pico_model
from tests.support.road import done, stlm_kd

VOCABULARY = 61
LAYOUT = [[8], [3, 4], [6], [2, 2, 4]]


def exchanges(source: str, *, causal: bool = True, batches: int = 2, seed: int = 5) -> list[Exchange]:
    made = [packed_batch(LAYOUT, length=8, seed=seed + index) for index in range(batches)]
    numbered = [replace(batch, example_ids=batch.example_ids + 4 * index) for index, batch in enumerate(made)]
    return draw_exchanges(
        numbered, source=source, positions="random", supplies=supplies(), causal=causal, fraction=0.5
    )


def value(found: SuiteResult, metric: str, task: str = ALL) -> float:
    return found.score(task, metric).value


@pytest.mark.parametrize("source", ["other-example", "in-context-random", "mixup", "input-tokens"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_model_agrees_with_itself_everywhere(family: str, source: str) -> None:
    model = pico_model(family)
    asked = exchanges(source, causal=family == "llama")
    found = measure(model, model, asked, alignment={0: (0,), 1: (1,)}, vocabulary=VOCABULARY)
    assert value(found, "agreement") == value(found, "interchange_accuracy") == 1
    assert value(found, "teacher_effect") == value(found, "student_effect") > 0.01


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_states_put_back_where_they_were_change_nothing(family: str) -> None:
    teacher = pico_model(family, layers=4, seed=2).double()
    student = pico_model(family, seed=1).double()
    asked = [
        replace(one, plan=replace(one.plan, source=OwnStates(one.plan.base)))
        for one in exchanges("other-example", causal=family == "gpt2")
    ]
    found = measure(teacher, student, asked, alignment={0: (0, 1), 1: (2, 3)}, vocabulary=VOCABULARY)
    assert abs(value(found, "teacher_effect")) < 1e-12 and abs(value(found, "student_effect")) < 1e-12
    assert value(found, "teacher_changes") == 0
    assert value(found, "agreement") == value(found, "base_agreement")
    with pytest.raises(KeyError, match="no interchange_accuracy"):
        found.score(ALL, "interchange_accuracy")
    assert any(note.startswith(f"{ALL}: no intervention changes") for note in found.notes)


def plainly(
    teacher: torch.nn.Module, student: torch.nn.Module, asked: list[Exchange], alignment: Alignment
) -> dict[str, list[list[tuple[float, float]]]]:
    """By metric, for each layer, the sums of each row, by whole runs of dense logits."""
    found: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in metrics.RATIOS}
    for layer, theirs in alignment.items():
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in metrics.RATIOS}
        for one in asked:
            plan = one.at(layer, theirs, torch.device("cpu"))
            with torch.no_grad():
                t_base, t_after = both(teacher, one.batch, plan, theirs)  # type: ignore[arg-type]  # any model
                s_base, s_after = both(student, one.batch, plan, (layer,))  # type: ignore[arg-type]  # likewise
            for row in range(len(one.batch.input_ids)):
                at = reached(one, row)
                tops = [run.logits[row, at].argmax(-1) for run in (t_base, t_after, s_base, s_after)]
                changed = tops[0] != tops[1]
                same = tops[1] == tops[3]
                sizes = float(len(at))
                rows["agreement"].append((float(same.sum()), sizes))
                rows["interchange_accuracy"].append((float((same & changed).sum()), float(changed.sum())))
                rows["base_agreement"].append((float((tops[0] == tops[2]).sum()), sizes))
                rows["teacher_changes"].append((float(changed.sum()), sizes))
                rows["teacher_effect"].append((kl(t_after.logits[row, at], t_base.logits[row, at]), sizes))
                rows["student_effect"].append((kl(s_after.logits[row, at], s_base.logits[row, at]), sizes))
        for name, pairs in rows.items():
            found[name].append(pairs)
    return found


def reached(one: Exchange, row: int) -> list[int]:
    """Attended positions that see an exchanged one, or are one."""
    documents = one.batch.document_ids[row].tolist()
    places = [
        p
        for r, p in zip(one.plan.base.rows.tolist(), one.plan.base.positions.tolist(), strict=True)
        if r == row
    ]
    causal = not bool(one.plan.touched.all())
    return [
        t
        for t, number in enumerate(documents)
        if number and (not causal or any(documents[p] == number and p <= t for p in places))
    ]


def kl(after: Tensor, before: Tensor) -> float:
    logs = [logits[:, :VOCABULARY].log_softmax(-1) for logits in (before, after)]
    return float(functional.kl_div(*logs, reduction="sum", log_target=True))


@pytest.mark.parametrize("source", ["other-example", "in-context-random", "mixup"])
@pytest.mark.parametrize(
    ("teacher", "student"), [("llama", "gpt2"), ("qwen2", "llama"), ("bert", "distilbert")]
)
def test_the_numbers_are_those_of_whole_runs_with_hooks(
    teacher: str, student: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whatever size the chunks are."""
    monkeypatch.setattr(metrics, "chunk_rows", lambda *_: 5)
    large = pico_model(teacher, layers=4, seed=2).double()
    small = pico_model(student, seed=1).double()
    alignment = {0: (0, 1), 1: (2,)}
    asked = exchanges(source, causal=teacher not in MASKED)
    expected = plainly(large, small, asked, alignment)
    result = measure(large, small, asked, alignment=alignment, vocabulary=VOCABULARY)
    for metric, layers in expected.items():
        together = [
            (sum(part[0] for part in parts), sum(part[1] for part in parts))
            for parts in zip(*layers, strict=True)
        ]
        for task, pairs in [(ALL, together), ("layer 0", layers[0]), ("layer 1", layers[1])]:
            score = result.score(task, metric)
            kept = [(above, int(below)) for above, below in pairs if below]
            assert score.value == pytest.approx(
                sum(pair[0] for pair in kept) / sum(pair[1] for pair in kept), rel=1e-6, abs=1e-9
            )
            assert score.stderr == pytest.approx(ratio_stderr(kept), rel=1e-6, abs=1e-9)
            assert score.examples == len(kept)
    told = [(row.id, row.value) for row in result.examples if row.metric == "agreement"]
    assert told == [
        (str(i), pytest.approx(above / below)) for i, (above, below) in enumerate(together_of(expected))
    ]


def together_of(expected: dict[str, list[list[tuple[float, float]]]]) -> list[tuple[float, float]]:
    first, second = expected["agreement"]
    return [(a[0] + b[0], a[1] + b[1]) for a, b in zip(first, second, strict=True)]


def test_rows_of_padding_count_for_nothing() -> None:
    large, small = pico_model("llama", layers=4, seed=2), pico_model("gpt2", seed=1)
    asked = exchanges("mixup", batches=1)
    batch = asked[0].batch
    empty = packed_batch([[]], length=8)
    longer = Batch(*(torch.cat([getattr(batch, name), getattr(empty, name)]) for name in TENSORS))
    longer.example_ids[-1] = -1
    touched = torch.cat([asked[0].plan.touched, torch.zeros(1, 8, dtype=torch.bool)])
    padded = [replace(asked[0], batch=longer, plan=replace(asked[0].plan, touched=touched))]
    results = [
        measure(large, small, given, alignment={0: (1,)}, vocabulary=VOCABULARY) for given in (asked, padded)
    ]
    assert [row.id for row in results[1].examples] == [row.id for row in results[0].examples]
    for first, second in zip(results[0].scores, results[1].scores, strict=True):
        assert second.value == pytest.approx(first.value, rel=1e-5)
        assert second.examples == first.examples == 4


def test_tokens_belong_to_no_layer() -> None:
    model, other = pico_model("llama", seed=1), pico_model("llama", seed=2)
    asked = exchanges("input-tokens")
    assert all(isinstance(one.plan.source, Tokens) for one in asked)
    results = [
        measure(other, model, asked, alignment=alignment, vocabulary=VOCABULARY)
        for alignment in ({0: (0,), 1: (1,)}, {1: (0,)})
    ]
    assert results[0].scores == results[1].scores
    assert {score.task for score in results[0].scores} == {ALL}


def test_what_is_exchanged_does_not_depend_on_the_students_layers() -> None:
    """Nor on who is asked: one draw serves all."""
    (one,) = exchanges("other-example", batches=1)
    first, second = one.at(0, (0,), torch.device("cpu")), one.at(3, (5, 6), torch.device("cpu"))
    assert torch.equal(first.base.positions, second.base.positions)
    assert (second.layers(None), second.layers(metrics.TEACHER)) == ((3,), (5, 6))
    (again,) = exchanges("other-example", batches=1)
    assert torch.equal(again.plan.base.positions, one.plan.base.positions)


def test_a_student_trained_by_interventions_alone_agrees_more() -> None:
    few = 11
    teacher = pico_model("llama", vocabulary=few, layers=4, seed=2)
    student = pico_model("llama", vocabulary=few, seed=1)
    alignment = {0: (0, 1), 1: (2, 3)}
    term = Term(
        "diito", "forward_kl", on="attended", teacher="t", options={"temperature": 2.0},
        intervention=Intervention("diito", {"t": alignment}),
    )  # fmt: skip
    step = DistillationStep(student, [term], teachers={"t": LiveTeacher(teacher, few, name="t")})
    held_out = draw_exchanges(
        [packed_batch([[8]] * 8, length=8, vocabulary=few, seed=5000 + index) for index in range(16)],
        source="other-example", positions="consecutive", supplies=SourceInputs(), causal=True,
    )  # fmt: skip

    def accuracy() -> float:
        found = measure(teacher, student, held_out, alignment=alignment, vocabulary=few)
        return value(found, "interchange_accuracy", "layer 0")

    before = accuracy()
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    for index in range(100):
        batch = packed_batch([[8]] * 8, length=8, vocabulary=few, seed=index)
        step.train().begin(index, 100)
        optimizer.zero_grad()
        step(batch, {name: float(n) for name, n in step.count(batch).items()}).loss.backward()
        optimizer.step()
    assert accuracy() > before + 0.12
    assert student.training, "left as it was"


TEXTS = list(sample_documents("validation", size=12_000))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("interchange")
    for masked, names in [
        (False, {"teacher": ("llama", 4), "near": ("gpt2", 2), "far": ("llama", 3)}),
        (True, {"masked": ("bert", 4), "student": ("distilbert", 2)}),
    ]:
        tokenizer = train_tokenizer(TEXTS, "bpe", 280, masked=masked)
        for seed, (name, (family, layers)) in enumerate(names.items()):
            model = pico_model(family, vocabulary=280, layers=layers, seed=seed)
            model.config.bos_token_id = model.config.eos_token_id = None
            save_model(model, tokenizer, folder / name)
    other = train_tokenizer(TEXTS, "bpe", 270)
    save_model(pico_model("llama", vocabulary=270), other, folder / "foreign")
    (folder / "text.txt").write_text("\n\n".join(TEXTS))
    return folder


def test_the_command_asks_all_students_the_same(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    words = [
        "interchange",
        "teacher",
        "near",
        "far",
        "--data",
        "text.txt",
        "--set",
        "rows=12",
        "--set",
        "context=16",
    ]
    found = done(*words, "--output", str(tmp_path / "out.json"))
    assert found == json.loads((tmp_path / "out.json").read_text())
    near, far = found["students"]["near"], found["students"]["far"]
    assert near["report"]["alignment"] == {"0": [0, 1], "1": [2, 3]}
    assert far["report"]["alignment"] == {"0": [0], "1": [1], "2": [2, 3]}
    assert near["report"]["positions"] == far["report"]["positions"] > 0
    alone = done("interchange", "teacher", "far", *words[4:])
    assert alone["students"]["far"] == far
    other = done(*words, "--set", "seed=1")
    assert other["students"]["far"]["scores"] != far["scores"]
    shown = stlm_kd(*words).stdout
    assert "layer 0 ↔ 0, 1" in shown and "interchange accuracy" in shown and "12 rows" in shown


@pytest.mark.parametrize("source", ["other-example", "in-context-random", "mixup", "input-tokens"])
@pytest.mark.parametrize("names", [("teacher", "./teacher"), ("masked", "./masked")])
def test_a_model_beside_its_copy_agrees_everywhere(
    names: tuple[str, str], source: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    words = ["--data", "text.txt", "--set", "rows=6", "--set", "context=24", "--set", f"source={source}"]
    (result,) = done("interchange", *names, *words, "--set", "positions=random")["students"].values()
    told = {score["metric"]: score["value"] for score in result["scores"] if score["task"] == ALL}
    assert told["agreement"] == told["interchange_accuracy"] == told["base_agreement"] == 1
    assert told["teacher_effect"] == told["student_effect"] and math.isfinite(told["teacher_effect"])


def run_of(model: str, folder: Path, text: str) -> str:
    """A run that has this model as its student, with validation text of its own."""
    shutil.copytree(model, folder / "students" / "seed-1")
    write_json(folder / "run.json", asdict(new_record("run", "abc", "stlm-kd")))
    (folder / "recipe.yaml").write_text(
        "task: clm\nstudent: {preset: stlm-nano, tokenizer: {train: bpe, size: 300}}\n"
        f"data: {{train: {text}, validation: {text}, allow_overlap: true}}\n"
        "objectives: [{loss: labels}]\ntrain: {steps: 1}\n"
    )
    return str(folder / "students" / "seed-1")


def test_the_text_is_that_of_the_models_runs_if_it_is_one(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    text = models / "text.txt"
    near, far = run_of("near", tmp_path / "a", str(text)), run_of("far", tmp_path / "b", str(text))
    few = ["--set", "rows=6", "--set", "context=16"]
    found = done("interchange", "teacher", near, far, *few)["students"]
    given = done("interchange", "teacher", near, far, *few, "--data", "text.txt")["students"]
    assert found == given
    (tmp_path / "other.txt").write_text("another text\n\n" * 20)
    other = run_of("far", tmp_path / "c", str(tmp_path / "other.txt"))
    refused = stlm_kd("interchange", "teacher", near, other, *few)
    assert refused.exit_code == 1 and "validation text of their runs is not the same" in refused.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["teacher", "foreign", "--data", "text.txt"], 3, "teacher and foreign have different vocabularies"),
        (["teacher", "near", "near", "--data", "text.txt"], 2, "near: given twice"),
        (["teacher", "near"], 2, "give --data FILE"),
        (
            ["masked", "student", "--data", "text.txt", "--set", "alignment=late"],
            3,
            ": alignment: late means",
        ),
        (
            ["teacher", "near", "--data", "text.txt", "--set", "context=65"],
            2,
            "context: 65 tokens, but teacher has 64 positions",
        ),
        (["teacher", "near", "--data", "text.txt", "--set", "source=synonim"], 2, "synonim"),
    ],
)
def test_the_command_says_what_is_wrong(
    words: list[str], code: int, message: str, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models)
    result = stlm_kd("interchange", *words)
    assert result.exit_code == code, result.output
    assert message in result.stderr
