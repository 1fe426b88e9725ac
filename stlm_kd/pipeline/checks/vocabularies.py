"""Whether a teacher has the tokens of a student, and what to do where it does not."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from stlm_kd.models.families import Goal
from stlm_kd.notes import note
from stlm_kd.recipe.schema.student import Adapt
from stlm_kd.vocabulary.mapping import Kind, map_vocabulary
from stlm_kd.vocabulary.token_bytes import read_vocabulary
from stlm_kd.vocabulary.translation import translation_faults

_SHOWN = 3


def lacking_tokens(own: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast) -> list[str]:
    """The student's tokens that a teacher has neither by their bytes nor by their role, in order of id.

    Raises ModelError for a vocabulary of an unknown kind.
    """
    names = read_vocabulary(student).tokens
    ids = map_vocabulary(own, student).ids_of(Kind.PIECES, Kind.FALLBACK)
    return [token for i in ids.tolist() if (token := names[i]) is not None]


def another_vocabulary(own: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast, *, task: Goal) -> str:
    """The fault of a teacher whose vocabulary is another one and not adapted, with the cures for this one."""
    lacking = lacking_tokens(own, student)
    cure = (
        f"add adapt: {{}}, which trains rows for those it lacks ({_listed(lacking)}), "
        if lacking
        else "it has all of these, so add adapt: {tokens: 0}, which trains nothing, "
    )
    can_be_translated = task == "clm" and not any(translation_faults(own, student))
    translate = "or translate: true, which keeps its vocabulary, " if can_be_translated else ""
    return (
        f"its vocabulary ({len(own)} tokens) is not the student's ({len(student)} tokens): ids mean "
        f"different tokens; {cure}{translate}or give the student the teacher's tokenizer"
    )


def note_lacking_tokens(
    place: str, adapt: Adapt, own: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast
) -> None:
    """Note the tokens whose rows an adaptation without training makes up.

    Raises ModelError for a teacher's vocabulary of an unknown kind, whether it is trained or not.
    """
    if adapt.tokens:
        read_vocabulary(own)
        return
    if lacking := lacking_tokens(own, student):
        note(
            f"{place}.adapt.tokens: 0 trains nothing, but the teacher lacks {len(lacking):,} of the "
            f"student's {len(student):,} tokens ({_listed(lacking)}), whose rows are made by {adapt.init}; "
            "set tokens, such as 1M, or trim the student's tokenizer from this teacher"
        )


def _listed(tokens: list[str]) -> str:
    more = f" and {len(tokens) - _SHOWN:,} more" if len(tokens) > _SHOWN else ""
    return ", ".join(map(repr, tokens[:_SHOWN])) + more
