"""The student's tokenizer: loaded, or trained or trimmed and cached as a stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import system_errors
from stlm_kd.artifacts.stage_store import Key
from stlm_kd.data.corpus import texts
from stlm_kd.data.sources.limits import first_words
from stlm_kd.data.tokenizers import Learn, load_tokenizer, roles_of_trained, train_tokenizer
from stlm_kd.distributed import on_main_process
from stlm_kd.errors import ModelError
from stlm_kd.pipeline.builders.examples import all_examples
from stlm_kd.pipeline.builders.sources import training_sources
from stlm_kd.pipeline.context import RecipeSetup, RunContext
from stlm_kd.pipeline.stage_keys import tokenizer_key
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.recipe.schema.student import TokenizerTraining, TokenizerTrim
from stlm_kd.vocabulary.prefer import preferred_merges
from stlm_kd.vocabulary.trim import check_trim_size, trim_tokenizer

_SIZE = "student.tokenizer.size"


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


def sized_setup(recipe: Recipe, context: RunContext) -> RecipeSetup:
    """A recipe with the tokenizer that it names, or one of the size of that which it would make.

    Reads no text and makes no stage. ModelError for a trimmed one that its teacher does not give.
    """
    wanted = recipe.student.tokenizer
    if isinstance(wanted, TokenizerTrim):
        _check_source(recipe, wanted, context)
    if isinstance(wanted, str):
        return RecipeSetup(
            recipe, load_tokenizer(wanted, trust_remote_code=context.trust_remote_code), context
        )
    return RecipeSetup(recipe, _untrained_tokenizer(wanted.size, masked=recipe.task != "clm"), context)


def _check_source(recipe: Recipe, wanted: TokenizerTrim, context: RunContext) -> None:
    """ModelError if the teacher that is trimmed has fewer tokens, or no mask token that is needed."""
    (teacher,) = source_teachers(recipe)
    inner = teacher.recipe
    own = own_tokenizer(teacher, context) if inner is None else sized_setup(inner, context).tokenizer
    check_trim_size(wanted.size, len(own.get_vocab()), place=_SIZE, name=f"teacher {wanted.trim}")
    _check_mask(recipe, wanted, own)


def _check_mask(recipe: Recipe, wanted: TokenizerTrim, teacher: PreTrainedTokenizerFast) -> None:
    if recipe.task == "mlm" and teacher.mask_token_id is None:
        raise ModelError(
            f"student.tokenizer.trim: the tokenizer of teacher {wanted.trim} has no mask token, which a "
            "masked language model needs; trim that of a masked teacher, or train one: {train: bpe, size: "
            f"{wanted.size}}}"
        )


def made_setup(recipe: Recipe, context: RunContext) -> RecipeSetup | None:
    """``setup_of`` where it makes no stage: None if a tokenizer, of a teacher's recipe too, is still to make.

    Reads the sources of the training text that a tokenizer is made of, as far as they are not hashed yet.
    """
    return setup_of(recipe, context) if _has_tokenizers(recipe, context) else None


def _has_tokenizers(recipe: Recipe, context: RunContext) -> bool:
    inner = (teacher.recipe for teacher in recipe.teachers if teacher.recipe is not None)
    if not all(_has_tokenizers(one, context) for one in inner):
        return False
    key = made_tokenizer_key(recipe, context)
    return key is None or context.stages.has("tokenizer", key)


def _untrained_tokenizer(size: int, *, masked: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of the size and with the special tokens of the one that would be trained (or trimmed)."""
    roles = roles_of_trained(masked)
    special = list(dict.fromkeys(map(str, roles.values())))
    tokens = {token: number for number, token in enumerate([*special, *map(str, range(size - len(special)))])}
    made = Tokenizer(WordLevel(tokens, unk_token=special[0]))
    return PreTrainedTokenizerFast(tokenizer_object=made, **roles)


def student_tokenizer(recipe: Recipe, context: RunContext) -> PreTrainedTokenizerFast:
    """Load the student's tokenizer, or make it of the whole training text and cache it as a stage."""
    wanted = recipe.student.tokenizer
    if isinstance(wanted, str):
        return load_tokenizer(wanted, trust_remote_code=context.trust_remote_code)
    teachers = _source_tokenizers(recipe, context)

    def build(folder: Path) -> None:
        found = _made(recipe, wanted, _training_text(recipe), teachers)
        with system_errors(folder):
            found.save_pretrained(folder)

    def made() -> Path:
        key = tokenizer_key(recipe, wanted, teachers)
        return context.stages.make("tokenizer", key, build, what="tokenizer")

    return load_tokenizer(str(on_main_process(made)))


