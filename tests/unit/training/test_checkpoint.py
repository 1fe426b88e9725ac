import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from stlm_kd.errors import CheckpointError
from stlm_kd.training.checkpoint import CheckpointStore, TensorShapes, TrainingState, Validation, sha256

MODEL = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
OPTIMIZER = {"w/exp_avg": torch.full((2, 3), 0.1)}


def save(store: CheckpointStore, step: int, *, best: int | None = None) -> TrainingState:
    history = (Validation(1, {"labels": 0.1 + 0.2}),)
    state = TrainingState(step, 10 * step, 1.5, best, None if best is None else 0.3, history)
    store.save(state, model=MODEL, optimizer=OPTIMIZER)
    return state


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", "abc")


def test_what_was_saved_comes_back_exactly(store: CheckpointStore) -> None:
    state = save(store, 5, best=5)
    found = store.newest()
    assert found.state == state
    assert found.notes == ()
    for name, saved in (("model", MODEL), ("optimizer", OPTIMIZER)):
        read = store.tensors(5, name)
        assert read.keys() == saved.keys()
        assert all(torch.equal(read[key], saved[key]) for key in saved)


def test_a_checkpoint_is_safetensors_and_json_only(store: CheckpointStore) -> None:
    save(store, 5)
    assert sorted(path.name for path in store.path(5).iterdir()) == [
        "checksums.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert store.path(5).name == "step-00000005"


def test_sha256_agrees_with_the_published_value_for_abc(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_last_two_and_the_best_of_each_are_kept(store: CheckpointStore) -> None:
    for step, best in ((1, 1), (2, 1), (3, 1), (4, 4)):
        save(store, step, best=best)
    assert store.steps() == [1, 3, 4]
    save(store, 5, best=4)
    assert store.steps() == [4, 5]


@pytest.mark.parametrize(("kept", "left"), [(1, [1, 4]), (3, [1, 2, 3, 4])])
def test_as_many_are_kept_as_told_and_the_best(tmp_path: Path, kept: int, left: list[int]) -> None:
    store = CheckpointStore(tmp_path, "abc", kept)
    for step in (1, 2, 3, 4):
        save(store, step, best=1)
    assert store.steps() == left


WEIGHT, ADAM = torch.zeros(2, 3), {"exp_avg": torch.zeros(2, 3), "step": torch.tensor(1.0)}
EMPTY = torch.zeros(0)


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (
            {"weight": EMPTY, "bias": EMPTY},
            r"2 of another shape \(bias: \(0,\) found, \(2,\) exp",
        ),
        ({"weight": WEIGHT}, r"1 missing \(bias\)"),
        ({"weight": WEIGHT, "bias": WEIGHT[:, 0], "more": EMPTY}, r"1 unknown \(more\)"),
    ],
)
def test_weights_that_are_empty_missing_or_unknown_are_refused(
    model: dict[str, torch.Tensor], fault: str
) -> None:
    shapes, how = TensorShapes.of(torch.nn.Linear(3, 2)), {"place": Path("here"), "cure": "begin"}
    shapes.check_model({"weight": WEIGHT, "bias": WEIGHT[:, 0]}, **how)
    with pytest.raises(CheckpointError, match=f"here/model.safetensors: .*{fault}.*; begin"):
        shapes.check_model(model, **how)


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({}, r"2 missing \(bias/exp_avg, weight/exp_avg\)"),
        ({"weight": {**ADAM, "exp_avg": EMPTY}}, r"weight/exp_avg: \(0,\) found, \(2, 3\) expected"),
        ({"weight": {**ADAM, "step": torch.ones(1)}}, r"weight/step: \(1,\) found, \(\) expected"),
        ({"weight": ADAM, "bias": {"step": ADAM["step"]}}, r"1 missing \(bias/exp_avg\)"),
        ({"weight": ADAM, "other": ADAM}, r"2 unknown \(other/exp_avg, other/step\)"),
    ],
)
def test_optimizer_state_that_is_empty_incomplete_or_of_another_model_is_refused(
    state: dict[str, dict[str, torch.Tensor]], fault: str
) -> None:
    shapes, how = TensorShapes.of(torch.nn.Linear(3, 2)), {"place": Path("here"), "cure": "begin"}
    shapes.check_optimizer({f"weight/{kind}": tensor for kind, tensor in ADAM.items()}, **how)  # an idle bias
    tensors = {f"{name}/{kind}": tensor for name, kinds in state.items() for kind, tensor in kinds.items()}
    with pytest.raises(CheckpointError, match=f"here/optimizer.safetensors: .*{fault}.*; begin"):
        shapes.check_optimizer(tensors, **how)


def test_an_empty_folder_has_no_newest(store: CheckpointStore) -> None:
    assert store.newest().state is None


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.json", "checksums.json"]
)
@pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    store: CheckpointStore, name: str, damage: Callable[[Path], None]
) -> None:
    earlier = save(store, 1)
    save(store, 2)
    damage(store.path(2) / name)
    found = store.newest()
    assert found.state == earlier
    assert len(found.notes) == 1
    assert "step-00000002 is damaged" in found.notes[0]


def test_without_a_whole_checkpoint_it_stops_and_keeps_them(store: CheckpointStore) -> None:
    save(store, 1)
    truncate(store.path(1) / "model.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        store.newest()
    assert store.steps() == [1]


def test_a_checkpoint_of_another_fingerprint_is_refused(store: CheckpointStore) -> None:
    save(store, 1)
    with pytest.raises(CheckpointError, match="fingerprint abc found, expected xyz"):
        CheckpointStore(store.folder, "xyz").newest()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [50, 200])
def test_a_write_that_fails_leaves_the_earlier_checkpoint(store: CheckpointStore, size: int) -> None:
    earlier = save(store, 1)
    with (
        files_of_at_most(size),
        pytest.raises(
            CheckpointError, match=r"step-00000002: .*could not be written .*step-00000001, is whole"
        ),
    ):
        save(store, 2)
    assert store.newest().state == earlier
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]
    assert save(store, 2) == store.newest().state


def test_a_process_killed_while_writing_or_replacing_loses_nothing(store: CheckpointStore) -> None:
    state = save(store, 1)
    shutil.copytree(store.path(1), store.folder / ".new-step-00000002")
    (store.folder / ".new-step-00000002" / "state.json").unlink()
    store.path(1).rename(store.folder / ".old-step-00000001")
    assert store.newest().state == state
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]


def test_a_damaged_checkpoint_that_was_passed_over_does_not_count_as_one_of_the_last(
    store: CheckpointStore,
) -> None:
    for step in (1, 2, 9):
        save(store, step)
    (store.path(9) / "state.json").unlink()
    assert store.newest().state is not None
    save(store, 3)
    assert store.steps() == [2, 3]


def test_a_step_can_be_saved_again(store: CheckpointStore) -> None:
    save(store, 1)
    state = save(store, 1, best=1)
    assert store.newest().state == state
    assert [path.name for path in store.folder.iterdir()] == ["step-00000001"]
