"""Agreement of classifiers: against scikit-learn and scipy, by hand, and on models through the command."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, spearmanr

from benchmarks.scores.kappa_coverage import coverage, table_of
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import DataError
from stlm_kd.eval.agreement.predictions import calibration_error, cohen_kappa, jensen_shannon, kl_divergence
from stlm_kd.eval.agreement.report import Predictions, agreement
from stlm_kd.models.heads.classifiers import classifier_from_fields
from stlm_kd.models.load import save_model
from tests.support.road import done, stlm_kd

metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with lm-eval")

NAMES = ("no", "yes", "maybe")


def predictions(
    name: str,
    predicted: list[int],
    labels: list[int],
    *,
    ids: list[str] | None = None,
    classes: tuple[str, ...] = NAMES,
) -> Predictions:
    """A classifier that is sure of its classes: logit 2 for each, else 0."""
    logits = 2 * np.eye(len(classes))[predicted]
    named = tuple(ids or [f"e{place}" for place in range(len(labels))])
    return Predictions(name, named, np.array(labels), logits, classes)


PAIRS = st.lists(st.tuples(*[st.integers(0, 2)] * 2), min_size=2, max_size=40)


@pytest.mark.filterwarnings("ignore:invalid value")
@settings(max_examples=80, deadline=None)
@given(PAIRS)
def test_kappa_is_scikit_learns_and_its_error_the_slope_of_it(pairs: list[tuple[int, int]]) -> None:
    """The standard error by the delta method, with numerical derivatives by the shares of the table."""
    first, second = zip(*pairs, strict=True)
    found = cohen_kappa(first, second)
    if len({*first, *second}) == 1:
        assert found.value is None
        return
    assert found.value is not None and found.stderr is not None
    assert found.value == pytest.approx(metrics.cohen_kappa_score(first, second), abs=1e-12)
    table = np.zeros((3, 3))
    np.add.at(table, (first, second), 1 / len(pairs))
    slopes = np.zeros((3, 3))
    for cell in np.ndindex(3, 3):
        step = np.zeros((3, 3))
        step[cell] = 1e-5
        slopes[cell] = (kappa_of(table + step) - kappa_of(table - step)) / 2e-5
    variance = (table * slopes**2).sum() - (table * slopes).sum() ** 2
    assert found.stderr == pytest.approx(math.sqrt(max(variance, 0) / len(pairs)), abs=1e-4)


def kappa_of(table: npt.NDArray[np.float64]) -> float:
    """κ of a table of shares that need not sum to 1, as a function of each of them by itself."""
    shares = table / table.sum()
    chance = shares.sum(1) @ shares.sum(0)
    return float((np.trace(shares) - chance) / (1 - chance))


@pytest.mark.parametrize(
    ("examples", "kappa", "classes"),
    [
        (30, 0.0, (0.5, 0.5)), (30, 0.6, (0.8, 0.2)), (30, 0.8, (0.5, 0.5)), (30, 0.9, (0.9, 0.1)),
        (30, 0.95, (0.8, 0.2)), (30, 0.9, (0.8, 0.15, 0.05)), (50, 0.8, (0.9, 0.1)),
        (50, 0.9, (0.4, 0.3, 0.3)), (100, 0.9, (0.9, 0.1)), (100, 0.95, (0.5, 0.5)), (300, 0.95, (0.9, 0.1)),
    ],
)  # fmt: skip
def test_the_interval_of_kappa_holds_the_true_one(
    examples: int, kappa: float, classes: tuple[float, ...]
) -> None:
    """In 93 % and more of the drawn sets of examples, high and skewed agreement included."""
    table = table_of(kappa, classes)
    assert kappa_of(table) == pytest.approx(kappa, abs=1e-12)
    assert coverage(table, kappa, examples=examples, sets=250).share >= 0.93


@pytest.mark.parametrize(
    ("examples", "kappa", "classes"), [(300, 0.8, (0.5, 0.5)), (300, 0.6, (0.4, 0.3, 0.3))]
)
def test_with_many_examples_the_interval_of_kappa_is_that_of_its_standard_error(
    examples: int, kappa: float, classes: tuple[float, ...]
) -> None:
    table = table_of(kappa, classes)
    cells = np.round(table * examples).astype(int).reshape(-1)
    found = cohen_kappa(*np.divmod(np.repeat(np.arange(table.size), cells), len(table)))
    assert found.stderr is not None and found.low is not None and found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.stderr, rel=0.08)


def test_the_interval_of_kappa_where_all_agree_knows_how_many_they_are() -> None:
    few, many = (cohen_kappa(classes, classes) for classes in ([0, 1] * 15, [0, 1] * 500))
    assert few.value == few.high == many.value == many.high == 1
    assert few.low is not None and many.low is not None
    assert 0.7 < few.low < 0.85 and 0.98 < many.low < 0.999
    turned = cohen_kappa([0, 1] * 15, [1, 0] * 15)
    assert turned.low is not None and turned.high is not None and -1 <= turned.low < turned.high < 0


LOGITS = st.lists(st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.data())
def test_divergences_are_scipys(first: list[list[float]], data: st.DataObject) -> None:
    second = data.draw(
        st.lists(
            st.lists(st.floats(-20, 20), min_size=3, max_size=3), min_size=len(first), max_size=len(first)
        )
    )
    p, q = (np.exp(rows) / np.exp(rows).sum(1, keepdims=True) for rows in (first, second))
    assert kl_divergence(first, second) == pytest.approx(entropy(p, q, axis=1), abs=1e-9)
    with np.errstate(invalid="ignore"):  # scipy's root of what rounding puts just below 0
        distance = np.nan_to_num(jensenshannon(p, q, axis=1))
    assert jensen_shannon(first, second) == pytest.approx(distance**2, abs=1e-7)
    assert jensen_shannon(first, second) == pytest.approx(jensen_shannon(second, first), abs=1e-12)


def test_divergences_are_finite_where_logits_are_far_apart() -> None:
    first, second = [[1000.0, -1000.0]], [[-1000.0, 1000.0]]
    assert kl_divergence(first, second) == pytest.approx([2000])
    assert jensen_shannon(first, second) == pytest.approx([math.log(2)])
    assert kl_divergence(first, first) == pytest.approx([0])


@settings(max_examples=60, deadline=None)
@given(LOGITS, st.data())
def test_the_calibration_error_is_that_of_a_loop_over_bins(
    logits: list[list[float]], data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(logits), max_size=len(logits)))
    chances = [[math.exp(x) / math.fsum(map(math.exp, row)) for x in row] for row in logits]
    assume(all(abs(max(row) * 15 - round(max(row) * 15)) > 1e-9 for row in chances))
    expected = 0.0
    for k in range(15):
        inside = [i for i, row in enumerate(chances) if k / 15 < max(row) <= (k + 1) / 15]
        if inside:
            confidence = sum(max(chances[i]) for i in inside) / len(inside)
            right = sum(logits[i].index(max(logits[i])) == labels[i] for i in inside) / len(inside)
            expected += len(inside) / len(logits) * abs(confidence - right)
    assert calibration_error(logits, labels) == pytest.approx(expected, abs=1e-9)


def test_a_model_that_is_as_often_right_as_it_says_is_calibrated() -> None:
    generator = np.random.default_rng(0)
    chances = generator.uniform(0.5, 1, size=40_000)
    logits = np.stack([np.log(chances), np.log(1 - chances)], 1)
    labels = (generator.random(40_000) > chances).astype(int)
    assert calibration_error(logits, labels) < 0.01
    assert calibration_error(5 * logits, labels) > 0.1


def test_the_numbers_of_a_hand_calculation() -> None:
    """Both are right on five examples and wrong on two; the teacher alone errs on one, the student on two."""
    labels = [0, 0, 0, 1, 1, 0, 1, 0, 1, 1]
    teacher = [0, 0, 0, 1, 1, 1, 0, 1, 1, 1]  # wrong on 5, 6 and 7
    student = [0, 0, 0, 1, 1, 1, 0, 0, 0, 0]  # wrong on 5, 6, 8 and 9
    classes = NAMES[:2]
    found = agreement(
        predictions("t", teacher, labels, classes=classes), predictions("s", student, labels, classes=classes)
    )
    assert (found.teacher_accuracy.value, found.student_accuracy.value) == (0.7, 0.6)
    assert found.difference.mean == pytest.approx(-0.1)
    assert (found.test.only_first, found.test.only_second) == (1, 2)
    assert found.top1.value == pytest.approx(0.7)
    assert found.top1.stderr == pytest.approx(math.sqrt(0.7 * 0.3 / 9))
    chance = 0.4 * 0.7 + 0.6 * 0.3
    assert found.kappa.value == pytest.approx((0.7 - chance) / (1 - chance))
    errors = found.errors
    assert (errors.both, errors.same, errors.only_teacher, errors.only_student) == (2, 2, 1, 2)
    assert errors.overlap == pytest.approx(2 / 5)
    assert errors.by_chance == pytest.approx(0.12 / (0.3 + 0.4 - 0.12))
    assert errors.consistency.value == pytest.approx((0.7 - 0.54) / (1 - 0.54))
    assert [(flip.id, flip.label, flip.teacher, flip.student) for flip in found.flips] == [
        ("e7", "no", "yes", "no"), ("e8", "yes", "yes", "no"), ("e9", "yes", "yes", "no")
    ]  # fmt: skip
    sure = 1 / (1 + math.exp(-2))
    assert found.kl.value == pytest.approx(0.3 * 2 * (2 * sure - 1))
    assert found.teacher_calibration == pytest.approx(abs(sure - 0.7))


def test_rows_in_another_order_are_joined_by_their_ids() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=50).tolist()
    student = np.where(generator.random(50) < 0.7, labels, generator.integers(3, size=50))
    order = generator.permutation(50)
    ids = [f"e{place}" for place in order]
    teacher = predictions("t", labels, labels)
    straight = agreement(teacher, predictions("s", student.tolist(), labels))
    turned = predictions("s", student[order].tolist(), np.array(labels)[order].tolist(), ids=ids)
    assert agreement(teacher, turned) == straight


def test_predictions_in_shuffled_order_agree_by_chance_alone() -> None:
    """A student that agrees on nine of ten, and the same as a shuffled file without ids would be read."""
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=2000)
    student = np.where(generator.random(2000) < 0.9, labels, 1 - labels)
    classes = NAMES[:2]
    teacher = predictions("t", labels.tolist(), labels.tolist(), classes=classes)
    straight = agreement(teacher, predictions("s", student.tolist(), labels.tolist(), classes=classes))
    shuffled = generator.permutation(student).tolist()
    misread = agreement(teacher, predictions("s", shuffled, labels.tolist(), classes=classes))
    assert straight.kappa.low is not None and straight.kappa.low > 0.75
    assert misread.kappa.low is not None and misread.kappa.high is not None
    assert misread.kappa.low < 0 < misread.kappa.high
    assert abs(misread.kappa.value or 1) < 0.05


def test_what_cannot_be_joined_is_refused() -> None:
    teacher = predictions("t", [0, 1, 2], [0, 1, 2])
    with pytest.raises(DataError, match=r"t and s .* 2 of 3 and 3 ids .*\('e2' is one"):
        agreement(teacher, predictions("s", [0, 1, 2], [0, 1, 2], ids=["e0", "e1", "x"]))
    with pytest.raises(DataError, match=r"2 of 3 examples have other labels \(first: 'e1'\)"):
        agreement(teacher, predictions("s", [0, 1, 2], [0, 2, 1]))
    with pytest.raises(DataError, match="their classes are no, yes, maybe and yes, no, maybe"):
        agreement(teacher, predictions("s", [0, 1, 2], [0, 1, 2], classes=("yes", "no", "maybe")))
    with pytest.raises(DataError, match="s: 1 examples have the id of another"):
        predictions("s", [0, 1, 2], [0, 1, 2], ids=["a", "b", "a"])
    with pytest.raises(DataError, match="s: its logits of 1 of 2 examples are not finite"):
        Predictions("s", ("a", "b"), np.array([0, 1]), np.array([[0, math.nan], [0, 1.0]]), NAMES[:2])


def test_what_kappa_cannot_tell_is_said() -> None:
    same = agreement(predictions("t", [0, 1, 1], [0, 1, 1]), predictions("s", [0, 1, 1], [0, 1, 1]))
    assert same.kappa.value == 1 and same.errors.overlap is None and not same.flips
    (note,) = same.notes
    assert f"{1 - 0.05 ** (1 / 3):.1%}" in note
    constant = agreement(predictions("t", [0, 1, 1], [0, 1, 1]), predictions("s", [1, 1, 1], [0, 1, 1]))
    assert "s predicts one class for all 3 examples" in constant.notes[0]


TEXTS = ["the cat sat", "a dog ran on", "the log", "a mat and a cat", "the dog sat on the mat", "a cat ran"]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and two students with tokenizers of their own, and examples with ids."""
    folder = tmp_path_factory.mktemp("classifiers")
    for seed, (name, size, family) in enumerate(
        [("teacher", 272, "bert"), ("near", 280, "bert"), ("far", 266, "distilbert")]
    ):
        tokenizer = train_tokenizer(TEXTS * 3, "bpe", size, masked=True)
        fields = {"model_type": family, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = classifier_from_fields(
            {**fields, "initializer_range": 0.3}, tokenizer, labels=("bad", "good"), context=32, seed=seed
        )
        save_model(model, tokenizer, folder / name)
    rows = [{"idx": 10 + i, "sentence": text, "label": i % 2} for i, text in enumerate(TEXTS * 4)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_the_command_reads_each_model_by_its_tokenizer(
    classifiers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(classifiers)
    words = ["agreement", "teacher", "near", "far", "--data", "rows.jsonl"]
    found = done(*words, "--output", str(tmp_path / "new" / "out.json"))
    assert found == json.loads((tmp_path / "new" / "out.json").read_text())
    assert [one["student"] for one in found["agreements"]] == ["near", "far"]
    assert [row["id"] for row in found["examples"]] == [str(10 + i) for i in range(24)]
    scores = done("eval", "teacher", "near", "far", "--suite", "classification", "--data", "rows.jsonl")
    for one in found["agreements"]:
        for role in ("teacher", "student"):
            (result,) = scores[one[role]]
            assert one[f"{role}_accuracy"]["value"] == result["scores"][0]["value"]
            told = {row["id"]: row["predicted"][one[role]] for row in found["examples"]}
            names = found["classes"]
            assert told == {name: names[place] for name, place in result["report"]["predictions"].items()}
        differing = [
            row["id"]
            for row in found["examples"]
            if len({row["predicted"][one[r]] for r in ("teacher", "student")}) > 1
        ]
        assert [flip["id"] for flip in one["flips"]] == differing
    shown = stlm_kd(*words).stdout
    assert "Cohen's κ" in shown and f"near: {len(found['agreements'][0]['flips'])} flips" in shown


def test_a_model_beside_its_copy_agrees_on_everything(
    classifiers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(classifiers)
    found = done("agreement", "teacher", "./teacher", "--data", "rows.jsonl")["agreements"][0]
    assert found["top1"]["value"] == 1
    assert found["kl"]["value"] == pytest.approx(0, abs=1e-12)
    assert not found["flips"]


def test_the_command_explains_decisions(
    classifiers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(classifiers)
    words = [
        "agreement",
        "teacher",
        "near",
        "far",
        "--data",
        "rows.jsonl",
        "--set",
        "samples=40",
        "--set",
        "examples=3",
    ]
    words += ["--attributions", "lime,integrated-gradients", "--set", "top=2", "--set", "which=hard"]
    found = done(*words, "--html", str(tmp_path / "page.html"))
    explained = [row for row in found["examples"] if "weights" in row]
    assert len(explained) == 3 and {row["weights_for"] for row in explained} == {"good"}
    for one in found["agreements"]:
        for each in one["explanations"]:
            rows = {row["id"]: row for row in each["examples"]}
            for row in explained:
                weights = row["weights"][each["method"]]
                own, other = (weights[one[role]]["values"] for role in ("teacher", "student"))
                assert len(own) == len(row["words"])
                if len(own) > 2:
                    correlation = spearmanr(own, other).statistic
                    assert rows[row["id"]]["correlation"] == pytest.approx(correlation)
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="model"') == 3 * 3 * 2
    assert "integrated-gradients: rank correlation" in stlm_kd(*words).stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["teacher", "near", "--data", "rows.jsonl", "--html", "x.html"], 2, "--attributions lime"),
        (["teacher", "near", "--data", "rows.jsonl", "--attributions", "limes"], 2, "did you mean lime?"),
        (["teacher", "teacher", "--data", "rows.jsonl"], 2, "teacher: given twice"),
        (["teacher", "near"], 2, "give --data FILE"),
        (["teacher", "near", "--data", "nowhere.jsonl"], 5, "nowhere.jsonl"),
        (["teacher", "nowhere", "--data", "rows.jsonl"], 5, "nowhere"),
        (["teacher", "near", "--data", "rows.jsonl", "--output", "rows.jsonl/x"], 5, "in the way is a file"),
    ],
)
def test_the_command_says_what_is_wrong(
    words: list[str], code: int, message: str, classifiers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(classifiers)
    result = stlm_kd("agreement", *words)
    assert result.exit_code == code, result.output
    assert message in result.stderr


def test_models_that_name_their_classes_otherwise_are_refused(
    classifiers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(classifiers)
    for number, (names, code) in enumerate(
        [(("poor", "fine"), 1), (("good", "bad"), 1), (("Bad", "Good"), 0), (("LABEL_0", "LABEL_1"), 0)]
    ):
        other = tmp_path / str(number)
        shutil.copytree("near", other)
        config = json.loads((other / "config.json").read_text())
        config["id2label"] = {str(place): name for place, name in enumerate(names)}
        config["label2id"] = {name: place for place, name in enumerate(names)}
        (other / "config.json").write_text(json.dumps(config))
        result = stlm_kd("agreement", "teacher", str(other), "--data", "rows.jsonl")
        assert result.exit_code == code, result.output
        assert (f"classes are {', '.join(names)} and bad, good" in result.stderr) == (code == 1)
