"""Validation across the parts of a recipe, as far as possible without loading a model."""

from __future__ import annotations

from collections.abc import Iterator

from stlm_kd.data.chats import STUDENT
from stlm_kd.data.sources.sources import TEXT_KEYS
from stlm_kd.data.tokenizers import LARGEST_SIZE, smallest_size
from stlm_kd.errors import DataError, RecipeFault, did_you_mean
from stlm_kd.eval import SUITES
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.recipe.schema.data import Source
from stlm_kd.recipe.schema.root import Recipe
from stlm_kd.recipe.schema.student import (
    CROSS_ENTROPY,
    SELF_DISTILLATION,
    Adapt,
    TokenizerTraining,
    TokenizerTrim,
)
from stlm_kd.recipe.schema.training import Engine, Train
from stlm_kd.recipe.validation.cache import cache_conflicts
from stlm_kd.recipe.validation.combination import combination_conflicts
from stlm_kd.recipe.validation.conflict import Conflict, Place, not_a_teacher, repeated, within
from stlm_kd.recipe.validation.deepspeed import engine_conflicts
from stlm_kd.recipe.validation.features import config_fields
from stlm_kd.recipe.validation.objectives import objective_conflicts
from stlm_kd.recipe.validation.translation import translation_conflicts
from stlm_kd.teachers import COMBINED


def conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Every conflict within a recipe and within the recipes of its teachers."""
    own = (_task, _student, _teachers, combination_conflicts, _data, _eval, objective_conflicts)
    others = (cache_conflicts, translation_conflicts, _train, engine_conflicts, _controls)
    for check in (*own, *others):
        yield from check(recipe)


def _task(recipe: Recipe) -> Iterator[Conflict]:
    """Conflicts with the task: model families, data options, evaluation suites."""
    task: Place = ("task",)
    student = recipe.student
    key = "preset" if student.preset is not None else "architecture"
    yield from _family(("student", key), str(config_fields(recipe).get("model_type")), recipe)
    if student.init_from is not None and student.init_from.model_type is not None:
        place: Place = ("student", "init_from", "model_type")
        family = student.init_from.model_type
        if family not in ARCHITECTURES:
            yield (place,), f"{family} is not a known family{did_you_mean(family, ARCHITECTURES)}"
        yield from _family(place, family, recipe)
    if isinstance(student.tokenizer, TokenizerTraining):
        smallest = smallest_size(masked=recipe.task != "clm")
        if student.tokenizer.size < smallest:
            message = (
                f"{student.tokenizer.size} found; expected at least {smallest} for {recipe.task}: "
                "the special tokens and 256 bytes"
            )
            yield (("student", "tokenizer", "size"), task), message
        if student.tokenizer.size > LARGEST_SIZE:
            message = f"{student.tokenizer.size:,} found; expected at most {LARGEST_SIZE:,} tokens"
            yield (("student", "tokenizer", "size"),), message
    if recipe.task != "mlm" and recipe.data.masked_share is not None:
        yield (("data", "masked_share"), task), "only for masked language models (task: mlm)"
    if recipe.task == "mlm" and recipe.data.context < 3:
        message = f"{recipe.data.context} found; expected at least 3 for mlm: a token between start and end"
        yield (("data", "context"), task), message
    if recipe.language_task is None:
        if recipe.data.context < 4:
            message = (
                f"{recipe.data.context} found; expected at least 4 for {recipe.task}: a pair with its "
                "special tokens"
            )
            yield (("data", "context"), task), message
        if recipe.engine.vocabulary_loss != "chunked":
            message = f"only for language models, but the task is {recipe.task}"
            yield (("engine", "vocabulary_loss"), task), message
    for i, entry in enumerate(recipe.eval):
        suite = SUITES[entry.suite]
        if recipe.task not in suite.tasks:
            several = "language models" + (" and classifiers" if "classification" in suite.tasks else "")
            needed = f"task {suite.task}" if suite.task else several
            fitting = [name for name in SUITES if recipe.task in SUITES[name].tasks]
            message = f"{entry.suite} is for {needed}; expected for {recipe.task}: {', '.join(fitting)}"
            yield (("eval", i), task), message


def _family(place: Place, model_type: str, recipe: Recipe) -> Iterator[Conflict]:
    """A student's family that is for another task; any family can be a classifier."""
    row = ARCHITECTURES.get(model_type)
    if row is not None and recipe.language_task not in (None, row.task):
        yield (place, ("task",)), f"{model_type} is for task {row.task}, but the task is {recipe.task}"


