"""What a recipe's vocabulary means: exact rows of its teachers, and what the student's embedding costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stlm_kd.errors import DataError
from stlm_kd.estimate.counting import sizes_of
from stlm_kd.estimate.simulation.skeleton import Skeleton
from stlm_kd.pipeline.scoring.vocabularies import VocabularyComparison, compare_tokenizers
from stlm_kd.pipeline.stages.tokenizer import sampled_teacher_tokenizer, sampled_text, sampled_tokenizer
from stlm_kd.recipe import Recipe, named_recipe

SAMPLE = 2_000_000
"""Bytes of the training text that are read."""
STUDENT = "student"


@dataclass(frozen=True, slots=True)
class RecipeVocabularies:
    """The tokenizers of a recipe's student and teachers on the first bytes of its training text.

    ``compared`` has the pairs of the student and each teacher. ``parameters`` are the student's,
    ``embedding`` those of its embedding and head among them; None for a recipe that trains no student.
    ``bytes_read`` is the size of the text, of which a tokenizer was made that the recipe makes.
    """

    compared: VocabularyComparison
    parameters: int | None
    embedding: int | None
    bytes_read: int


def recipe_vocabularies(
    recipe: Recipe | str, overrides: Sequence[str] = (), *, trust_remote_code: bool = False
) -> RecipeVocabularies:
    """The vocabularies of a recipe, measured on the first ``SAMPLE`` bytes of its training text.

    Nothing is stored. Tokenizers that a run makes of the whole text are made of these bytes here.

    Args:
        recipe: A recipe, a file, or a built-in name.
        overrides: Changes ``key.path=value``, for a recipe given by name.
        trust_remote_code: Whether to run code shipped with a model.

    Raises:
        DataError: The text cannot be read, or these bytes are too few for a tokenizer of the given size.
        MissingResourceError: A tokenizer, configuration or text is missing.
        ModelError: A tokenizer or model cannot be used.
    """
    recipe, _ = named_recipe(recipe, overrides, None)
    documents = list(sampled_text(recipe, SAMPLE))
    try:
        loaded = {STUDENT: sampled_tokenizer(recipe, SAMPLE, trust_remote_code=trust_remote_code)}
        for teacher in recipe.teachers:
            if teacher.has_model:
                own = sampled_teacher_tokenizer(teacher, SAMPLE, trust_remote_code=trust_remote_code)
                loaded[f"teacher {teacher.name}"] = own
    except DataError as error:
        raise DataError(f"of the first {SAMPLE:,} bytes of the training text: {error}") from error
    compared = compare_tokenizers(loaded, documents, students=[STUDENT])
    parameters = embedding = None
    if not recipe.adapts_only:
        parameters, embedding = student_parameters(recipe, trust_remote_code=trust_remote_code)
    read = sum(len(document.encode()) for document in documents)
    return RecipeVocabularies(compared, parameters, embedding, read)


def student_parameters(recipe: Recipe, *, trust_remote_code: bool = False) -> tuple[int, int]:
    """The parameters of a recipe's student, and those of its embedding and head among them."""
    student = next(sizes_of(Skeleton.of(recipe, trust_remote_code=trust_remote_code)))
    return student.parameters, student.embedding
