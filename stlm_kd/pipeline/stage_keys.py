"""The keys of all stages: exactly the inputs that determine a stage's content.

The stage store (``artifacts.stage_store``) looks a stage up by the hash of its key. Keys are plain values:
parts of the recipe, hashes of texts and models, versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from stlm_kd.adaptation.initialisers import AUTO, INITIALISERS
from stlm_kd.artifacts.hashing import hashes_of, known_sha256
from stlm_kd.artifacts.stage_store import READ, STAGE, Json, Key
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.labelled.examples import fingerprint as examples_fingerprint
from stlm_kd.data.sources.sources import Source as TextSource
from stlm_kd.data.sources.sources import fingerprint
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.errors import ModelError
from stlm_kd.eval import SUITES
from stlm_kd.losses import LABELS
from stlm_kd.models.load import folder_of
from stlm_kd.pipeline.builders.examples import class_names_of, labelled_sources
from stlm_kd.pipeline.builders.models import teacher_precision
from stlm_kd.pipeline.builders.objective import active_objectives
from stlm_kd.pipeline.builders.sources import sources, training_sources
from stlm_kd.pipeline.builders.text import mask_variants
from stlm_kd.recipe import Recipe, plain
from stlm_kd.recipe.schema.cache import positions_of, temperature_of
from stlm_kd.recipe.schema.data import Source
from stlm_kd.recipe.schema.interchange import sources_with_data
from stlm_kd.recipe.schema.objective import Objective
from stlm_kd.recipe.schema.root import Teacher, labels_alone
from stlm_kd.recipe.schema.student import Adapt, TokenizerTraining, TokenizerTrim
from stlm_kd.sharing import pins
from stlm_kd.sharing.gguf import gguf_file
from stlm_kd.sharing.names import expanded, hub_name_or_path
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.cache.format import read_manifest
from stlm_kd.teachers.combination import COMBINERS
from stlm_kd.vocabulary.prefer import LACKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stlm_kd.eval.attribution.explain import AttributionConfig, ReadConfig
    from stlm_kd.eval.fine_tuning.base import FineTuneTask
    from stlm_kd.pipeline.stages.score import SuiteCall
    from stlm_kd.pipeline.stages.student_job import StudentJob
    from stlm_kd.pipeline.stages.teacher_cache import CacheJob
    from stlm_kd.pipeline.stages.teacher_set import TeacherSet


def model_identity(name: str, *, trust_remote_code: bool = False) -> str:
    """A model's identity: Hub id and commit, or a hash of a GGUF file, or of a folder's model and tokenizer.

    Includes the folder's own code if it is trusted. ModelError if a file cannot be read.
    """
    on_hub = hub_name_or_path(name)
    if on_hub is not None:
        return str(pins.current().resolve(on_hub).pinned)
    if (file := gguf_file(name)) is not None:
        return known_sha256(file)
    folder = folder_of(name, weights=False)
    files = [path for path in folder.iterdir() if path.suffix in READ and path.name != STAGE]
    files += folder.rglob("*.py") if trust_remote_code else ()
    try:
        hashes = hashes_of(folder, (path for path in files if not path.is_dir()))
    except OSError as error:
        raise ModelError(
            f"{error.filename}: cannot be read ({error.strerror}); expected a plain file; fetch or copy it "
            "again"
        ) from error
    text = "\n".join(f"{name} {digest}" for name, digest in hashes.items())
    return hashlib.sha256(text.encode()).hexdigest()


def text_key(texts_of: Sequence[TextSource], fraction: float) -> Json:
    """The text of some sources: fraction, content hashes, weights or shares."""
    texts: list[Json] = [
        [fingerprint(source), source.weight, *([] if source.share is None else [source.share])]
        for source in texts_of
    ]
    return [fraction, *texts]


def examples_key(entries: Sequence[Source], recipe: Recipe) -> Json:
    """The labelled examples of some sources: class names, task, content hashes."""
    found: list[Json] = [examples_fingerprint(source) for source in labelled_sources(entries)]
    return [list(recipe.data.labels or ()), recipe.task, *found]


def data_key(recipe: Recipe, fraction: float) -> Json:
    """A fraction of the training text or examples."""
    if recipe.language_task is None:
        return [fraction, examples_key(recipe.data.train, recipe)]
    return text_key(training_sources(recipe), fraction)


def rows_key(recipe: Recipe, fraction: float) -> Json:
    """Like ``data_key``, but without the weights of the sources."""
    found = data_key(recipe, fraction)
    if recipe.language_task is None:
        return found
    assert isinstance(found, list)
    return [fraction, *(entry[0] for entry in found[1:] if isinstance(entry, list))]


def held_out_key(recipe: Recipe) -> Json:
    """The held-out text or examples."""
    entries = recipe.data.validation or ()
    if recipe.language_task is not None:
        return text_key(sources(entries, recipe), 1.0)
    return [examples_key(entries, recipe), list(class_names_of(recipe))]


def tokenizer_key(
    recipe: Recipe, made: TokenizerTraining | TokenizerTrim, teachers: Sequence[PreTrainedTokenizerFast]
) -> Key:
    """A tokenizer made of the recipe's training text and of the tokenizers of some teachers."""
    of_text = recipe.language_task is not None
    origin: dict[str, Json]
    if isinstance(made, TokenizerTraining):
        origin = {"task": "clm" if recipe.task == "clm" else "mlm", "train": made.train}
        if made.prefer is not None:
            known: list[Json] = [*sorted(map(tokenizer_identity, teachers))]
            origin |= {"prefer": known, "lacking": LACKING}
    else:
        (teacher,) = teachers
        origin = {"trim": tokenizer_identity(teacher), "chat_template": teacher.chat_template}
    return {
        **origin,
        "size": made.size,
        "text": [fingerprint(source) for source in training_sources(recipe)]
        if of_text
        else examples_key(recipe.data.train, recipe),
    }


