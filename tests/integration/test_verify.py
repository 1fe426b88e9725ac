"""``recipe verify``: every planted fraud is found at its rung, every honest claim is confirmed."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stlm_kd import verify_recipe
from stlm_kd.artifacts.provenance import program
from stlm_kd.errors import CheckpointError, MissingResourceError, RecipeError, StlmKdError, UsageError
from stlm_kd.publishing.verify.report import Verification
from tests.support import classes, frauds
from tests.support.frauds import BY_SCORING, BY_TRAINING, IN_FILES, Values, claim_of, edited
from tests.support.paths import installed_copy
from tests.support.road import LLAMA, TRAIN, build, distilled, stlm_kd

RECIPE = f"""
task: clm
student: {{tokenizer: own, architecture: {LLAMA}}}
teachers: [{{name: a, model: same}}]
data: {{train: train.txt, validation: {{path: valid.txt, documents: line}}, context: 64}}
objectives: [{{loss: labels}}, {{loss: reverse_kl}}]
{TRAIN}
eval: [perplexity, {{suite: lm-eval, tasks: [sample_minimal_pairs], limit: 8}}]
controls: [no-teacher]
seeds: [1, 2]
tracking: []
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verified")
    build(folder)
    (folder / "honest.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    """One honest run: a teacher, a student and a control with two seeds each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        folder = distilled("honest", output_dir=world / "runs", options=("--no-rehearsal",))
        frauds.write_card(folder)
        return folder


@pytest.fixture
def claim(run: Path, tmp_path: Path) -> Path:
    return claim_of(run, tmp_path / "claim")


def shortened(names: Collection[str], every: int) -> list[Any]:
    """Parameters of which one in ``every`` is left to the long tests."""
    rare = [*names][every - 1 :: every]
    return [pytest.param(name, marks=pytest.mark.long) if name in rare else name for name in names]


def refutations(found: Verification) -> str:
    return "\n".join(str(one) for one in found.findings if one.refutes)


@pytest.mark.parametrize("name", shortened(IN_FILES, every=2))
def test_a_fraud_that_the_files_show_is_refuted_by_the_files(name: str, claim: Path) -> None:
    fraud = IN_FILES[name]
    found = verify_recipe(edited(claim, fraud.edit, follows=fraud.follows))
    assert found.rung == "none" and found.refuted
    assert re.search(fraud.said, refutations(found)), refutations(found)


@pytest.mark.parametrize("name", shortened(BY_SCORING, every=2))
def test_a_fraud_that_fits_in_itself_is_refuted_by_scoring_again(name: str, claim: Path) -> None:
    fraud = BY_SCORING[name]
    edited(claim, fraud.edit, follows=True)
    before = verify_recipe(claim)
    assert before.rung == "consistent" and not before.refuted, refutations(before)
    found = verify_recipe(claim, rescore=True, model=claim / "students" / "student" / "seed-1" / "model")
    assert found.rung == "consistent" and found.refuted
    assert re.search(fraud.said, refutations(found)), refutations(found)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"(?m)^(\| distilled student .*)\d\.\d{4}", "a line of its table is not that"),
        (r"(?m)^(\| no-teacher .*\| )(\d\.\d{4} ± \d)\.", "a line of its table is not that"),
        (r"(?m)^(- .*): within noise", "lacks a note"),
        (r"(?m)^(- )warning.*$", "lacks a note"),
        (r"(metrics:\n.*\n +value: )\d\.\d+", "score for the Hub is not the mean"),
        (r"(?m)^(\| distilled student.*)$\n", None),
    ],
)
def test_a_card_that_says_otherwise_is_refuted(pattern: str, said: str | None, claim: Path) -> None:
    card = claim / "README.md"
    before = card.read_text()
    new = r"\g<1>9.9999" if said else r"\g<1>\n| distilled student | 1 |\n"
    after = re.sub(pattern, new, before, count=1)
    assert after != before
    card.write_text(after)
    found = verify_recipe(claim)
    assert re.search(said or "a line of its table", refutations(found)), found.as_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card + "\n distilled student | 1 | 2\n",
        lambda card: card + "\n|  **distilled student**  | 1 | 2 |\n",
        lambda card: card.replace("## Results", "## Results\n<!--").replace("## Recipe", "-->\n## Recipe"),
        lambda card: "\ufeff" + re.sub(r"(metrics:\n.*\n +value: )\d\.\d+", r"\g<1>9.9", card),
    ],
)
def test_a_table_that_a_page_shows_otherwise_is_refuted(change: Callable[[str], str], claim: Path) -> None:
    card = claim / "README.md"
    card.write_text(change(card.read_text()))
    found = verify_recipe(claim)
    assert found.refuted or "no table of results in it" in found.as_text()


