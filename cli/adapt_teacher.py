"""``stlm-kd adapt-teacher``: train a new embedding and head for another vocabulary."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stlm_kd.cli.distill import print_results
from stlm_kd.cli.invocation import launched_again, typed_command
from stlm_kd.cli.options import (
    AsJson,
    Limit,
    OptionalRecipeName,
    OutputDir,
    Processes,
    Rehearsal,
    Resume,
    ResumeOption,
    TrustRemoteCode,
    one_value_each,
)
from stlm_kd.distributed import process_rank
from stlm_kd.errors import RecipeError, RecipeFault, StlmKdError, UsageError

if TYPE_CHECKING:
    from stlm_kd.recipe import Recipe
    from stlm_kd.recipe.yaml import Plain

_OPTIONS = {
    r", or set data\.allow_overlap: true": "",
    r"data\.train\b(\[\d+\])?(\.\w+)?": "--data",
    r"data\.validation(\[\d+\])?(\.\w+)?": "--validation",
    r"data\.context": "--context",
    r"student\.tokenizer": "--tokenizer",
    r"teachers\[0\]\.adapt\.(\w+)": r"--\1",
    r"teachers\[0\](\.(name|model))?( \([^)]*\))?(?![.\w])": "TEACHER",
    r"eval\[\d+\](\.\w+)*": "--suite",
    r"^task(?=$|:| \()": "--task",
}
"""The command-line option for each place in the equivalent recipe."""


TeacherAndChanges = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEACHER|KEY.PATH=VALUE",
        help="A model folder or Hub id; with -r a teacher's name in the recipe, and changes to the recipe.",
    ),
]
Tokenizer = Annotated[str | None, typer.Option(help="Tokenizer with the new vocabulary: a folder or Hub id.")]
HeldOutText = Annotated[
    list[Path] | None, typer.Option(help="Held-out text, for early stopping and the report.")
]
Init = Annotated[
    str | None, typer.Option(metavar="NAME", help="Initialiser: subword-mean, overlap, mean or random.")
]
Objective = Annotated[
    str | None, typer.Option(metavar="cross-entropy|self-distillation", help="Training objective.")
]
Task = Annotated[
    str | None,
    typer.Option(metavar="clm|mlm", help="The teacher's task. Default: from its configuration."),
]
Seed = Annotated[int | None, typer.Option(help="Random seed of the initialiser and the data order.")]
Suites = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|{suite: NAME, …}",
        help="Evaluation before and after adaptation, such as lm-eval. May be repeated.",
    ),
]
Tasks = Annotated[
    str | None, typer.Option(metavar="A,B,…", help="Tasks of lm-eval, short for {tasks: [A, B]}.")
]


def adapt_teacher(
    words: TeacherAndChanges = None,
    recipe: OptionalRecipeName = None,
    tokenizer: Tokenizer = None,
    data: Annotated[list[Path] | None, typer.Option(help="Training text. May be repeated.")] = None,
    validation: HeldOutText = None,
    tokens: Annotated[str | None, typer.Option(metavar="2M", help="Maximum training tokens.")] = None,
    init: Init = None,
    objective: Objective = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    task: Task = None,
    context: Annotated[int | None, typer.Option(help="Tokens per row.")] = None,
    effective_batch: Annotated[int | None, typer.Option(help="Rows per optimizer step.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Rows per forward pass.")] = None,
    precision: Annotated[str | None, typer.Option(metavar="fp32|bf16", help="Training precision.")] = None,
    seed: Seed = None,
    suite: Suites = None,
    tasks: Tasks = None,
    limit: Limit = None,
    output_dir: OutputDir = Path("runs"),
    resume: ResumeOption = Resume.auto,
    processes: Processes = 1,
    rehearsal: Rehearsal = True,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Adapt a teacher to the student's vocabulary, and report (pseudo-)bits per byte before and after.

    Either -r RECIPE [TEACHER], or TEACHER --tokenizer T --data PATH --validation PATH. The body stays frozen;
    a new embedding and head are initialised from the old ones and trained.
    """
    adapt = _given(
        init=init,
        objective=objective,
        tokens=None if tokens is None else _count(tokens),
        learning_rate=learning_rate,
        effective_batch=effective_batch,
        micro_batch=micro_batch,
        precision=precision,
        seed=seed,
    )
    text = _given(train=_texts(data), validation=_texts(validation), context=context)
    others = (tokenizer, task, suite, tasks, limit)
    if recipe is not None and (adapt or text or any(option is not None for option in others)):
        raise UsageError("with -r, change the recipe as in teachers[0].adapt.tokens=2M, not by options")
    with nullcontext() if recipe is not None else _errors_by_options():
        if recipe is not None:
            loaded, teacher = _of_recipe(recipe, words or ())
            name = Path(recipe).stem
        else:
            model, scored = _only_model(words or ()), _suites(suite or (), tasks, limit)
            loaded = _of_options(model, tokenizer, adapt, text, scored, task, trust=trust_remote_code)
            teacher, name = None, f"adapt-{loaded.teachers[0].name}"
        if launched_again(processes, loaded, origin=recipe or "the options"):
            return
        import stlm_kd

        folder = stlm_kd.adapt_teacher(
            loaded,
            teacher=teacher,
            name=name,
            output_dir=output_dir,
            resume=resume is Resume.auto,
            trust_remote_code=trust_remote_code,
            command=typed_command(),
            rehearsal=rehearsal,
        ).path
    if process_rank() > 0:
        return
    print_results(folder, as_json=as_json)
    if not as_json:
        typer.echo(f"\nFolder: {folder}")