def student_key(job: StudentJob) -> Key:
    """The trained weights of a student or control.

    Leaves out what the variant does not use: a control's key does not depend on teachers, objectives or
    combination. A preset counts by its fields.
    """
    recipe = job.recipe
    train = plain(recipe.train)
    for name in ("log_every", "checkpoint_every", "keep_checkpoints"):
        train.pop(name, None)
    if job.flops is not None:
        train = {**train, "steps": None, "epochs": None, "flops": job.flops}
    identify = cache(partial(model_identity, trust_remote_code=job.context.trust_remote_code))
    own = active_objectives(recipe) if job.variant == "student" else {LABELS: labels_alone()}
    combined = {entry.teacher for entry in own.values() if entry.loss != LABELS}
    variants = mask_variants(recipe)
    key: dict[str, Json] = {
        "task": recipe.task,
        "student": _initial_student(job, identify),
        "tokenizer": tokenizer_identity(job.tokenizer),
        "teachers": {name: _student_teacher(job, name, identify) for name in sorted(job.used_teachers)},
        "combine": _combination(recipe) if len(job.used_teachers) > 1 and COMBINED in combined else None,
        "objectives": [{"name": name, **plain(entry)} for name, entry in own.items()],
        **({"sources": "paired over the step"} if job.pairs_rows else {}),
        "train": train,
        "steps_from": recipe.data.fraction if train.get("epochs") else None,
        "text": data_key(recipe, job.fraction),
        "validation": held_out_key(recipe),
        "context": recipe.data.context,
        "masked_share": recipe.data.masked_share,
        "seed": job.seed,
        **({} if variants is None else {"variants": variants}),
    }
    data = _source_data(own.values())
    assert not key.keys() & data.keys(), "a source's identity has a name of the student's own key"
    return {**key, **data}


def _initial_student(job: StudentJob, identify: Callable[[str], str]) -> Json:
    """The initial weights: selected layers of a model, a whole model, or configuration fields."""
    student = job.recipe.student
    dropout = {} if student.dropout is None else {"dropout": student.dropout}
    if student.init_from is not None:
        source = job.teachers[student.init_from.teacher]
        return {**plain(student.init_from), "teacher": identify(source), **dropout}
    if student.model is not None:
        return {"model": identify(student.model), "new_head": student.new_head, **dropout}
    return {"fields": dict(job.fields)}


def _student_teacher(job: StudentJob, name: str, identify: Callable[[str], str]) -> Json:
    """A student's teacher: a model, or the cache of its outputs."""
    cached = job.cached.get(name)
    if cached is None or cached.cache is None:
        (entry,) = (teacher for teacher in job.recipe.teachers if teacher.name == name)
        model = identify(job.teachers[name])
        precision = teacher_precision(entry)
        more = {**_translation(entry), **({} if precision == "fp32" else {"precision": precision})}
        return {"model": model, **more} if more else model
    if cached.cache.path is not None:
        return {"cache": read_manifest(expanded(cached.cache.path)).fingerprint}
    return {"cache": cache_key(job.order(name))}


def _translation(teacher: Teacher) -> dict[str, Json]:
    """That a teacher's distributions are translated to the student's tokens; the text is in the key."""
    return {"translate": True} if teacher.translate else {}


def _combination(recipe: Recipe) -> Json:
    """The combination of teachers, with the sources' domains if the weights depend on them."""
    combine = recipe.combine
    if "domain" not in COMBINERS[combine.how].needs_with(combine.options):
        return plain(combine)
    return {**plain(combine), "domains": [source.domain for source in recipe.data.train]}


def _source_data(entries: Iterable[Objective]) -> dict[str, str]:
    """The versions of the data that counterfactual sources read beside the text, such as WordNet.

    Raises:
        MissingResourceError: They are not installed.
    """
    versions = (data.identity().items() for _, data in sources_with_data(entries))
    return dict(chain.from_iterable(versions))