def _student(recipe: Recipe) -> Iterator[Conflict]:
    student, init_from = recipe.student, recipe.student.init_from
    if student.new_head and student.model is None:
        yield (("student", "new_head"), ("student", "model")), "only for a student.model that has no head"
    if student.dropout is not None and student.model is None and init_from is None:
        kind = "architecture" if student.architecture is not None else "preset"
        message = "only for student.model and student.init_from; a student.architecture names its own fields"
        yield (("student", "dropout"), ("student", kind)), message
    names = [teacher.name for teacher in recipe.teachers]
    if isinstance(student.tokenizer, TokenizerTrim):
        yield from _trimmed(student.tokenizer.trim, recipe)
    prefers = isinstance(student.tokenizer, TokenizerTraining) and student.tokenizer.prefer is not None
    if prefers and not any(teacher.has_model for teacher in recipe.teachers):
        message = "no teacher has a tokenizer; add a teacher with a model, or leave prefer out"
        yield (("student", "tokenizer", "prefer"), ("teachers",)), message
    if init_from is not None and init_from.teacher not in names:
        message = not_a_teacher(init_from.teacher, names)
        yield (("student", "init_from", "teacher"), ("teachers",)), message
    kinds = ", ".join(student.one_of)
    if recipe.adapts_only and not any(teacher.adapt for teacher in recipe.teachers):
        message = f"nothing to do: no teacher to adapt, and no student to train; give one of {kinds}"
        yield (("student",), ("teachers",)), message
    elif not recipe.adapts_only and not student.has_body:
        yield (("student",),), f"none given; expected exactly one of {kinds}"


def _trimmed(name: str, recipe: Recipe) -> Iterator[Conflict]:
    """A tokenizer of no teacher, or of a teacher whose tokenizer is not at hand."""
    place: Place = ("student", "tokenizer", "trim")
    named = [teacher for teacher in recipe.teachers if teacher.name == name]
    if not named:
        yield (place, ("teachers",)), not_a_teacher(name, [teacher.name for teacher in recipe.teachers])
    elif not named[0].has_model:
        message = f"teacher {name} is only a cache, which has no tokenizer; name a teacher with a model"
        yield (place, ("teachers", recipe.teachers.index(named[0]))), message


def _teachers(recipe: Recipe) -> Iterator[Conflict]:
    names = [teacher.name for teacher in recipe.teachers]
    for i, teacher in enumerate(recipe.teachers):
        place: Place = ("teachers", i)
        if (first := names.index(teacher.name)) != i:
            yield ((*place, "name"),), f"{teacher.name} is the name of teachers[{first}] too; choose another"
        if teacher.name == COMBINED:
            message = f"{COMBINED} is reserved for all teachers together; choose another name"
            yield ((*place, "name"),), message
        if teacher.adapt is not None:
            yield from _adapt((*place, "adapt"), teacher.adapt, recipe)
        if teacher.recipe is not None:
            yield from _trained_teacher((*place, "recipe"), teacher.recipe, recipe)
        if teacher.classes is not None and recipe.task != "classification":
            yield ((*place, "classes"), ("task",)), f"only for classification, but the task is {recipe.task}"
        elif teacher.classes is not None and teacher.is_only_read:
            message = "the cache has the classes of the data already; leave classes out"
            yield ((*place, "classes"), (*place, "cache")), message