def test_a_card_that_names_another_model_than_the_lock_is_refuted(claim: Path) -> None:
    edited(claim, lambda values, lock: lock.update(published={"a": "hf://a/b"}))
    assert not verify_recipe(claim).refuted
    card = claim / "README.md"
    card.write_text(card.read_text().replace("hf://a/b", "hf://c/d"))
    assert "the address of a model is not that of the lock" in refutations(verify_recipe(claim))


@pytest.mark.parametrize("name", ["parameters", "tokens_of_text", "tokens_seen", "steps", "flops"])
def test_another_cost_is_refuted_by_training_again(name: str, claim: Path, run: Path) -> None:
    def edit(values: Values, lock: Values) -> None:
        for row in values["rows"][frauds.STUDENT :]:
            row[name] -= 1

    edited(claim, edit, follows=True)
    assert verify_recipe(claim).rung == "consistent"
    found = verify_recipe(claim, rerun=True, seeds=2, output_dir=run.parent)
    assert f"another number of {name.replace('_', ' ')}" in refutations(found)


def test_seeds_that_a_claim_lacks_are_told(claim: Path, run: Path) -> None:
    found = verify_recipe(claim, rerun=True, seeds=3, output_dir=run.parent)
    assert found.rung == "reproduced"
    assert "--seeds: 3 asked for, but the claim has 2, which were trained" in map(str, found.findings)


def test_another_readme_is_no_card(claim: Path) -> None:
    (claim / "README.md").write_text("# mine\n\n| a | b |\n")
    found = verify_recipe(claim)
    assert found.rung == "consistent" and "no table of results" in str(found.findings[0])


def test_damaged_files_are_named(claim: Path) -> None:
    results, lock = claim / "results.json", claim / "recipe.lock"
    whole = results.read_text()
    with pytest.raises(CheckpointError, match="expected the hash of texts in the same file"):
        verify_recipe(edited(claim, frauds.texts_of_nothing))
    for text, said in ((whole[:-40], "no JSON"), ("{}", "neither rows"), ("[]", "expected an object")):
        results.write_text(text)
        with pytest.raises(CheckpointError, match=f"results.json: damaged.*{said}"):
            verify_recipe(claim)
    results.write_text(whole)
    lock.write_text(lock.read_text().replace("sha256:", "sha257:"))
    with pytest.raises(RecipeError, match=r"recipe\.lock"):
        verify_recipe(claim)
    results.unlink()
    with pytest.raises(MissingResourceError, match="claims nothing"):
        verify_recipe(claim)


def test_results_that_the_lock_does_not_name_are_refuted(claim: Path) -> None:
    found = verify_recipe(edited(claim, lambda values, lock: values["rows"][0].update(flops=1), fit=False))
    assert "not the results that the lock names" in refutations(found)