def adaptation_key(
    recipe: Recipe, adapt: Adapt, teacher: str, tokenizer: PreTrainedTokenizerFast, *, trust: bool
) -> Key:
    """The weights of an adapted teacher; ``teacher`` is its folder or Hub id."""
    return {
        "teacher": model_identity(teacher, trust_remote_code=trust),
        "tokenizer": tokenizer_identity(tokenizer),
        "adapt": {**plain(adapt), "fraction": None},
        **({"initialisers": [*INITIALISERS]} if adapt.init == AUTO else {}),
        "text": data_key(recipe, adaptation_fraction(recipe, adapt)),
        "validation": held_out_key(recipe),
        "context": recipe.data.context,
        "task": recipe.task,
        "masked_share": recipe.data.masked_share,
    }


def adaptation_fraction(recipe: Recipe, adapt: Adapt) -> float:
    """The fraction of the training text used for a teacher's adaptation."""
    return recipe.data.fraction if adapt.fraction is None else adapt.fraction


def renamed_key(recipe: Recipe, model: str, classes: Mapping[str, str], *, trust: bool) -> Key:
    """A copy of a classifier with its classes renamed and reordered to match the data."""
    return {
        "model": model_identity(model, trust_remote_code=trust),
        "classes": dict(classes),
        "labels": list(class_names_of(recipe)),
    }


def cached_rows_key(order: CacheJob) -> dict[str, Json]:
    """The rows of a teacher cache and their cached positions."""
    recipe, of_text = order.recipe, order.recipe.language_task is not None
    draws_examples = not of_text and recipe.data.fraction < 1
    return {
        "task": recipe.task,
        "tokenizer": tokenizer_identity(order.tokenizer),
        "text": rows_key(recipe, recipe.data.fraction),
        "seed": order.seed if draws_examples else None,
        "context": recipe.data.context,
        "masked_share": recipe.data.masked_share,
        "variants": mask_variants(recipe),
        "temperature": temperature_of(recipe, order.teacher.name, order.options) if of_text else None,
        "positions": positions_of(recipe, order.teacher.name) if of_text else None,
    }


def cache_key(order: CacheJob) -> dict[str, Json]:
    """The content of a teacher cache."""
    options: dict[str, Json] = {}
    if order.recipe.language_task is not None:
        kept = order.options
        options = {"top": kept.top, "draws": kept.draws, "states": [*sorted(map(str, kept.states))]}
    return {
        "teacher": model_identity(order.model, trust_remote_code=order.context.trust_remote_code),
        **_translation(order.teacher),
        **cached_rows_key(order),
        **options,
        "precision": order.recipe.train.precision,
        "weights": teacher_precision(order.teacher),
    }


def score_key(call: SuiteCall, recipe: Recipe, model: str, *, trust: bool) -> dict[str, Json]:
    """The scores of one suite on a model, independent of the teachers that it is compared with."""
    suite = SUITES[call.suite]
    given = {name: value for name, value in call.resolved.items() if (name, value) != ("hub", None)}
    of = suite.identity(call.options)
    if of is None:
        of = held_out_key(recipe)
    elif suite.reads_held_out(call.options):
        of = [held_out_key(recipe), of]
    return {
        "model": model_identity(model, trust_remote_code=trust),
        "suite": call.suite,
        "options": json.loads(json.dumps(given)),
        "of": of,
    }


def teachers_key(teachers: TeacherSet, *, trust: bool) -> dict[str, Json]:
    """The teachers that a student is compared with, independent of layer alignment."""
    return {name: model_identity(model, trust_remote_code=trust) for name, model in teachers.teachers.items()}


def aligned_teachers_key(teachers: TeacherSet, student: str, *, trust: bool) -> dict[str, Json]:
    """Like ``teachers_key``, with each teacher's layers aligned with the student's."""
    layers = {name: teachers.layers(name, student, trust) for name in teachers.teachers}
    return {
        name: [identity, {str(own): list(theirs) for own, theirs in layers[name].items()}]
        for name, identity in teachers_key(teachers, trust=trust).items()
    }


def fine_tune_key(task: FineTuneTask[Any], model: str, *, length: int, trust: bool) -> Key:
    """The scores of a fine-tuned copy of a model; ``length`` is the number of tokens per example."""
    job = task.job
    return {
        "model": model_identity(model, trust_remote_code=trust),
        "tokenizer": tokenizer_identity(load_tokenizer(model, trust_remote_code=trust)),
        "suite": job.suite,
        "task": job.task,
        "examples": task.examples_key(),
        "fraction": job.fraction,
        "context": length,
        "stride": job.stride,
        "settings": job.reported_settings(),
        "seed": job.seed,
    }


def outputs_key(
    model: str, examples: Examples, reading: ReadConfig, explaining: AttributionConfig, *, trust: bool
) -> Key:
    """The outputs of a classifier on labelled examples, and their attributions."""
    known = [examples.ids, examples.texts, examples.labels.tolist(), examples.label_names, examples.sources]
    return {
        "model": model_identity(model, trust_remote_code=trust),
        "examples": hashlib.sha256(json.dumps(known).encode()).hexdigest(),
        "reading": asdict(reading),
        "explaining": json.loads(json.dumps(asdict(explaining))),
    }
