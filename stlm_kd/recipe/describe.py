"""A summary of what a recipe does, without loading a model or reading text."""

from __future__ import annotations

from stlm_kd.data.dealing import share_run_again
from stlm_kd.data.sources.document_files import Separator
from stlm_kd.data.sources.sources import TEXT_KEYS
from stlm_kd.distributed import launched_processes
from stlm_kd.models.presets import PRESETS
from stlm_kd.recipe import Recipe, recipe_hash, term_names
from stlm_kd.recipe.format import listed_options, option_words, value_words
from stlm_kd.recipe.schema.cache import VARIANTS, Cache, temperature_of
from stlm_kd.recipe.schema.data import Source
from stlm_kd.recipe.schema.interchange import Interchange
from stlm_kd.recipe.schema.objective import LABELS, Feature, MapFeature, Objective, Response
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.recipe.schema.student import Adapt, TokenizerTraining, TokenizerTrim
from stlm_kd.recipe.schema.training import DeepSpeed
from stlm_kd.teachers import COMBINED

_PLACEMENTS = {
    "shard": "weights sharded over the processes, each block gathered while it runs",
    "offload": "weights on the CPU except for its embedding and head, each block on the device while it runs",
    "cpu": "runs on the CPU",
}
_POSITIONS = {"labels": "labelled positions", "attended": "non-padding positions"}


def describe(recipe: Recipe, *, adapting: bool = False) -> str:
    """One line for each step, in order; ``adapting``: without those of students, which are not trained."""
    lines = [f"recipe {recipe_hash(recipe)[:8]} for {recipe.task}"]
    lines += _text(recipe)
    lines += [line for teacher in recipe.teachers for line in _teacher(teacher, recipe)]
    if not (adapting or recipe.adapts_only):
        lines += _students(recipe)
    if recipe.engine.vocabulary_loss == "dense":
        lines.append("compute the logits of all tokens at once")
    if recipe.engine.deepspeed is not None:
        lines.append(f"train with DeepSpeed, {_deepspeed(recipe.engine.deepspeed)}")
    lines += [f"evaluate on {entry.suite}{option_words(entry.options)}" for entry in recipe.eval]
    return "\n".join(lines)


def _deepspeed(engine: DeepSpeed) -> str:
    offloaded = {"none": "", "optimizer": "the optimizer", "parameters": "optimizer and parameters"}
    there = offloaded[engine.offload]
    where = f", {there} in CPU memory" if there else ""
    where += ", bf16 weights with fp32 ones in the optimizer" if engine.weights == "bf16" else ""
    return f"ZeRO stage {engine.zero}{where}{f', settings of {engine.config}' if engine.config else ''}"


def _text(recipe: Recipe) -> list[str]:
    data, tokenizer = recipe.data, recipe.student.tokenizer
    if isinstance(tokenizer, TokenizerTraining):
        words = f"trained: {tokenizer.train} of {tokenizer.size:,} tokens, on the whole training text"
        if tokenizer.prefer is not None:
            words += ", preferring tokens that the teachers have"
    elif isinstance(tokenizer, TokenizerTrim):
        words = (
            f"trimmed: {tokenizer.size:,} tokens of teacher {tokenizer.trim}, the most useful on the whole "
            "training text; every row of that teacher is exact"
        )
    else:
        words = tokenizer
    if recipe.language_task is not None:
        amount = f"training text, in rows of {data.context} tokens{_of_limits(recipe)}"
    else:
        amount = f"training examples, of at most {data.context} tokens each"
    return [
        f"tokenizer {words}",
        *(f"train on {_source(source, recipe)}" for source in data.train),
        *(f"validate on {_source(source, recipe)}" for source in data.validation or ()),
        f"use {data.fraction:.2%} of the {amount}",
        *(["validation data may overlap training data"] if data.allow_overlap else []),
        *(["leave training documents out that are validation documents"] if data.remove_overlap else []),
        *([] if data.masked_share is None else [f"mask {data.masked_share:.0%} of the tokens"]),
        *([] if data.labels is None else [f"classes {', '.join(data.labels)}"]),
    ]


def _of_limits(recipe: Recipe) -> str:
    """What a fraction means for limits."""
    share, limits = recipe.data.fraction, [source.limit for source in recipe.data.train]
    if share == 1.0 or not any(limits):
        return ""
    in_tokens = any(limit is not None and limit.tokens is not None for limit in limits)
    return " (of a limit in tokens, its first ones)" if in_tokens else " within its limits"


def _source(source: Source, recipe: Recipe) -> str:
    labelled = recipe.language_task is None
    beside = ("text", "label") if labelled else ("domain", "weight", "share", *TEXT_KEYS)
    options = source.options(labelled=labelled) | {name: getattr(source, name) for name in beside}
    if isinstance(cut := options.get("documents"), Separator):
        options["documents"] = f"between {cut.text!r}"
    place = source.value if source.kind == "path" else f"{source.kind} {source.value}"
    return f"{place}{option_words(options)}"