def test_the_program_that_made_a_claim_is_told_and_compared_with_a_wheel(claim: Path, tmp_path: Path) -> None:
    package, lock = installed_copy(tmp_path / "package"), claim / "recipe.lock"
    wheel = tmp_path / "stlm_kd-0.1.0-py3-none-any.whl"
    shutil.move(shutil.make_archive(str(tmp_path / "made"), "zip", package), wheel)
    (claim / "recipe.sig").write_text("{}")
    found = verify_recipe(claim, wheel=wheel)
    assert f"{wheel}: has the files of the program that made the lock" in found.compared
    assert [one.place for one in found.findings] == ["recipe.sig"] and not found.refuted
    lock.write_text(lock.read_text().replace(str(program().source), f"sha256:{'0' * 64}"))
    with pytest.raises(RecipeError, match=r"made\.source: sha256:\w+ found in .*; locked: sha256:0000"):
        verify_recipe(claim, wheel=wheel)
    found = verify_recipe(claim, rescore=True, model=claim / "students" / "student" / "seed-1" / "model")
    assert found.rung == "rescored"
    assert any("another program made it: stlm-kd 0.1.0" in str(one) for one in found.findings)


def test_text_from_the_files_cannot_steer_a_terminal(claim: Path) -> None:
    def evil(values: Values, lock: Values) -> None:
        values["rows"][0]["name"] = "teacher a\x1b[2J\u202e"
        values["remarks"].append("all is \x1b[32mOK\u2028")

    edited(claim, evil)
    result = stlm_kd("recipe", "verify", str(claim))
    assert result.exit_code == 1 and r"teacher a\x1b[2J\u202e" in result.stdout
    assert not {"\x1b", "\u202e", "\u2028"} & set(result.output)
    printed = stlm_kd("recipe", "verify", str(claim), "--json").stdout
    assert json.loads(printed)["refuted"] and not {"\u202e", "\u2028"} & set(printed)


def _same(values: Values, lock: Values) -> None:
    pass


def _elsewhere(values: Values, lock: Values) -> None:
    lock["environment"] = {"python": "3.99", "platform": "Plan 9", "hardware": "1 x abacus"}


def _other_versions(values: Values, lock: Values) -> None:
    lock["packages"] = dict.fromkeys(lock["packages"], "99.0")


def _other_order(values: Values, lock: Values) -> None:
    for part in (values, *values["rows"]):
        items = sorted(part.items(), reverse=True)
        part.clear()
        part.update(items)


def _older(values: Values, lock: Values) -> None:
    """As written before results recorded what was scored."""
    values.pop("texts")
    for row in values["rows"]:
        row.pop("of")
        for suites in row["suites"]:
            for one in suites:
                one.pop("texts"), one.pop("data", None), one["report"].pop("pieces", None)


def _no_pins(values: Values, lock: Values) -> None:
    values.pop("pins")


def _no_results_named(values: Values, lock: Values) -> None:
    lock.pop("results")
    lock.pop("outputs")


def _texts_in_place(values: Values, lock: Values) -> None:
    for row in values["rows"]:
        for suites in row["suites"]:
            for one in suites:
                one["texts"] = values["texts"][one["texts"]]
    values.pop("texts")


def _another_day(values: Values, lock: Values) -> None:
    lock["made"]["on"] = "2031-02-28"


def _no_program(values: Values, lock: Values) -> None:
    lock["made"] = {"by": lock["made"]["by"]}


def _no_notes(values: Values, lock: Values) -> None:
    lock.pop("environment")
    lock.pop("stages")


def _published(values: Values, lock: Values) -> None:
    lock["published"] = {"students/student/seed-1/model": f"hf://alice/tiny@{'0' * 40}"}