def _by_options(text: str) -> str:
    """A message with option names in place of recipe keys.

    >>> _by_options("teachers[0] (gpt2): it has 8 positions, but data.context is 9; shorten it")
    'TEACHER: it has 8 positions, but --context is 9; shorten it'
    >>> _by_options("teachers[0].adapt.learning_rate"), _by_options("data.validation[0].path")
    ('--learning-rate', '--validation')
    """
    for place, option in _OPTIONS.items():
        text = re.sub(place, option, text)
    return re.sub(r"--\w+", lambda found: found[0].replace("_", "-"), text)


@contextmanager
def _errors_by_options() -> Iterator[None]:
    """Make errors of the equivalent recipe name the options."""
    try:
        yield
    except RecipeError as error:
        faults = [RecipeFault(_by_options(one.place), _by_options(one.message)) for one in error.faults]
        raise RecipeError(error.origin, faults) from error
    except StlmKdError as error:
        error.args = tuple(_by_options(one) if isinstance(one, str) else one for one in error.args)
        raise


def _of_recipe(recipe: str, words: Sequence[str]) -> tuple[Recipe, str | None]:
    """The recipe, and the teacher named in the arguments, if any."""
    from stlm_kd.recipe import load

    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise UsageError(f"{shlex.join(names)}: expected the name of one teacher, or none for all of them")
    loaded = load(recipe, one_value_each([word for word in words if "=" in word]))
    return loaded, names[0] if names else None


def _count(words: str) -> Plain:
    """Parse a number such as 40000, 40k or 2M."""
    from stlm_kd.recipe.schema.fields import parse_count
    from stlm_kd.recipe.yaml import scalar

    found = parse_count(scalar(words))
    if type(found) is not int or found < 1:
        raise UsageError(f"--tokens {words}: expected an integer above 0, such as 40000, 40k or 2M")
    return found


def _suites(suite: Sequence[str], tasks: str | None, limit: int | None) -> list[Plain]:
    """The evaluation suites with their options."""
    from stlm_kd.recipe.suites import suites

    options: dict[str, Plain] = {} if tasks is None else {"tasks": [*tasks.split(",")]}
    if limit is not None:
        options["limit"] = limit
    if not suite:
        if options:
            raise UsageError(f"--{next(iter(options))}: given without --suite lm-eval, whose option it is")
        return []
    return [*suites(suite, options=options)]


def _only_model(words: Sequence[str]) -> str:
    if len(words) != 1:
        raise UsageError(f"{len(words)} models given; expected one TEACHER (folder or Hub id), or -r RECIPE")
    return words[0]


def _task_of(model: str, trust_remote_code: bool) -> str:
    from stlm_kd.models.load import declared_task, load_config

    return declared_task(load_config(model, trust_remote_code=trust_remote_code))


def _given(**options: Plain) -> dict[str, Plain]:
    """The options that are given."""
    return {name: value for name, value in options.items() if value is not None}


def _texts(paths: Sequence[Path] | None) -> list[Plain] | None:
    return None if paths is None else [str(path) for path in paths]


def _of_options(
    model: str,
    tokenizer: str | None,
    adapt: dict[str, Plain],
    text: dict[str, Plain],
    suites: list[Plain],
    task: str | None,
    *,
    trust: bool,
) -> Recipe:
    """The recipe equivalent to the options; the model's configuration is read last, for a task not given."""
    from stlm_kd.artifacts.run_dir import file_name
    from stlm_kd.recipe import from_values

    required = {
        "--tokenizer": tokenizer,
        "--data": text.get("train"),
        "--validation": text.get("validation"),
    }
    missing = [flag for flag, value in required.items() if not value]
    if missing:
        raise UsageError(f"{', '.join(missing)}: not given; or name a recipe by -r")
    name = file_name(Path(model).name).lstrip("_") or "teacher"
    values: dict[str, Plain] = {
        "task": task or "clm",
        "student": {"tokenizer": tokenizer},
        "teachers": [{"name": name, "model": model, "adapt": adapt}],
        "data": text,
        "eval": suites,
    }
    recipe = from_values(values, origin="the options")
    return recipe if task else from_values({**values, "task": _task_of(model, trust)}, origin="the options")