def _adapt(place: Place, adapt: Adapt, recipe: Recipe) -> Iterator[Conflict]:
    from stlm_kd.adaptation.initialisers import AUTO, INITIALISERS

    yield from _micro_batch(place, adapt)
    if recipe.data.validation is None:
        message = "not given, but adapting a teacher needs held-out text; add data.validation"
        yield (("data", "validation"), place), message
    if adapt.objective is not None and recipe.language_task is None:
        message = "a classifier is trained on its own original probabilities; leave the objective out"
        yield ((*place, "objective"), ("task",)), message
    elif recipe.task == "mlm" and SELF_DISTILLATION in (adapt.objective or ()):
        message = f"{SELF_DISTILLATION} compares span probabilities of causal models; use {CROSS_ENTROPY}"
        yield ((*place, "objective"), ("task",)), message
    copies = adapt.init == AUTO or INITIALISERS[adapt.init].copies
    if adapt.old_rows_learning_rate is not None and not copies:
        known = " or ".join(name for name in INITIALISERS if INITIALISERS[name].copies)
        message = f"{adapt.init} copies no old rows of tokens; use {known}, or leave it out"
        yield ((*place, "old_rows_learning_rate"), (*place, "init")), message


def _trained_teacher(place: Place, inner: Recipe, recipe: Recipe) -> Iterator[Conflict]:
    """Conflicts of a teacher's recipe, within itself and with the student's."""
    yield from within(place, conflicts(inner))
    if inner.adapts_only:
        message = "trains no model; add a student, objectives and steps, or use teachers[].model"
        yield ((*place, "student"),), message
    if len(inner.seeds) > 1:
        seeds = ", ".join(map(str, inner.seeds))
        yield ((*place, "seeds"),), f"{seeds} given; a teacher is trained once; give one seed"
    if inner.task != recipe.task:
        message = (
            f"{inner.task} given, but the student's task is {recipe.task}, so their predictions "
            "cannot be compared; use the same task"
        )
        yield ((*place, "task"), ("task",)), message
    if inner.engine != Engine():
        yield ((*place, "engine"),), "a teacher's training uses the engine of the student's recipe; remove it"
    if inner.controls:
        yield ((*place, "controls"),), "a teacher's recipe trains only the teacher; remove them"
    if inner.eval:
        yield ((*place, "eval"),), "a teacher is scored by the eval of the student's recipe; remove it"


def _data(recipe: Recipe) -> Iterator[Conflict]:
    labelled = recipe.language_task is None
    if labelled:
        yield from _pairs(recipe)
    if recipe.data.labels is not None:
        yield from _labels(recipe, recipe.data.labels)
    for i, source in enumerate(recipe.data.train):
        yield from _source(("data", "train", i), source, labelled=labelled)
    for i, source in enumerate(recipe.data.validation or ()):
        yield from _source(("data", "validation", i), source, labelled=labelled)
        if source.weight != 1.0:
            message = "only for training text; held-out text is read once"
            yield (("data", "validation", i, "weight"),), message
        if source.share is not None:
            yield (("data", "validation", i, "share"),), "only for training text; held-out text is read once"
    yield from _limits(recipe)
    yield from _chats(recipe)
    yield from _shares(recipe)
    if recipe.data.remove_overlap and (labelled or recipe.data.validation is None):
        where: Place = ("task",) if labelled else ("data", "validation")
        message = "only for language models" if labelled else "needs data.validation, which is not given"
        yield (("data", "remove_overlap"), where), message


def _chats(recipe: Recipe) -> Iterator[Conflict]:
    """Chats with the template of a tokenizer that is trained here, or for models of masked text."""
    for part, entries in (("train", recipe.data.train), ("validation", recipe.data.validation or ())):
        for i, source in enumerate(entries):
            place: Place = ("data", part, i, "chat")
            if source.chat is not None and recipe.task != "clm":
                yield (place, ("task",)), f"only for task clm, but the task is {recipe.task}"
            elif (
                source.chat is not None
                and source.chat.template == STUDENT
                and not isinstance(recipe.student.tokenizer, str)
            ):
                message = "student found, but its tokenizer is made here; use chatml or a file"
                yield (place, ("student", "tokenizer")), message
            column = getattr(source, "column", None)
            if source.chat is not None and column not in (None, "text"):
                message = f"not used with chat; the column of the messages is chat: {{messages: {column}}}"
                yield (("data", part, i, "column"), place), message


