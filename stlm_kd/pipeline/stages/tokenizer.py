"""The student's tokenizer: loaded, or trained and cached as a stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import system_errors
from stlm_kd.data.corpus import texts
from stlm_kd.data.tokenizers import load_tokenizer, train_tokenizer
from stlm_kd.distributed import on_main_process
from stlm_kd.pipeline.builders.examples import all_examples
from stlm_kd.pipeline.builders.sources import training_sources
from stlm_kd.pipeline.context import RecipeSetup, RunContext
from stlm_kd.pipeline.stage_keys import tokenizer_key
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.student import TokenizerTraining


def setup_of(recipe: Recipe, context: RunContext) -> RecipeSetup:
    """A recipe with its student's tokenizer; see ``student_tokenizer``.

    It has the template of the chats that the student learns from, if they have one in common.
    """
    tokenizer = student_tokenizer(recipe, context)
    of_text = recipe.language_task is not None and any(source.chat for source in recipe.data.train)
    chats = {source.chat for source in training_sources(recipe)} if of_text else set()
    templates = {chat.template_text() for chat in chats if chat is not None}
    if len(templates) == 1:
        (tokenizer.chat_template,) = templates
    return RecipeSetup(recipe, tokenizer, context)


def student_tokenizer(recipe: Recipe, context: RunContext) -> PreTrainedTokenizerFast:
    """Load the student's tokenizer, or train it on the whole training text and cache it as a stage."""
    wanted = recipe.student.tokenizer
    if not isinstance(wanted, TokenizerTraining):
        return load_tokenizer(wanted, trust_remote_code=context.trust_remote_code)
    labelled = recipe.language_task is None

    def build(folder: Path) -> None:
        own = _of_examples(recipe) if labelled else texts(training_sources(recipe))
        with doing("training the student's tokenizer"):
            made = train_tokenizer(
                own, wanted.train, wanted.size, masked=recipe.task != "clm", place="student.tokenizer.size"
            )
        with system_errors(folder):
            made.save_pretrained(folder)

    def made() -> Path:
        return context.stages.make("tokenizer", tokenizer_key(recipe, wanted), build, what="tokenizer")

    return load_tokenizer(str(on_main_process(made)))


def _of_examples(recipe: Recipe) -> Iterator[str]:
    """The texts of all training examples, both of each pair."""
    for example in all_examples(recipe).texts:
        yield from example
