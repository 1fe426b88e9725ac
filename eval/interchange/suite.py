"""The suite ``interchange``: compares a student with each of its teachers under the same interventions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt

from stlm_kd.artifacts.results import ExampleScore, Score, SuiteResult, text_hash
from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.sources.sources import hash_of
from stlm_kd.eval.classification.scoring import hash_of_texts, hashes_of
from stlm_kd.eval.interchange.config import ALL, SUITE, HeldOutSource, PairConfig
from stlm_kd.eval.suite import LANGUAGE_MODELS, register_suite
from stlm_kd.models.forward import task_of, vocabulary_head
from stlm_kd.models.layer_alignment import Alignment, aligned
from stlm_kd.vocabulary.token_bytes import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from stlm_kd.eval.interchange.metrics import Exchange

JUDGED = ("interchange_accuracy", "agreement")
"""The main metrics; the others describe the interventions, and layers are parts."""


@dataclass(frozen=True, slots=True)
class AlignedTeacher:
    """A teacher on the student's device, with its classes or vocabulary; student layer → aligned layers."""

    model: PreTrainedModel
    alignment: Alignment


@register_suite(SUITE, tasks=[*LANGUAGE_MODELS, "classification"], teachers="aligned")
def interchange(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    held: Sequence[str] | Examples,
    teachers: Mapping[str, AlignedTeacher],
    /,
    *,
    alignment: Literal["full", "middle", "late", "first", "last"] | None = None,
    source: HeldOutSource = "other-example",
    positions: Literal["consecutive", "random"] = "consecutive",
    rows: Annotated[int, Gt(1)] = 256,
    context: Annotated[int, Gt(3)] | None = None,
    seed: Annotated[int, Ge(0)] = 0,
) -> SuiteResult:
    """Interchange intervention accuracy of a student and agreement with each teacher, which is the task.

    Args:
        model: The student: a language model or a classifier.
        tokenizer: The tokenizer of the student and its teachers.
        held: Held-out text, or labelled examples.
        teachers: At least one, by name.
        alignment: Layers to intervene on, one at a time; default: those of the recipe's objective.
        source: Source of the swapped-in hidden states.
        positions: Contiguous or random positions.
        rows: Maximum rows of text, or examples.
        context: Tokens per row or example; default: 128, or the smallest number of positions of all models if
            fewer.
        seed: Random seed.

    Raises:
        DataError: Too little text.
        ModelError: An alignment that these models do not have.
        UsageError: More positions than a model has.
    """
    from stlm_kd.eval.interchange.metrics import measure
    from stlm_kd.eval.interchange.pairs import draw_pairs, row_length

    asked = PairConfig(source, positions, rows, seed)
    length = row_length(
        {"the student": model, **{name: one.model for name, one in teachers.items()}},
        context,
        place=f"{SUITE}: context",
    )
    task = None if vocabulary_head(model) is None else task_of(model)
    exchanges = draw_pairs(held, tokenizer, asked, context=length, task=task)
    found = {
        name: measure(
            taught.model,
            model,
            exchanges,
            alignment=taught.alignment if alignment is None else _named(alignment, model, taught.model),
            vocabulary=vocabulary_size(tokenizer),
        )
        for name, taught in teachers.items()
    }
    ids = held.ids if isinstance(held, Examples) else None
    rows = sum(int((exchange.batch.example_ids >= 0).sum()) for exchange in exchanges)
    interventions = (
        f"{asked.source} states at {asked.positions} positions, {rows} rows of up to {length} tokens, seed "
        f"{asked.seed}"
    )
    return SuiteResult(
        SUITE,
        tuple(score for name, result in found.items() for score in _scores(name, result)),
        tuple(row for name, result in found.items() for row in _examples(name, result, ids)),
        (
            f"interventions: {interventions} (options source, positions, rows, context, seed)",
            *(f"teacher {name}: {note}" for name, result in found.items() for note in result.notes),
        ),
        {
            "texts": hash_of_texts(held) if isinstance(held, Examples) else hash_of(list(held)),
            "context": length,
            "interventions": interventions,
            **{name: result.report for name, result in found.items()},
        },
        texts=dict.fromkeys(found, _texts(held, exchanges)),
    )


def _texts(held: Sequence[str] | Examples, exchanges: Sequence[Exchange]) -> dict[str, str]:
    """The hash of each example, or of the tokens of each row of text, by id."""
    ids = [number for exchange in exchanges for number in exchange.batch.example_ids.tolist()]
    if isinstance(held, Examples):
        known = hashes_of(held)
        return {held.ids[number]: known[held.ids[number]] for number in ids if number >= 0}
    batches = [exchange.batch for exchange in exchanges if isinstance(exchange.batch, Batch)]
    rows = (row for one in batches for row in zip(one.input_ids, one.attention_mask, strict=True))
    return {
        str(number): text_hash(ids_T[mask_T].tolist())
        for number, (ids_T, mask_T) in zip(ids, rows, strict=True)
        if mask_T.any()
    }


def _named(alignment: str, student: PreTrainedModel, teacher: PreTrainedModel) -> Alignment:
    own, theirs = (int(model.config.get_text_config().num_hidden_layers) for model in (student, teacher))
    return aligned(alignment, own, theirs)


def _scores(teacher: str, result: SuiteResult) -> Iterator[Score]:
    for score in result.scores:
        if score.task == ALL and score.metric in JUDGED:
            yield replace(score, task=teacher)
        else:
            yield replace(score, task=f"{teacher}, {score.task}", part_of=f"{teacher} by layer")


def _examples(teacher: str, result: SuiteResult, ids: Sequence[str] | None) -> Iterator[ExampleScore]:
    for row in result.examples:
        if row.metric in JUDGED:
            yield row._replace(task=teacher, id=row.id if ids is None else ids[int(row.id)])
