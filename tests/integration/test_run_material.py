"""What a student reads, and which of its teachers' answers are remembered."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.batches import BatchStream
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.pipeline.builders.data import LabelledData, PackedText
from stlm_kd.pipeline.stages import student
from stlm_kd.pipeline.stages.student_job import StudentJob
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.recipe import load
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.precomputed import PrecomputedTeacher
from stlm_kd.teachers.protocol import Teacher
from tests.support.effects_world import build, home


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world of the recipes whose fields have effects."""
    place = tmp_path_factory.mktemp("world")
    build(place)
    return place


@pytest.fixture
def world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That world as the current folder."""
    monkeypatch.chdir(folder)
    return folder


def job(base: str, teachers: dict[str, str], *overrides: str) -> StudentJob:
    """The student of a base recipe, whose teachers lie in these folders."""
    recipe = load(f"{base}.yaml", overrides)
    return StudentJob.of(setup_of(recipe, home()), "student", 1, teachers)


def step_of(work: StudentJob, *, epochs: float) -> DistillationStep:
    """The step that trains the student."""
    model = student.initial_student(work)
    return student.step_of(work, model, work.training_data(1.0), epochs=epochs)


def taught(*overrides: str) -> StudentJob:
    return job("two-teachers", {"a": "some/model", "b": "other/model"}, "data.train=a.txt", *overrides)


@pytest.mark.parametrize(("room", "remembered"), [(0.9, []), (1.0, ["a"]), (1.9, ["a"]), (2.0, ["a", "b"])])
def test_the_memory_of_all_teachers_together_is_limited(
    room: float, remembered: list[str], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = taught().training_data(1.0).num_rows
    monkeypatch.setattr(student, "REMEMBERED_BYTES", int(room * rows * 64 * 16 * 4))
    teachers = step_of(taught(), epochs=2.0).teachers
    assert [name for name, one in teachers.items() if isinstance(one, PrecomputedTeacher)] == remembered


@pytest.mark.parametrize(("sites", "times"), [("last", 2), ("[embeddings, last]", 3)])
def test_states_that_are_compared_take_their_part_of_the_memory(
    sites: str, times: int, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a teacher that is asked for its head's input too."""
    objectives = f"objectives=[{{loss: forward_kl, teacher: a}}, {{loss: hint, teacher: a, sites: {sites}}}]"
    rows = taught().training_data(1.0).num_rows
    for room, kind in ((times - 0.1, LiveTeacher), (times, PrecomputedTeacher)):
        monkeypatch.setattr(student, "REMEMBERED_BYTES", int(room * rows * 64 * 16 * 4))
        (teacher,) = step_of(taught(objectives, "combine={how: mean}"), epochs=2.0).teachers.values()
        assert type(teacher) is kind


def test_what_is_remembered_under_bf16_is_what_the_live_teacher_says_under_bf16(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = taught("train.precision=bf16")
    batch = next(work.training_data(1.0).in_order(2))
    assert isinstance(batch, Batch)

    def says(teacher: Teacher) -> torch.Tensor:
        found = teacher(batch, OutputSpec(head_input=True)).observed.head_input
        assert found is not None
        return found

    remembering = step_of(work, epochs=2.0).teachers["a"]
    monkeypatch.setattr(student, "REMEMBERED_BYTES", 0)
    live = step_of(work, epochs=2.0).teachers["a"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, remembered = says(live), says(remembering)
    error = (expected - says(live)).abs().max()
    assert isinstance(remembering, PrecomputedTeacher) and isinstance(live, LiveTeacher)
    assert remembered.dtype == expected.dtype
    assert error > 1e-3
    assert (remembered - expected).abs().max() < error / 10


def test_nothing_is_remembered_of_what_masked_models_read_since_it_differs_each_time(world: Path) -> None:
    work = job("masked", {"a": "masked/model"})
    assert [type(one) for one in step_of(work, epochs=5.0).teachers.values()] == [LiveTeacher]


@pytest.mark.parametrize(
    ("loss", "kind"),
    [("forward_kl", PrecomputedTeacher), ("hint", LiveTeacher), ("attention_mse", LiveTeacher)],
)
def test_of_examples_whose_rows_differ_in_length_only_responses_are_remembered(
    loss: str, kind: type, world: Path
) -> None:
    taught_by = "teachers=[{name: c, model: masked/classifier}]"
    work = job(
        "classes", {"c": "masked/classifier"}, taught_by, f"objectives=[{{loss: labels}}, {{loss: {loss}}}]"
    )
    assert [type(one) for one in step_of(work, epochs=5.0).teachers.values()] == [kind]


def test_held_out_text_is_masked_evenly_and_to_the_usual_share(world: Path) -> None:
    work = job("masked", {"a": "masked/model"}, "data.masked_share=0.4")
    training_data = work.training_data(1.0)
    assert isinstance(training_data, PackedText) and training_data.masking is not None
    assert training_data.masking.share == 0.4
    labelled = attended = 0
    for batch in training_data.held_out(8) or ():
        assert isinstance(batch, Batch)
        per_row = (batch.labels != IGNORED).sum(1)
        assert torch.equal(per_row, (batch.attention_mask.sum(1) * 0.15).ceil().long())
        labelled, attended = labelled + int(per_row.sum()), attended + batch.num_tokens()
    assert labelled / attended == pytest.approx(0.15, abs=0.01)
    masking = training_data.held_masking
    assert masking is not None
    assert set(masking.weights.tolist()) == {0.0, 1.0}


def test_a_teacher_that_reads_by_another_tokenizer_gets_its_own_reading(world: Path) -> None:
    taught_by = "teachers=[{name: c, model: masked/classifier}]"
    changes = (taught_by, "student.tokenizer=other/tokenizer", "objectives=[{loss: forward_kl}]")
    for extra, readers in ((), {"c"}), (("student.tokenizer=masked/tokenizer",), set()):
        training_data = job("classes", {"c": "masked/classifier"}, *changes, *extra).training_data(1.0)
        assert isinstance(training_data, LabelledData)
        assert training_data.readers.keys() == readers


def test_nats_per_held_out_token_become_bits_per_byte(world: Path) -> None:
    """What is predicted, counted in the batches; the bytes, in the file."""
    by_line = "data.validation={path: b.txt, documents: line}"
    training_data = taught("data.context=16", by_line).training_data(1.0)
    held = training_data.held_out(3)
    assert held is not None
    predicted = sum(int((batch.labels != IGNORED).sum()) for batch in held)
    num_bytes = sum(map(len, (world / "b.txt").read_bytes().splitlines()))
    assert isinstance(training_data, PackedText)
    assert training_data.bits_of_a_nat == pytest.approx(predicted * math.log2(math.e) / num_bytes)


class Caught(Exception):
    """Raised in place of a training, with its batches."""


@pytest.mark.parametrize(("source", "pairs"), [("other-example", True), ("mixup", False)])
def test_a_training_reads_rows_in_pairs_where_they_are_sources_of_each_other(
    source: str, pairs: bool, world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def caught(step: DistillationStep, stream: BatchStream, *_: object, **__: object) -> None:
        raise Caught(stream.step(0))

    monkeypatch.setattr(student, "fit", caught)
    work = taught(f"objectives=[{{loss: labels}}, {{loss: diito, source: {source}}}]", "train.micro_batch=2")
    with pytest.raises(Caught) as found:
        student.train_student(work, tmp_path / "student", label="")
    batches = found.value.args[0]
    assert [batch.sources is not None for batch in batches] == [pairs] * len(batches)
