"""Models that do not fit: one message, the exit code, and nothing half-made, before anything is trained."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import BertForMaskedLM

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.models.load import save_model
from tests.support.road import ADAPT, LLAMA, ROBERTA, done, stlm_kd

ADVICE = ("Use a causal model", "Use a masked language model", "use the same task")


def altered(source: Path, folder: Path, **fields: object) -> None:
    """A copy of a model folder with other fields in its config.json."""
    shutil.copytree(source, folder)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def damaged(source: Path, folder: Path, name: str, content: bytes) -> None:
    """A copy of a model folder in which one file is something else."""
    shutil.copytree(source, folder)
    (folder / name).unlink()
    (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def wrong(road: Path) -> Iterator[Path]:
    """Model folders whose content does not match their configuration."""
    folder = road / "wrong"
    for name, source, layers, width in (
        ("llama", "same", "num_hidden_layers", "hidden_size"),
        ("distilbert", "distilbert", "n_layers", "dim"),
    ):
        altered(road / source, folder / f"{name}-wide", **{width: 32})
        altered(road / source, folder / f"{name}-deep", **{layers: 3})
        altered(road / source, folder / f"{name}-shallow", **{layers: 1})
        altered(road / source, folder / f"{name}-vocabulary", vocab_size=310)
        weights = (road / source / "model.safetensors").read_bytes()
        damaged(road / source, folder / f"{name}-cut", "model.safetensors", weights[: len(weights) // 2])
        damaged(road / source, folder / f"{name}-garbage", "model.safetensors", b"no weights at all " * 99)
        damaged(road / source, folder / f"{name}-json", "config.json", b"{not JSON")
    bert = BertForMaskedLM.from_pretrained(road / "bert")
    save_model(bert.bert, load_tokenizer(str(road / "bert")), folder / "body")
    yield folder
    shutil.rmtree(folder)


def refused(tmp_path: Path, recipe: str, *changes: str) -> tuple[int, str]:
    """Exit code and message of a command that has to refuse: nothing is made, and the record says why."""
    result = stlm_kd("distill", "-r", f"{recipe}.yaml", *changes, "--output-dir", str(tmp_path))
    assert result.exit_code not in (0, 1), f"{result.output}{result.exception!r}"
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 or (re.search(r": 1 fault$", lines[0]) and len(lines) == 2), result.stderr
    made = {path.name for path in tmp_path.rglob("*")}
    assert not made & {"metrics.jsonl", "students", "report.json", "results.json", "model.safetensors"}
    for run in done("runs", "list", "--output-dir", str(tmp_path)):
        assert run["status"] == "failed"
        assert lines[-1].strip() in stlm_kd("runs", "show", run["path"]).stdout.replace("\n", " ")
    return result.exit_code, " ".join(lines)


NESTED = (
    "{task: %s, student: {tokenizer: %s, architecture: %s}, data: {train: train.txt, context: 64}, "
    "objectives: [{loss: labels}], train: {steps: 2}}"
)
OTHER_TASK = [
    ("taught", "teachers=[{name: a, model: distilbert}]", "teachers[0] (a)", "distilbert is a masked"),
    ("taught", f"teachers=[{{name: a, model: bert, adapt: {ADAPT}}}]", "teachers[0] (a)", "bert is a masked"),
    ("taught", f"teachers=[{{name: a, recipe: {NESTED % ('mlm', 'own-masked', ROBERTA)}}}]",
     "teachers[0].recipe.task", "mlm given, but the student's task is clm"),
    ("plain", "student={tokenizer: own-masked, model: roberta}", "student.model", "roberta is a masked"),
    ("masked", f"teachers=[{{name: b, model: same, adapt: {ADAPT}}}]", "teachers[0] (b)",
     "llama is a causal"),
    ("masked", "teachers[1]={name: d, model: padded}", "teachers[1] (d)", "gpt2 is a causal"),
    ("masked", f"teachers[1]={{name: d, recipe: {NESTED % ('clm', 'own', LLAMA)}}}",
     "teachers[1].recipe.task", "clm given, but the student's task is mlm"),
    ("filling", "student={tokenizer: own-masked, model: same}", "student.model", "llama is a causal"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "change", "where", "what"), OTHER_TASK)
def test_a_model_of_the_other_task_is_refused_and_the_message_says_why(
    place: Path, tmp_path: Path, recipe: str, change: str, where: str, what: str
) -> None:
    code, message = refused(tmp_path, recipe, change)
    assert code == 3
    assert where in message and what in message
    assert any(advice in message for advice in ADVICE)


SAID = [
    ("plain", ["student.architecture={model_type: bert}"], 3, "student.architecture", "bert is for task mlm"),
    ("filling", [f"student.architecture={LLAMA}"], 3, "student.architecture", "llama is for task clm"),
    ("filling", ["student={tokenizer: own-masked, preset: stlm-nano}"], 3, "student.preset", "for task clm"),
    ("plain", ["eval=[masked-loss]"], 3, "eval[0]", "masked-loss is for task mlm; expected for clm"),
    ("filling", ["eval=[perplexity]"], 3, "eval[0]", "perplexity is for task clm; expected for mlm"),
    ("plain", ["data.masked_share=0.2"], 3, "data.masked_share", "only for masked language models"),
    ("filling", ["student.tokenizer=own"], 3, "student.tokenizer", "it has no mask token"),
    ("filling", ["data.context=2"], 3, "data.context", "expected at least 3"),
    ("masked", ["student.init_from.layers=[0, 9]"], 3, "student.init_from.layers",
     "the teacher has 4 layers; use different indices 0 to 3"),
    ("masked", ["student.init_from.layers=[2, 0]"], 3, "student.init_from.layers", "in ascending order"),
    ("masked", ["student.init_from.teacher=x"], 3, "student.init_from.teacher", "x is not a teacher"),
    ("masked", ["student.init_from.model_type=bart"], 3, "student.init_from.model_type",
     "bart is not a known family (did you mean bert?)"),
    ("masked", ["student.init_from.model_type=gpt2"], 3, "student.init_from.model_type", "is for task clm"),
    ("masked", ["student.init_from.model_type=roberta"], 3, "student.init_from.model_type",
     "possible: bert, distilbert"),
    ("masked", ["student.init_from.model_type=roberta"], 3, "student.init_from.model_type",
     "a roberta student cannot be made of the layers of a bert teacher"),
    ("masked", ["student.init_from={teacher: d, model_type: bert}"], 3, "student.init_from.model_type",
     "a bert student cannot be made of the layers of a distilbert teacher"),
    ("filling", ["student.new_head=true"], 3, "student.new_head", "only for a student.model"),
    ("filling", ["student={tokenizer: own-masked, model: roberta, new_head: true}"], 3, "roberta",
     "it has a head already"),
    ("filling", ["student={tokenizer: bert, model: wrong/body}"], 3, "wrong/body", "student.new_head: true"),
    ("filling", ["student={tokenizer: own-masked, model: roberta}", "data.context=65"], 3, "student.model",
     "64 positions, but data.context is 65"),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "changes", "code", "where", "what"), SAID)
def test_what_does_not_go_together_is_one_message(
    wrong: Path,
    place: Path,
    tmp_path: Path,
    recipe: str,
    changes: list[str],
    code: int,
    where: str,
    what: str,
) -> None:
    found, message = refused(tmp_path, recipe, *changes)
    assert found == code
    assert where in message and what in message


PARTS = [
    ("taught", "teachers[0]={name: a, model: wrong/llama-%s}", "taught: teachers[0] (a): wrong/llama-%s"),
    (
        "masked",
        "teachers[1]={name: d, model: wrong/distilbert-%s}",
        "masked: teachers[1] (d): wrong/distilbert-%s",
    ),
    ("plain", "student={tokenizer: own, model: wrong/llama-%s}", "plain: student.model: wrong/llama-%s"),
]
DAMAGES = [
    ("wide", 3, "of another shape than config.json says"),
    ("deep", 3, "weights are missing"),
    ("shallow", 3, "are of layers beyond the 1 that config.json has"),
    ("vocabulary", 3, "of another shape than config.json says"),
    ("cut", 3, "the weights cannot be read"),
    ("garbage", 3, "the weights cannot be read"),
    ("json", 3, "config.json: not valid JSON"),
]


@pytest.mark.parametrize(("recipe", "change", "where"), PARTS)
@pytest.mark.parametrize(("damage", "code", "what"), DAMAGES)
def test_a_folder_that_is_not_what_it_says_is_refused_before_anything_is_trained(
    wrong: Path, place: Path, tmp_path: Path,
    recipe: str, change: str, where: str, damage: str, code: int, what: str,
) -> None:  # fmt: skip
    found, message = refused(tmp_path, recipe, change % damage)
    assert found == code
    assert where % damage in message and what in message


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["eval", "distilbert", "--suite", "perplexity", "--data", "valid.txt"], "use pseudo-perplexity"),
        (["eval", "same", "--suite", "masked-loss", "--data", "valid.txt"], "use perplexity"),
        (["generate", "bert", "--prompt", "The"], "does not continue it"),
    ],
)
def test_commands_say_what_a_model_of_the_other_task_is_for(place: Path, words: list[str], what: str) -> None:
    result = stlm_kd(*words)
    assert result.exit_code == 3
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("scoring ")]
    assert what in line


@pytest.mark.parametrize(
    ("model", "tokenizer", "task", "what"),
    [
        ("bert", "own", None, "it has no mask token"),
        ("bert", "own-masked", "clm", ADVICE[0]),
        ("gpt2", "own", "mlm", ADVICE[1]),
        ("gpt2", "own", "nlm", "expected one of clm, mlm"),
    ],
)
def test_adapt_teacher_refuses_what_cannot_be(
    place: Path, tmp_path: Path, model: str, tokenizer: str, task: str | None, what: str
) -> None:
    words = ["adapt-teacher", model, "--tokenizer", tokenizer, "--data", "train.txt", "data.context=64"]
    words += ["--validation", "valid.txt", "--output-dir", str(tmp_path), *([f"task={task}"] if task else [])]
    result = stlm_kd(*words)
    assert result.exit_code == 3, f"{result.output}{result.exception!r}"
    assert what in result.stderr and "Traceback" not in result.stderr
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_adapt_teacher_without_a_recipe_names_the_keys_that_change_it(place: Path, tmp_path: Path) -> None:
    words = [
        "adapt-teacher",
        "gpt2",
        "--tokenizer",
        "own",
        "--data",
        "train.txt",
        "--output-dir",
        str(tmp_path),
    ]
    for more, said in (
        (["--validation", "train.txt"], "data.validation[0].path: train.txt is data.train[0] too; "),
        (
            ["--validation", "valid.txt", "data.context=9999"],
            "teachers[0] (gpt2): it has 64 positions, but data.context is ",
        ),
        (["--validation", "valid.txt", "teachers[0].adapt.learning_rate=-1"], "learning_rate=-1: -1 found"),
    ):
        result = stlm_kd(*words, *more)
        assert result.exit_code == 3 and said in result.stderr, result.output
