"""Evaluation suites: functions that score a model, and what others must know of each.

A suite is one function decorated with ``register_suite``; its keyword-only arguments are its options in
recipes, and its docstring describes them. A suite of this package also has a line in ``MODULES``, so that its
name is known before its module is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from stlm_kd.errors import ExtensionError, listed
from stlm_kd.models.families import Goal, Task
from stlm_kd.registry import Extension, Registry, registering

if TYPE_CHECKING:
    from stlm_kd.artifacts.stage_store import Json
    from stlm_kd.eval.fine_tuning.base import FineTuneTask
    from stlm_kd.eval.pins import SuiteData

Options: TypeAlias = Mapping[str, Any]

LANGUAGE_MODELS: tuple[Goal, ...] = get_args(Task)
"""The tasks of language models."""


@dataclass(frozen=True, eq=False)
class Suite(Extension):
    """A suite: ``suite(model, tokenizer, held_out, /, **options)`` returns a ``SuiteResult``.

    ``held_out`` are the recipe's documents or examples. Functions of options receive all of them.

    Attributes:
        tasks: The tasks of the models that it scores, or fine-tunes.
        reads_held_out: Whether it reads the held-out data with these options.
        teachers: Form of the teachers that it receives as a fourth argument, by name: models with a layer
            alignment, or functions that compute their outputs. None: it scores models without teachers.
        longest_window: Largest default window, for suites with the option ``window``; None: no limit.
        identity: Cache key of the data that it reads beside the held-out data; None for none.
        data: What it reads beside the held-out data, by task, without reading it.
        requirements: Functions that raise MissingResourceError or UsageError if something is missing, without
            reading data.
        own_check: Raises MissingResourceError, UsageError or DataError if it cannot run; may read its data.
            None: all requirements are checked.
        fine_tunes: Whether it fine-tunes copies of the model and scores them; its function then takes only
            options, and returns ``FineTuneJob``s.
    """

    tasks: Collection[Goal]
    reads_held_out: Callable[[Options], bool] = lambda options: True
    teachers: Literal["aligned", "outputs"] | None = None
    longest_window: int | None = None
    identity: Callable[[Options], Json] = lambda options: None
    data: Callable[[Options], Mapping[str, SuiteData]] = lambda options: {}
    requirements: Callable[[Options], Iterable[Callable[[], object]]] = lambda options: ()
    own_check: Callable[[Options], object] | None = None
    fine_tunes: bool = False

    @property
    def positional(self) -> int:
        """The model, its tokenizer and the held-out data, and teachers; none for a suite that fine-tunes."""
        return 0 if self.fine_tunes else 3 + (self.teachers is not None)

    def __post_init__(self) -> None:
        known = get_args(Goal)
        if isinstance(self.tasks, str) or not set(self.tasks) <= {*known}:
            raise ExtensionError(
                f"{self.function.__module__}: suite {self.name}: tasks={self.tasks!r} found; expected a "
                f"list of some of {listed(known)}"
            )

    @property
    def task(self) -> Goal | None:
        """The only task that it scores; None if there are several."""
        return next(iter(self.tasks)) if len(self.tasks) == 1 else None

    def common_window(self, sizes: Iterable[int | None]) -> int | None:
        """The default window for all models of a table; None without windows, or if no size is known.

        Bits per byte depend on the context length, so all rows of a table use the same window: the smallest
        of the sizes (the recipe's context, or models' positions; None: any), and at most ``longest_window``.

        >>> SUITES["perplexity"].common_window([512, None, 256])
        256
        >>> SUITES["masked-loss"].common_window([512])
        128
        """
        if "window" not in signature(self.function).parameters:
            return None
        return min((size for size in (*sizes, self.longest_window) if size is not None), default=None)

    def check(self, options: Options) -> None:
        """Check that the suite can run, before a model is loaded.

        Raises:
            UsageError: A task is unknown, or a preset does not have these settings.
            MissingResourceError, DataError: Data or a package is missing, or data does not fit the task.
        """
        if self.own_check is not None:
            self.own_check(options)
            return
        for require in self.requirements(options):
            require()
        if self.fine_tunes:
            for task in self.fine_tune_tasks(options):
                task.check()

    def data_by_task(self, options: Options) -> Mapping[str, SuiteData]:
        """What the suite reads beside the held-out data, by task; errors as ``check``, without reading it."""
        if not self.fine_tunes:
            parameters = signature(self.function).parameters.items()
            return self.data({**{name: one.default for name, one in parameters}, **options})
        return {task.job.task: task.data() for task in self.fine_tune_tasks(options) if task.job.seed == 1}

    def fine_tune_tasks(self, options: Options) -> Sequence[FineTuneTask[Any]]:
        """The tasks of a suite that fine-tunes, after locating their data; errors as ``check``."""
        from stlm_kd.eval.fine_tuning.base import tasks_of

        return tasks_of(self.function(**options))


_FINE_TUNING = "stlm_kd.eval.fine_tuning.suites"

MODULES = {
    "agreement": "stlm_kd.eval.agreement.suite",
    "classification": "stlm_kd.eval.classification.scoring",
    "glue": _FINE_TUNING,
    "interchange": "stlm_kd.eval.interchange.suite",
    "lm-eval": "stlm_kd.eval.harness.evaluate",
    "masked-loss": "stlm_kd.eval.language_modeling.masked_loss",
    "ner": _FINE_TUNING,
    "perplexity": "stlm_kd.eval.language_modeling.perplexity",
    "pseudo-perplexity": "stlm_kd.eval.language_modeling.pseudo_perplexity",
    "regression": "stlm_kd.eval.classification.scoring",
    "squad": _FINE_TUNING,
}
"""The modules of this package's suites; validating a recipe imports those of the suites that it names."""


def _fault(found: Any, arguments: tuple[Any, ...]) -> str | None:
    """What is wrong with the result of a suite; one that fine-tunes gets no positional arguments."""
    from stlm_kd.artifacts.results import Score, SuiteResult

    if not arguments or (
        isinstance(found, SuiteResult) and all(isinstance(score, Score) for score in found.scores)
    ):
        return None
    return f"{type(found).__name__} found; expected a SuiteResult with a tuple of Scores"


SUITES: Registry[Suite] = Registry("suite", 3, MODULES, reserved=("suite",), fault=_fault)


register_suite = registering(
    SUITES,
    Suite,
    """Register a function ``suite(model, tokenizer, held_out, /, **options)`` as an evaluation suite.

    ``held_out`` are the recipe's held-out documents (strings), or its labelled ``Examples``; the function
    returns a ``SuiteResult`` whose scores have standard errors. Recipes name it in ``eval``; its docstring
    describes it in ``stlm-kd eval --help``.

    >>> from stlm_kd.artifacts.results import Score, SuiteResult
    >>> @register_suite("parameters", tasks=["clm", "mlm"], reads_held_out=lambda options: False)
    ... def parameters(model, tokenizer, held_out, /) -> SuiteResult:
    ...     count = sum(weight.numel() for weight in model.parameters())
    ...     return SuiteResult("parameters", (Score("model", "parameters", count, None, 1),))
    >>> SUITES["parameters"].task is None
    True
    """,
)