def _whole_numbers(values: Values, lock: Values) -> None:
    """As by a writer of JSON that knows no 1.0."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: short(one) for key, one in value.items()}
        if isinstance(value, list):
            return [short(one) for one in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    values.update(short(values))


@pytest.mark.parametrize(
    "edit",
    [
        _same, _elsewhere, _other_versions, _other_order, _older, _no_pins, _no_results_named,
        _texts_in_place, _another_day, _no_program, _no_notes, _published, _whole_numbers,
    ],
)  # fmt: skip
def test_an_honest_claim_in_another_form_is_consistent(
    edit: Callable[[Values, Values], None], claim: Path
) -> None:
    found = verify_recipe(edited(claim, edit, fit=edit is not _no_results_named))
    assert found.rung == "consistent" and not found.refuted, refutations(found)
    unchecked = [str(one) for one in found.findings]
    assert bool(unchecked) == (edit in (_older, _no_results_named)), unchecked


def test_an_honest_folder_without_run_or_lock_is_consistent(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    for name in frauds.FILES:
        (folder / name).write_bytes((run / name).read_bytes())
    found = verify_recipe(folder)
    assert (found.rung, found.findings) == ("consistent", ())
    with pytest.raises(MissingResourceError, match="--model FOLDER"):
        verify_recipe(folder, rescore=True)
    (folder / "recipe.lock").unlink()
    found = verify_recipe(folder / "recipe.yaml")
    assert found.rung == "consistent" and "nothing ties the results" in str(found.findings[0])


def test_an_honest_run_is_rescored_and_its_verification_written(claim: Path, tmp_path: Path) -> None:
    output = tmp_path / "verification.json"
    result = stlm_kd("recipe", "verify", str(claim), "--rescore", "-o", str(output), "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(output.read_text())
    assert found == json.loads(result.stdout)
    assert (found["rung"], found["refuted"]) == ("rescored", False)
    assert [one["message"] for one in found["findings"]] == ["not scored again: teacher a"]
    equal = [line for line in found["compared"] if "equal in all" in line]
    assert len(equal) == 4 * 3  # four models, with bits per byte, perplexity and accuracy
    assert found["made"]["packages"]["torch"] and found["format"] == 1


def test_a_model_is_recognised_by_its_weights(run: Path, claim: Path, world: Path) -> None:
    own = run / "students" / "no-teacher" / "seed-2" / "model"
    found = verify_recipe(claim, rescore=True, model=own)
    assert found.rung == "rescored"
    assert all(line.startswith("no-teacher, seed 2") for line in found.compared[1:])
    left = "not scored again: teacher a, distilled student, seed 1 and 2, no-teacher, seed 1"
    assert [one.message for one in found.findings] == [left]
    found = verify_recipe(claim, rescore=True, model=world / "same")
    assert found.refuted and "none of those that the results name" in refutations(found)
    with pytest.raises(MissingResourceError, match="expected the folder of a model"):
        verify_recipe(claim, rescore=True, model=world)
    for options in ({"model": own}, {"seeds": 2}, {"output_dir": world / "new"}):
        with pytest.raises(UsageError, match="add it"):
            verify_recipe(claim, **options)


def test_a_rerun_gives_the_same_weights(claim: Path, tmp_path: Path) -> None:
    found = verify_recipe(claim, rerun=True, output_dir=tmp_path / "again")
    assert found.rung == "reproduced" and not found.refuted, found.as_text()
    assert sum("same weights, bit for bit" in line for line in found.compared) == 2
    assert "can only fail to refute" in found.as_text()
    assert (tmp_path / "again" / "stages").is_dir()


@pytest.mark.long
@pytest.mark.parametrize("name", BY_TRAINING)
def test_a_fraud_of_a_whole_run_is_found_by_training_again(name: str, claim: Path) -> None:
    fraud = BY_TRAINING[name]
    edited(claim, fraud.edit, follows=True)
    assert verify_recipe(claim).rung == "consistent"
    found = verify_recipe(claim, rerun=True)
    assert "trained again to other weights, with the same versions" in found.as_text()
    assert re.search(fraud.said, found.as_text()), found.as_text()


@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 20))])
def test_no_damage_of_the_results_ends_in_a_traceback(seed: int, run: Path, tmp_path: Path) -> None:
    draw, whole = random.Random(seed), json.loads((run / "results.json").read_text())
    places = [place for place in _places(whole) if place]
    for number in range(10):
        folder, place = claim_of(run, tmp_path / str(number)), draw.choice(places)
        with suppress(StlmKdError):
            found = verify_recipe(edited(folder, partial(_damage, place=place, draw=draw)))
            assert json.dumps(found.as_json()) and found.as_text()


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value[:6] if isinstance(value, list) else ())
    )
    for key, one in inner:
        yield from _places(one, (*place, key))


def _damage(values: Values, lock: Values, *, place: tuple[Any, ...], draw: random.Random) -> None:
    wrong = [None, True, -1, 1e308, float("nan"), 10**40, "", "\ud800", [], {}, [[]], {"a": 1}, [None]]
    node: Any = values
    for key in place[:-1]:
        node = node[key]
    if draw.random() < 0.2:
        del node[place[-1]]
    else:
        node[place[-1]] = draw.choice(wrong)


AGREE = "eval: [classification, agreement, {suite: interchange, rows: 8, context: 16}]"
KINDS = {
    "masked": (
        "masked-plain",
        """