def _shares(recipe: Recipe) -> Iterator[Conflict]:
    """Shares that are not those of all sources together."""
    given = [(i, source) for i, source in enumerate(recipe.data.train) if source.share is not None]
    for i, source in given:
        if source.weight != 1.0:
            place: Place = ("data", "train", i, "share")
            yield (place, ("data", "train", i, "weight")), "a share stands in place of a weight; give one"
    shares = [source.share for _, source in given]
    if given and (len(given) < len(recipe.data.train) or abs(sum(filter(None, shares)) - 1) > 1e-6):
        listed = ", ".join(f"{share:g}" for share in shares)
        message = f"shares {listed} of {len(recipe.data.train)} sources found; expected one each, 1 in all"
        yield (("data", "train", given[-1][0], "share"),), message


def _limits(recipe: Recipe) -> Iterator[Conflict]:
    """Limits in tokens where there are none yet, or where each tokenizer would count its own."""
    tokenizer = recipe.student.tokenizer
    cure = "give the limit as {bytes: N} or {documents: N}"
    for i, source in enumerate(recipe.data.train):
        if source.limit is not None and source.limit.tokens and not isinstance(tokenizer, str):
            message = f"in tokens, but the tokenizer is made of this text; {cure}"
            yield (("data", "train", i, "limit"), ("student", "tokenizer")), message
    for i, source in enumerate(recipe.data.validation or ()):
        if source.limit is not None and source.limit.tokens:
            message = f"in tokens, but models with other tokenizers are scored on the same text; {cure}"
            yield (("data", "validation", i, "limit"),), message


def _source(place: Place, source: Source, *, labelled: bool) -> Iterator[Conflict]:
    """Keys that apply only to text or only to labelled examples, and options that do not fit together."""
    task: Place = ("task",)
    entry, value = source.entry, source.value
    if labelled:
        own, of_text = entry.options(labelled=True), entry.options(labelled=False)
        defaults = {name: default for name, (_, default) in of_text.items() if name not in own}
        defaults |= {"domain": "default", "weight": 1.0, **dict.fromkeys(("share", *TEXT_KEYS))}
        for key, default in defaults.items():
            if getattr(source, key) != default:
                yield ((*place, key), task), "only for language models; labelled examples have text and label"
        yield from _columns(place, source)
    else:
        for key in ("text", "label"):
            if getattr(source, key) is not None:
                yield ((*place, key), task), "only for classification and regression; the text is in column"
        if source.shuffle is not None and entry.parts is None:
            message = f"only for sources with parts, such as files; {source.kind} has none"
            yield ((*place, "shuffle"),), message
    if not entry.has(value, labelled):
        choices = f"; expected one of {', '.join(entry.choices(labelled))}" if entry.choices(labelled) else ""
        message = (
            f"{value} has no labels{choices}"
            if labelled
            else f"{value} is labelled, and language models read plain text; use "
            + " or ".join(entry.choices(labelled))
        )
        yield ((*place, source.kind), task), message
        return
    try:
        entry.check(value, **source.options(labelled=labelled))
    except DataError as error:
        yield (place,), str(error)


def _columns(place: Place, source: Source) -> Iterator[Conflict]:
    text = source.text or ("sentence",)
    if source.text is not None and len(source.text) not in (1, 2):
        yield ((*place, "text"),), f"{len(source.text)} columns found; expected one, or two for pairs"
    elif len(set(text)) < len(text):
        yield ((*place, "text"),), f"{text[0]} given twice; expected the columns of the two texts of a pair"
    if (source.label or "label") in text:
        yield ((*place, "label"), (*place, "text")), f"{source.label or 'label'} is also a text column"
    if source.kind == "sample" and (text != ("sentence",) or source.label not in (None, "label")):
        message = "a sample has the columns sentence and label; leave text and label out"
        yield ((*place, "text"), (*place, "label")), message


