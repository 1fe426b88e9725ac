"""Every fault of a recipe is found at once, with its place, line, what was expected and the nearest name."""

from pathlib import Path

import pytest

from stlm_kd.errors import MissingResourceError, RecipeError, UsageError
from stlm_kd.recipe import Recipe, load

GOOD = """
task: clm
student: {tokenizer: t, preset: stlm-nano}
teachers: [{name: a, model: m}, {name: b, model: n}]
data: {train: a.txt, validation: b.txt}
objectives: [{loss: labels}, {loss: forward_kl}]
train: {steps: 10}
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    file = tmp_path / "good.yaml"
    file.write_text(GOOD, encoding="utf-8")
    return file


def loaded(file: Path, *overrides: str) -> Recipe:
    return load(str(file), overrides)


def faults(file: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(str(file), overrides)
    return [str(fault) for fault in caught.value.faults]


def test_all_faults_of_a_file_are_said_at_once_with_place_and_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(
        """task: clm
student: {tokenizer: t, presett: stlm-nano}
teachers:
  - {name: a, model: m, adapt: {tokns: 3M}}
data:
  train: {path: a.txt, weigth: 2}
objectives:
  - {loss: labels, weight: high}
  - {loss: forward_kl,
     temprature: 2,
     teacher: c}
train: {steps: 10, schedule: cosin, micro_batch: 5}
""",
        encoding="utf-8",
    )
    assert faults(file) == [
        "student.presett (line 2): not a key of student (did you mean preset?)",
        "teachers[0].adapt.tokns (line 4): not a key of adapt (did you mean tokens?)",
        "data.validation (line 5): not given, but adapting a teacher needs held-out text; "
        "add data.validation",
        "data.train.weigth (line 6): not a key of a source (did you mean weight?)",
        "objectives[0].weight (line 8): 'high' found; expected a number",
        "objectives[1].temprature (line 10): not an option of forward_kl (did you mean temperature?)",
        "objectives[1].teacher (line 11): c is not a teacher of this recipe; known: a, combined",
        "train.schedule (line 12): 'cosin' found; "
        "expected one of cosine, linear, constant (did you mean cosine?)",
        "train.micro_batch (line 12): 5 does not divide effective_batch, 32",
    ]


def test_the_message_names_the_file_and_counts_the_faults(good: Path) -> None:
    with pytest.raises(RecipeError, match=r"good\.yaml: 2 faults\n  train"):
        loaded(good, "train.stpes=3", "train.clip=no")


def test_the_options_of_a_misspelt_loss_are_checked_as_those_of_the_nearest(good: Path) -> None:
    found = faults(good, "objectives[1]={loss: forwardkl, temprature: 0}")
    assert found == [
        "objectives[1].temprature (objectives[1]={loss: forwardkl, temprature: 0}): "
        "not an option of forward_kl (did you mean temperature?)",
        "objectives[1].loss (objectives[1]={loss: forwardkl, temprature: 0}): "
        "'forwardkl' is not a known loss (did you mean forward_kl?)",
        "objectives[1].temprature (objectives[1]={loss: forwardkl, temprature: 0}): "
        "0 found; expected more than 0",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=nlp", "expected one of clm, mlm"),
        ("engine={deepspeed: {zero: 4}}", "4 found; expected one of 0, 1, 2, 3"),
        ("engine={deepspeed: {zero: 2, offload: cpu}}", "'cpu' found; expected one of none, optimizer, par"),
        ("engine={deepspeed: {zero: 0, offload: optimizer}}", "needs ZeRO stage 1 to 3, but zero is 0"),
        ("engine={deepspeed: {offload: parameters}}", "needs ZeRO stage 3, but zero is 2"),
        ("student={preset: stlm-nano}", "student.tokenizer"),
        (
            "student={tokenizer: t, preset: stlm-nano, model: m}",
            "preset and model given; expected exactly one of",
        ),
        (
            "student={tokenizer: t}",
            "none given; expected exactly one of preset, architecture, model, init_from",
        ),
        ("student.preset=stlm-4m", "is not a known preset (did you mean stlm-47m?)"),
        ("student.tokenizer=3", "3 found; expected a folder, a Hub id, {train: bpe, size: 8192}, or {trim: "),
        ("student.tokenizer={train: bpe, size: many}", "expected an integer"),
        ("student.tokenizer={trim: c, size: 500}", "c is not a teacher of this recipe"),
        (
            "student.tokenizer={train: bpe, size: 500, prefer: teacher}",
            "student.tokenizer.prefer",
        ),
        ("student.tokenizer={trim: a}", "student.tokenizer.size (student.tokenizer={trim: a}): not given"),
        ("student.tokenizer={trim: a, sizes: 9}", "not a key of tokenizer (did you mean size?)"),
        (
            "student.tokenizer={train: bpe, size: 257}",
            "size: 257}): 257 found; expected at least 258 for clm",
        ),
        ("student={tokenizer: t, architecture: {hidden_size: 3}}", "model_type is not given"),
        ("student={tokenizer: t, architecture: {model_type: llama, x: [1]}}", "x: a list of 1 found"),
        ("student={tokenizer: t, init_from: {teacher: c}}", "c is not a teacher of this recipe"),
        ("student={tokenizer: t, init_from: {teacher: a, layers: each}}", "expected one of every-other"),
        ("student={tokenizer: t, init_from: {teacher: a, layers: [-1]}}", "a list such as [0, 2, 4]"),
        ("teachers[1].name=a", "a is the name of teachers[0] too; choose another"),
        ("teachers[0].name=combined", "combined is reserved for all teachers together"),
        ("teachers[0].name=a/b", "expected letters, digits, dots, dashes and underscores"),
        ("teachers[0].model=null", "none given; expected exactly one of model, recipe"),
        ("teachers[0]={name: a, recipe: nowhere}", "nowhere: neither a file nor a built-in recipe"),
        (
            "teachers[0].adapt={init: sub-word-mean}",
            "is not a known initialiser of a vocabulary (did you mean subword-mean?)",
        ),
        ("teachers={name: a}", "a mapping (name) found; expected a list"),
        ("teachers=[]", "forward_kl compares the student with a teacher, and the recipe has none"),
        ("combine={how: weighted}", "not given, and there is no default"),
        ("combine={how: weighted, weights: {a: 1}}", "no weight for b; expected one each"),
        ("combine={how: weighted, weights: {a: 1, b: 1, c: 1}}", "not a teacher of this recipe"),
        ("combine={how: weighted, weights: {a: 0, b: 0}}", "all are 0; expected at least one above 0"),
        ("combine={how: weighted, weights: {a: -1, b: 1}}", "-1 found; expected at least 0"),
        ("combine={how: mean, weights: {a: 1, b: 1}}", "not an option of mean"),
        ("combine={how: confidense}", "is not a known way to combine teachers (did you mean confidence?)"),
        ("combine={how: confidence, sharpness: 0}", "0 found; expected more than 0"),
        ("combine={how: mean, teacher_dropout: 1}", "1 found; expected less than 1"),
        ("combine={how: random, teacher_dropout: 0.1}", "random selects one teacher per batch"),
        ("combine={how: random, per: token}", "expected one of batch, sequence"),
        ("combine={how: domains, weights: {default: {a: 1}}}", "no weight for b; expected one each"),
        ("combine={how: domains, weights: {default: {a: 0, b: 0}}}", "all are 0; expected at least one"),
        (
            "combine={how: domains, weights: {default: {a: 1, b: 0}, new: {a: 0, b: 1}}}",
            "no domain of data.train; known: default",
        ),
        ("combine={how: domains, weights: {}}", "no weights for domain default; expected weights for each"),
        ("combine={how: annealed, first: a, last: c}", "c is not a teacher of this recipe; known: a, b"),
        ("combine={how: annealed, first: a, last: a}", "a is also the first teacher"),
        ("combine={how: annealed, first: a, last: b, begin: 0.5, end: 0.5}", "expected more than 0.5"),
        ("data.train=null", "data.train"),
        ("data.train=[]", "an empty list found; expected at least one source"),
        ("data.train={path: a.txt, hub: b}", "path and hub given; expected exactly one of path, hub, sample"),
        (
            "data.train={path: a.txt, split: train}",
            "only for text from the Hub (hub: …) and labelled examples (sample: accept",
        ),
        ("data.train={path: a.txt, size: 3}", "only for generated text"),
        ("data.train={hub: h, documents: line}", "only for text from files"),
        (
            "data.train={sample: train, column: body}",
            "only for text from files (path: …) and text from the Hub (hub: …)",
        ),
        ("data.train={sample: test}", "expected one of train, validation"),
        ("data.validation={path: v.txt, weight: 2}", "only for training text"),
        ("data.fraction=0", "0 found; expected more than 0"),
        ("data.fraction=1.5", "1.5 found; expected at most 1"),
        ("data.context=1", "1 found; expected at least 2"),
        ("objectives=[]", "none given; expected at least one"),
        ("objectives=[{weight: 1}]", "objectives[0].loss"),
        ("objectives=[{loss: labels, temperature: 2}]", "not an option of labels"),
        ("objectives=[{loss: labels, on: attended}]", "labels counts labelled positions; expected labels"),
        ("objectives=[{loss: labels, teacher: a}]", "labels has no teacher"),
        ("objectives=[{loss: labels, weight: 0}]", "every weight is 0"),
        ("objectives=[{loss: labels, weight: -1}]", "expected at least 0"),
        ("objectives[1].temperature='2'", "'2' found; expected a number"),
        ("objectives[1].temperature=true", "true found; expected a number"),
        ("objectives[1].temperature=.nan", "finite"),
        ("objectives[1].temperature=.inf", "expected a finite number"),
        ("train={steps: 10, epochs: 1}", "steps and epochs given; expected exactly one of steps, epochs"),
        ("train={}", "none given; expected exactly one of steps, epochs"),
        ("train.steps=1.5", "1.5 found; expected an integer"),
        ("train.steps=true", "true found; expected an integer"),
        ("train.steps=200G", "'200G' found; expected an integer"),
        ("train.betas=[0.9]", "train.betas"),
        ("train.betas=[0.9, 1.0]", "1.0 found; expected less than 1"),
        ("train.learning_rate=.inf", "expected a finite number"),
        ("train.gradient_checkpointing=1", "1 found; expected true or false"),
        ("train.patience=3", "needs train.validate_every"),
        ("train.keep=best", "best needs train.validate_every"),
        ("data.train={path: a.txt, limit: 0}", "0 found; expected at least 1"),
        ("data.train={path: a.txt, limit: {bytes: -3}}", "-3 found; expected at least 1"),
        ("data.train={path: a.txt, limit: lots}", "'lots' found; expected an integer"),
        ("data.train={path: a.txt, limit: {docs: 3}}", "not a key of limit (did you mean documents?)"),
        (
            "data.train={path: a.txt, limit: {bytes: 3, documents: 2}}",
            "documents and bytes given; expected exactly one of tokens, documents, bytes",
        ),
        ("data.train={path: a.txt, subsample: 0}", "0 found; expected more than 0"),
        ("data.train={path: a.txt, subsample: 1.5}", "1.5 found; expected"),
        ("data.train={path: a.txt, subsample: {seed: 1}}", "rate"),
        ("data.train={path: a.txt, subsample: {rte: 0.1}}", "not a key of subsample (did you mean rate?)"),
        ("data.train={path: a.txt, min_characters: 0}", "0 found; expected at least 1"),
        ("data.train={path: a.jsonl, chat: chatml, column: said}", "not used with chat"),
        ("data.train={hub: a b}", "expected an id on the Hub"),
        ("data.train={path: a.jsonl, where: en}", "'en' found; expected columns with their values"),
        (
            "data.train={path: a.jsonl, where: {language: }}",
            "language: null found; expected a text, a",
        ),
        (
            "data.train={path: a.jsonl, where: {x: [1, [2]]}}",
            "x: a list of 1 found; expected a",
        ),
        ("data.train={path: a.jsonl, where: {x: []}}", "x: a list of 0 found; expected a"),
        ("data.train={sample: train, where: {a: b}}", "only for text from files (path: …)"),
        ("data.train={sample: train, shuffle: 3}", "only for sources with parts, such as files; sample has"),
        ("data.validation={path: a.jsonl, limit: 3k}", "in tokens, but models with other tokenizers are"),
        ("eval=[perplexty]", "is not a known suite (did you mean perplexity?)"),
        ("eval=[{suite: perplexity, strid: 3}]", "not an option of perplexity (did you mean stride?)"),
        ("eval=[3]", "3 found; expected a mapping"),
        ("controls=[none]", "expected one of no-teacher, all-data"),
        ("controls=[no-teacher, no-teacher]", "no-teacher given twice"),
        ("seeds=[]", "an empty list found; expected at least one seed"),
        ("seeds=[1, 1]", "1 given twice"),
        ("seeds=3", "3 found; expected a list"),
        ("tracking=[tensorbord]", "(did you mean tensorboard?)"),
        ("nonsense=1", "not a key of a recipe; known: combine, controls"),
    ],
)
def test_a_fault_says_what_was_expected(good: Path, override: str, message: str) -> None:
    found = faults(good, override)
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.validation=null", "train.validate_every=5"), "but data.validation is not given"),
        (("data.validation=null", "teachers[0].adapt={}"), "adapting a teacher needs held-out text"),
        (
            ("teachers[0].adapt={}", "teachers[0].translate=true"),
            "given with adapt, which replaces the teacher's vocabulary; leave one of them out",
        ),
        (
            ("teachers[0].cache=folder", "teachers[0].translate=true"),
            "the cache has the student's tokens already; leave translate out",
        ),
        (
            ("task=mlm", "student={tokenizer: t, init_from: {teacher: b}}", "teachers[0].translate=true"),
            "only for causal language models, but the task is mlm",
        ),
        (
            ("student={tokenizer: t, init_from: {teacher: a}}", "teachers[0].translate=true"),
            "a keeps its own vocabulary (translate), which is not the student's",
        ),
        (
            ("objectives[1]={loss: cosine, teacher: a}", "teachers[0].translate=true"),
            "cosine compares more than distributions, but a keeps its own vocabulary (translate)",
        ),
        (("teachers=[]", "objectives=[{loss: labels}]", "controls=[no-teacher]"), "but the recipe has none"),
        (
            ("teachers=[{name: a, model: m}]", "combine={how: weighted, weights: {a: 1}}"),
            "weighted with 1 teacher; expected at least two, or no combine",
        ),
        (
            ("teachers=[{name: a, model: m}]", "combine={how: mean, teacher_dropout: 0.1}"),
            "teacher_dropout with 1 teacher; expected at least two, or no combine",
        ),
        (
            ("objectives[1].teacher=a", "combine={how: entropy}"),
            "entropy given, but every objective names one teacher, so nothing is combined",
        ),
        (
            (
                "teachers=[{name: a, model: m}, {name: b, model: n}, {name: c, model: o}]",
                "combine={how: annealed, first: a, last: b}",
            ),
            "from a to b, and never uses c; remove unused teachers",
        ),
        (("student={tokenizer: t}", "objectives=[]", "train={}"), "nothing to do: no teacher to adapt"),
        (
            ("student.tokenizer={train: bpe, size: 512}", "data.train={path: a.txt, limit: 1M}"),
            "in tokens, but the tokenizer is made of this text; give the limit as {bytes: N}",
        ),
        (
            ("data.train=[{path: a.txt, share: 0.5}, {path: c.txt}]",),
            "shares 0.5 of 2 sources found; expected one each, 1 in all",
        ),
        (("data.train=[{path: a.txt, share: 0.5}]",), "shares 0.5 of 1 sources found; expected one each"),
        (("data.train=[{path: a.txt, share: 1.0, weight: 2}]",), "a share stands in place of a weight; give"),
        (("data.validation=null", "data.remove_overlap=true"), "needs data.validation, which is not given"),
        (
            ("teachers[0].adapt={init: random, old_rows_learning_rate: 0}",),
            "random copies no old rows of tokens; use overlap or subword-mean",
        ),
    ],
)
def test_parts_that_contradict_one_another_are_a_fault(
    good: Path, overrides: tuple[str, ...], message: str
) -> None:
    found = faults(good, *overrides)
    assert len(found) == 1, found
    assert message in found[0]


def test_a_wrong_value_does_not_bring_forth_faults_that_only_follow_from_it(good: Path) -> None:
    assert faults(good, "train.steps=many") == ["train.steps=many: 'many' found; expected an integer"]


@pytest.mark.parametrize("text", ["", "[1, 2]", "just words", "3"])
def test_a_file_that_is_no_mapping_is_one_fault(tmp_path: Path, text: str) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    (found,) = faults(file)
    assert "expected a mapping: task, student" in found


def test_a_file_that_is_not_text_or_too_large_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_bytes(b"task: \xff\xfe")
    assert "not UTF-8" in faults(file)[0]
    file.write_text("#" * 2_000_000)
    assert "not a recipe" in faults(file)[0]


def test_the_nearest_built_in_name_is_said() -> None:
    with pytest.raises(MissingResourceError, match=r"did you mean stlm-47m-clm\?"):
        load("stlm-47m-cml")


def test_a_recipe_that_only_adapts_needs_no_student_or_training(good: Path) -> None:
    recipe = loaded(
        good, "student={tokenizer: t}", "objectives=[]", "train={}", "teachers[1].adapt={tokens: 1M}"
    )
    assert recipe.adapts_only
    assert not loaded(good).adapts_only


def test_keep_is_best_only_where_there_is_something_to_judge_by(good: Path) -> None:
    assert loaded(good).train.keep == "last"
    assert loaded(good, "train.validate_every=5").train.keep == "best"
    assert loaded(good, "train.validate_every=5", "train.keep=last").train.keep == "last"
    assert loaded(good, "train.validate_every=null", "data.validation=null").train.keep == "last"


def test_options_of_a_loss_come_with_their_defaults(good: Path) -> None:
    labels, kl = loaded(good).objectives
    assert labels.options == {}
    assert kl.options == {"temperature": 1.0, "temperature_scaling": "t2"}
    changed = loaded(good, "objectives[1].temperature=2").objectives[1].options
    assert changed == {"temperature": 2.0, "temperature_scaling": "t2"}


TEACHER = """
task: clm
student: {tokenizer: t, preset: stlm-nano}
data: {train: a.txt}
objectives: [{loss: labels}]
train: {steps: 10}
"""


def test_a_teachers_recipe_is_found_beside_the_recipe_that_names_it(good: Path) -> None:
    (good.parent / "teacher.yaml").write_text(TEACHER)
    good.write_text(GOOD.replace("name: a, model: m", "name: a, recipe: teacher.yaml"))
    inner = loaded(good, "teachers[0].recipe.train.steps=7").teachers[0].recipe
    assert inner is not None and inner.train.steps == 7


def test_faults_within_a_teachers_recipe_name_its_file_and_line(good: Path) -> None:
    (good.parent / "teacher.yaml").write_text(TEACHER.replace("steps", "stps") + "seeds: [1, 2]\n")
    good.write_text(GOOD.replace("name: a, model: m", "name: a, recipe: teacher.yaml"))
    found = faults(good)
    assert len(found) == 2
    assert found[0].startswith("teachers[0].recipe.train.stps (") and "teacher.yaml line 6)" in found[0]
    assert found[1].startswith("teachers[0].recipe.seeds (") and "a teacher is trained once" in found[1]


def test_recipes_that_name_one_another_in_a_circle_are_refused(good: Path) -> None:
    good.write_text(GOOD.replace("name: a, model: m", "name: a, recipe: good.yaml"))
    (found,) = faults(good)
    assert "includes itself" in found


def test_a_teachers_recipe_that_only_adapts_trains_no_teacher(good: Path) -> None:
    (good.parent / "teacher.yaml").write_text(
        "task: clm\nstudent: {tokenizer: t}\nteachers: [{name: x, model: m, adapt: {}}]\n"
        "data: {train: a.txt, validation: b.txt}\n"
    )
    good.write_text(GOOD.replace("name: a, model: m", "name: a, recipe: teacher.yaml"))
    assert "trains no model" in faults(good)[0]


def test_overrides_reach_every_kind_of_place(good: Path) -> None:
    recipe = loaded(
        good,
        "teachers.0.model=x",
        "teachers[1].adapt.tokens=5k",
        "data.train[0].path=c.txt",
        "data.train.0.domain=news",
        "train.learning_rate=3e-4",
        "seeds=[4, 5]",
        "train.clip=null",
    )
    adapt = recipe.teachers[1].adapt
    assert recipe.teachers[0].model == "x"
    assert adapt is not None and adapt.tokens == 5000
    assert (recipe.data.train[0].path, recipe.data.train[0].domain) == ("c.txt", "news")
    assert recipe.train.learning_rate == 3e-4
    assert (recipe.seeds, recipe.train.clip) == ((4, 5), None)


def test_a_later_override_wins(good: Path) -> None:
    assert loaded(good, "train.steps=1", "train.steps=2").train.steps == 2


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("train.stpes=3", "train.stpes=3: not a key of train (did you mean steps?)"),
        ("teachers.0.modl=3", "teachers.0.modl=3: not a key of teachers (did you mean model?)"),
        ("teachers[2].model=x", "teachers[2].model=x: there is no entry 2; the list has 2"),
        ("teachers.name=x", "teachers.name=x: no key name here: found a list"),
        ("task.x=1", "task.x=1: no key x here: found a single value"),
        ("train[1]=x", "train[1]=x: there is no entry 1"),
        ("train.steps=", "none given; expected exactly one of steps, epochs"),
    ],
)
def test_a_fault_of_an_override_shows_the_override(good: Path, override: str, fault: str) -> None:
    assert fault in "\n".join(faults(good, override))


@pytest.mark.parametrize(
    "override", ["train.steps", "=3", "train..steps=3", "a[x]=1", "train.steps=[1", "seeds=&x 1"]
)
def test_an_override_that_cannot_be_read_is_a_usage_error(good: Path, override: str) -> None:
    with pytest.raises(UsageError, match=r"expected key\.path=value|not plain YAML"):
        loaded(good, override)


def test_a_folder_in_place_of_a_recipe_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(
        MissingResourceError, match=r": a folder; expected a recipe file or the name"
    ) as caught:
        loaded(tmp_path)
    assert "known" not in str(caught.value)


def test_an_empty_recipe_is_told_by_its_line_alone(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n", encoding="utf-8")
    (fault,) = faults(tmp_path / "empty.yaml")
    assert fault.startswith("line 1: null found; expected a mapping: task, student, ")