task: mlm
student: {tokenizer: own-masked, init_from: {teacher: d, layers: every-other}}
teachers: [{name: d, model: distilbert}, {name: r, model: roberta}]
data: {train: train.txt, validation: {path: valid.txt, documents: line}, context: 64}
objectives: [{loss: labels, weight: 0.5}, {loss: forward_kl, weight: 0.5}]
train: {steps: 3, effective_batch: 8, log_every: 1}
eval: [{suite: pseudo-perplexity, tokens: 200}, masked-loss]
controls: [no-teacher]
tracking: []
""",
    ),
    "tuned": (
        "tuned",
        """
task: clm
student: {tokenizer: own, architecture: {model_type: gpt2, n_embd: 16, n_layer: 2, n_head: 2}}
teachers: [{name: a, model: padded}]
data: {train: train.txt, validation: valid.txt, context: 64}
objectives: [{loss: diito}]
train: {steps: 2, effective_batch: 4, log_every: 1}
eval:
  - {suite: glue, tasks: [sample-acceptability, sample-sentiment], seeds: 2, steps: 1}
  - {suite: interchange, rows: 8, context: 16}
  - perplexity
  - {suite: perplexity, window: 32}
tracking: []
""",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_run_of_another_kind_is_rescored(
    kind: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, text = KINDS[kind]
    monkeypatch.chdir(world)
    Path(f"{name}.yaml").write_text(text)
    assert_rescored(distilled(name, output_dir=tmp_path, options=("--no-rehearsal",)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("whole", AGREE),
        ("mapped", "eval: [classification]"),
        pytest.param("numbers", "eval: [regression]", marks=pytest.mark.long),
    ],
)
def test_an_honest_run_of_labelled_examples_is_rescored(
    name: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes.build(tmp_path)
    monkeypatch.chdir(tmp_path)
    text = classes.RECIPES["whole" if name == "mapped" else name].replace(
        "recipe: teacher.yaml", "model: bert"
    )
    if name == "mapped":
        config = json.loads(Path("bert/config.json").read_text())
        config |= {"id2label": {"0": "POS", "1": "NEG"}, "label2id": {"POS": 0, "NEG": 1}}
        Path("bert/config.json").write_text(json.dumps(config))
        text = text.replace("model: bert", "model: bert, classes: {POS: positive, NEG: negative}")
    text = text.replace("seeds: [1, 2]", "seeds: [1]").replace("controls: [no-teacher]", "controls: []")
    Path("labelled.yaml").write_text(re.sub(r"(?m)^eval: .*", change, text))
    assert_rescored(distilled("labelled", output_dir=tmp_path / "runs", options=("--no-rehearsal",)))


def assert_rescored(run: Path) -> None:
    """Everything in the run's results is computed again, and equal."""
    found = verify_recipe(run, rescore=True)
    assert found.rung == "rescored", found.as_text()
    unchecked = [str(one) for one in found.findings]
    known = "a note that scores alone|--rescore: not scored again: teacher"
    assert not [one for one in unchecked if not re.search(known, one)], unchecked
    equal = {line.rpartition(": ")[0] for line in found.compared[1:]}
    assert len(equal) == len(found.compared) - 1 and all(
        "equal in all" in line for line in found.compared[1:]
    )