def _pairs(recipe: Recipe) -> Iterator[Conflict]:
    """Check that all examples are single texts, or all are pairs."""
    given = {
        (part, i): len(source.text or ("sentence",))
        for part, entries in (("train", recipe.data.train), ("validation", recipe.data.validation or ()))
        for i, source in enumerate(entries)
    }
    first = given["train", 0]
    for (part, i), count in given.items():
        if count != first:
            message = f"{count} columns of text, but data.train has {first}; expected the same number"
            yield (("data", part, i, "text"), ("data", "train")), message


def _labels(recipe: Recipe, labels: tuple[str, ...]) -> Iterator[Conflict]:
    place: Place = ("data", "labels")
    if recipe.task != "classification":
        yield (place, ("task",)), f"only for classification, but the task is {recipe.task}"
    elif len(labels) < 2:
        yield (place,), f"{len(labels)} class found; expected at least two"
    yield from repeated(place, labels)


def _eval(recipe: Recipe) -> Iterator[Conflict]:
    for i, entry in enumerate(recipe.eval):
        suite = SUITES[entry.suite]
        if suite.reads_held_out(entry.options) and recipe.data.validation is None:
            message = f"{entry.suite} is measured on data.validation, which is not given; add it"
            yield (("eval", i), ("data", "validation")), message
        runnable = [teacher for teacher in recipe.teachers if not teacher.is_only_read]
        if suite.teachers and (recipe.adapts_only or not runnable):
            message = (
                f"{entry.suite} compares a student with teachers that can run; this recipe lacks one of them"
            )
            yield (("eval", i), ("teachers",)), message


def _train(recipe: Recipe) -> Iterator[Conflict]:
    train = recipe.train
    steps: Place = ("train", "steps")
    if train.steps is None and train.epochs is None and not recipe.adapts_only:
        yield (("train",), steps, ("train", "epochs")), "none given; expected exactly one of steps, epochs"
    yield from _micro_batch(("train",), train)
    validation: Place = ("data", "validation")
    every: Place = ("train", "validate_every")
    if train.validate_every is not None and recipe.data.validation is None:
        yield (every, validation), f"{train.validate_every} given, but data.validation is not given"
    if train.patience is not None and train.validate_every is None:
        yield (("train", "patience"), every), "needs train.validate_every"
    if train.keep == "best" and train.validate_every is None:
        yield (("train", "keep"), every), "best needs train.validate_every"


def _micro_batch(place: Place, train: Train | Adapt) -> Iterator[Conflict]:
    if train.micro_batch is not None and train.effective_batch % train.micro_batch:
        message = f"{train.micro_batch} does not divide effective_batch, {train.effective_batch}"
        yield ((*place, "micro_batch"), (*place, "effective_batch")), message


def uneven_batches(recipe: Recipe, processes: int) -> Iterator[RecipeFault]:
    """Batch sizes that ``processes`` processes cannot share evenly."""
    batches = [] if recipe.adapts_only else [("train", recipe.train.effective_batch)]
    batches += [
        (f"teachers[{index}].adapt", teacher.adapt.effective_batch)
        for index, teacher in enumerate(recipe.teachers)
        if teacher.adapt is not None
    ]
    for place, size in batches:
        if size % processes:
            less = size - size % processes
            fitting = f"{less} or {less + processes}" if less else f"{processes}"
            message = (
                f"{size} rows cannot be shared evenly by {processes} processes; "
                f"use {fitting}, or another number of processes"
            )
            yield RecipeFault(f"{place}.effective_batch", message)


def _controls(recipe: Recipe) -> Iterator[Conflict]:
    yield from repeated(("controls",), recipe.controls)
    yield from repeated(("seeds",), recipe.seeds, "{} given twice; two runs with one seed are identical")
    yield from repeated(("tracking",), recipe.tracking)
    for i, control in enumerate(() if recipe.teachers else recipe.controls):
        message = f"{control} is a control for a student with teachers, but the recipe has none"
        yield (("controls", i), ("teachers",)), message