def _teacher(teacher: Teacher, recipe: Recipe) -> list[str]:
    place = f"teacher {teacher.name}"
    if teacher.recipe is not None:
        inner = [f"    {line}" for line in describe(teacher.recipe).splitlines()]
        lines = [f"{place} trained by its own recipe:", *inner]
    else:
        lines = [] if teacher.model is None else [f"{place} from {teacher.model}"]
    if teacher.cache is not None:
        lines.append(f"{place}: outputs {_cache(teacher.cache, recipe, teacher.name)}")
    if teacher.precision not in (None, "fp32"):
        lines.append(f"{place}: {teacher.precision} weights")
    if teacher.classes is not None:
        pairs = ", ".join(f"{one} = {other}" for one, other in teacher.classes.items())
        lines.append(f"{place}: classes mapped as {pairs}")
    if teacher.placement != "replicate" and not teacher.is_only_read:
        lines.append(f"{place}: placement {teacher.placement}: {_PLACEMENTS[teacher.placement]}")
    if teacher.translate:
        lines.append(f"{place}: reads its own tokens; its distributions are translated to the student's")
    if teacher.adapt is None:
        return lines
    tokenizer = recipe.student.tokenizer
    is_trimmed = isinstance(tokenizer, TokenizerTrim) and tokenizer.trim == teacher.name
    return [*lines, _adapt(place, teacher.adapt, recipe, is_trimmed=is_trimmed)]


def _cache(cache: Cache, recipe: Recipe, teacher: str) -> str:
    """The origin of cached teacher outputs, and their contents."""
    if cache.path is not None:
        return f"from the cache {cache.path}"
    if recipe.language_task is None:
        return "from a cache of its logits"
    words = f"from a cache of the top {cache.top} tokens and {cache.draws} samples per position"
    words += f" at temperature {temperature_of(recipe, teacher, cache):g}"
    if recipe.task == "mlm":
        words += f", with {cache.variants or VARIANTS} masks per row"
    states = ", ".join(map(str, cache.states))
    return words + (f", with hidden states at {states}" if states else "")


def _adapt(place: str, adapt: Adapt, recipe: Recipe, *, is_trimmed: bool) -> str:
    if not adapt.tokens and is_trimmed:
        return f"{place}: sliced to the student's tokens, all rows exact and none trained"
    if not adapt.tokens:
        return f"{place}: rows for the student's vocabulary by {adapt.init}, not trained"
    fraction = recipe.data.fraction if adapt.fraction is None else adapt.fraction
    options = option_words(dict(adapt), without=("init", "tokens", "fraction"))
    return (
        f"{place}: adapt to the student's vocabulary by {adapt.init}, then train embedding and head on "
        f"{adapt.tokens:,} tokens of {fraction:.2%} of the text{options}"
    )


def _students(recipe: Recipe) -> list[str]:
    student, train = recipe.student, recipe.train
    if student.preset is not None:
        words = f"preset {student.preset}{option_words(PRESETS[student.preset])}"
    elif student.architecture is not None:
        words = f"architecture{option_words(student.architecture)}"
    elif student.init_from is not None:
        words = f"layers {value_words(student.init_from.layers)} of teacher {student.init_from.teacher}"
        words += f" as {student.init_from.model_type}" if student.init_from.model_type else ""
    else:
        words = f"checkpoint {student.model}{' with a new head' if student.new_head else ''}"
    if student.dropout is not None:
        words += f", dropout {student.dropout:g}"
    length = f"{train.steps:,} steps" if train.steps is not None else f"{train.epochs} epochs"
    controls = f"; controls {', '.join(recipe.controls)}, with the same seeds" if recipe.controls else ""
    combined = f"combine teachers by {recipe.combine.how}{option_words(recipe.combine.options)}"
    if recipe.combine.teacher_dropout:
        combined += f", each dropped in {recipe.combine.teacher_dropout:.0%} of the steps"
    return [
        f"student from {words}",
        *([combined] if len(recipe.teachers) > 1 else []),
        *(
            f"objective {name}, weight {value_words(entry.weight)}: {_objective(entry, recipe)}"
            for name, entry in zip(term_names(recipe), recipe.objectives, strict=True)
        ),
        f"train for {length}{option_words(dict(train), without=('steps', 'epochs'))}",
        *_recomputed_sources(recipe),
        f"seeds {', '.join(map(str, recipe.seeds))}{controls}; "
        f"logged to {', '.join(('jsonl', *recipe.tracking))}",
    ]


def _objective(entry: Objective, recipe: Recipe) -> str:
    assert isinstance(entry, (Response, Feature, MapFeature, Interchange))
    of_examples = isinstance(entry, Response) and recipe.language_task is None
    words = "examples" if of_examples else _POSITIONS[entry.on]
    if entry.loss != LABELS:
        is_mixture = entry.teacher == COMBINED and len(recipe.teachers) > 1
        name = recipe.teachers[0].name if entry.teacher == COMBINED else entry.teacher
        words += ", combined teachers" if is_mixture else f", teacher {name}"
    if isinstance(entry, (Feature, MapFeature)):
        words += f", layers {value_words(entry.sites)}"
    if isinstance(entry, Feature):
        words += f", projection {entry.projection}"
    if isinstance(entry, Interchange):
        words += f", after interventions ({_interchange(entry)})"
    return words + option_words(entry.options)


def _recomputed_sources(recipe: Recipe) -> list[str]:
    """The number of intervention sources that are not in the micro-batch of their row."""
    entries = [entry for entry in recipe.objectives if isinstance(entry, Interchange)]
    if not any(entry.pairs_rows and entry.source_entry.replaces == "states" for entry in entries):
        return []
    rows, micro = recipe.train.effective_batch, recipe.train.micro_batch
    share = share_run_again(rows, micro_batch=micro or rows, world_size=launched_processes())
    if not share:
        return []
    return [
        f"recompute the sources of {round(share * rows)} of the {rows} rows of a step, which are in other "
        "micro-batches (none with an even train.effective_batch and a train.micro_batch of 2 or more)"
    ]


def _interchange(entry: Interchange) -> str:
    known = set(Objective.model_fields) | {"on", "temperature"}
    given = {name: getattr(entry, name) for name in Interchange.model_fields if name not in known}
    if not isinstance(entry.source, str):
        given = {**given, "source": entry.source.name, **entry.source.given}
    return listed_options(given)