def sampled_tokenizer(
    recipe: Recipe, most_bytes: int, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """The student's tokenizer, made in memory of ``sampled_text`` where a run makes it of the whole text."""
    wanted = recipe.student.tokenizer
    if isinstance(wanted, str):
        return load_tokenizer(wanted, trust_remote_code=trust_remote_code)
    teachers = [
        sampled_teacher_tokenizer(teacher, most_bytes, trust_remote_code=trust_remote_code)
        for teacher in source_teachers(recipe)
    ]
    return _made(recipe, wanted, sampled_text(recipe, most_bytes), teachers)


def sampled_teacher_tokenizer(
    teacher: Teacher, most_bytes: int, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerFast:
    """The teacher's own tokenizer; see ``sampled_tokenizer``."""
    if teacher.recipe is not None:
        return sampled_tokenizer(teacher.recipe, most_bytes, trust_remote_code=trust_remote_code)
    assert teacher.model is not None
    return load_tokenizer(teacher.model, trust_remote_code=trust_remote_code)


def sampled_text(recipe: Recipe, most_bytes: int) -> Iterator[str]:
    """The first documents of each training source, together about ``most_bytes`` bytes; of examples, all."""
    if recipe.language_task is None:
        yield from _of_examples(recipe)
        return
    sources = training_sources(recipe)
    for source in sources:
        left = most_bytes // len(sources)
        for text in texts([source]):
            size = len(text.encode())
            yield text if size <= left else first_words(text, left) or text
            left -= size
            if left <= 0:
                break


def _training_text(recipe: Recipe) -> Iterator[str]:
    return _of_examples(recipe) if recipe.language_task is None else texts(training_sources(recipe))


def _made(
    recipe: Recipe,
    wanted: TokenizerTraining | TokenizerTrim,
    own: Iterator[str],
    teachers: Sequence[PreTrainedTokenizerFast],
) -> PreTrainedTokenizerFast:
    """A tokenizer made of a text and the source teachers' tokenizers."""
    if isinstance(wanted, TokenizerTraining):
        with doing("training the student's tokenizer"):
            masked, learn = recipe.task != "clm", _preference(wanted, teachers)
            return train_tokenizer(own, wanted.train, wanted.size, masked=masked, place=_SIZE, learn=learn)
    (teacher,) = teachers
    _check_mask(recipe, wanted, teacher)
    with doing(f"trimming the tokenizer of teacher {wanted.trim}"):
        return trim_tokenizer(teacher, own, wanted.size, place=_SIZE, name=f"teacher {wanted.trim}")


def made_tokenizer_key(recipe: Recipe, context: RunContext) -> Key | None:
    """The key of the tokenizer that the recipe makes; None if it names one."""
    wanted = recipe.student.tokenizer
    if isinstance(wanted, str):
        return None
    return tokenizer_key(recipe, wanted, _source_tokenizers(recipe, context))


def own_tokenizer(teacher: Teacher, context: RunContext) -> PreTrainedTokenizerFast:
    """The teacher's own tokenizer."""
    if teacher.recipe is not None:
        return student_tokenizer(teacher.recipe, context)
    assert teacher.model is not None
    return load_tokenizer(teacher.model, trust_remote_code=context.trust_remote_code)


def trimmed_from(recipe: Recipe) -> Teacher | None:
    """The teacher whose tokenizer is trimmed for the student; None if none is."""
    is_trimmed = isinstance(recipe.student.tokenizer, TokenizerTrim)
    return source_teachers(recipe)[0] if is_trimmed else None


def source_teachers(recipe: Recipe) -> list[Teacher]:
    """The teachers of whose tokenizers the student's is made: the trimmed one, or all that are preferred."""
    wanted = recipe.student.tokenizer
    if isinstance(wanted, TokenizerTrim):
        return [one for one in recipe.teachers if one.name == wanted.trim]
    if isinstance(wanted, TokenizerTraining) and wanted.prefer is not None:
        return [one for one in recipe.teachers if one.has_model]
    return []


def _source_tokenizers(recipe: Recipe, context: RunContext) -> list[PreTrainedTokenizerFast]:
    return [own_tokenizer(teacher, context) for teacher in source_teachers(recipe)]


def _preference(wanted: TokenizerTraining, teachers: Sequence[PreTrainedTokenizerFast]) -> Learn | None:
    """How the merges are learned; None for the most frequent pairs."""
    if wanted.prefer is None:
        return None
    return partial(preferred_merges, teachers=teachers, place="student.tokenizer")


def _of_examples(recipe: Recipe) -> Iterator[str]:
    """The texts of all training examples, both of each pair."""
    for example in all_examples(recipe).texts:
        yield from example
