"""Special tokens by role: start, end, mask, unknown, padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Roles:
    """The id of each role, or None.

    A document's start is bos, else cls, else its end, which is eos, else sep, else bos. Unknown is None if it
    is an alias of start or end (GPT-2), padding if of any other token (Qwen2). ``starts`` and ``ends`` are
    all such ids.
    """

    start: int | None
    end: int | None
    mask: int | None
    unknown: int | None
    padding: int | None
    starts: frozenset[int]
    ends: frozenset[int]


@dataclass(frozen=True, slots=True)
class RoleSource:
    """Teacher ids of a student's special token: for its input row and for its output row.

    They differ if one student token both starts and ends documents and the teacher has two.
    """

    read: int
    predict: int


def roles_of(tokenizer: PreTrainedTokenizerBase) -> Roles:
    """The special-token roles of a tokenizer."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    start = _first(bos, cls, eos, sep)
    end = _first(eos, sep, bos, cls)
    taken = {i for i in (bos, eos, cls, sep) if i is not None}
    mask = tokenizer.mask_token_id
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id not in taken else None
    padding = tokenizer.pad_token_id
    return Roles(
        start=start,
        end=end,
        mask=mask if mask not in taken else None,
        unknown=unknown,
        padding=padding if padding not in taken | {unknown, mask} else None,
        starts=frozenset(i for i in (start, cls) if i is not None),
        ends=frozenset(i for i in (end, sep) if i is not None),
    )


def map_roles(teacher: Roles, student: Roles) -> dict[int, RoleSource]:
    """Map the student's special ids to the teacher's tokens of the same roles.

    A missing mask is replaced by the unknown token and vice versa, missing padding by the unknown token;
    without a replacement the id is omitted.
    """
    found: dict[int, RoleSource] = {}

    def add(student_id: int | None, *sources: int | None) -> None:
        source = _first(*sources)
        if student_id is not None and source is not None:
            found.setdefault(student_id, RoleSource(source, source))

    if teacher.start is not None and teacher.end is not None:
        for i in student.starts | student.ends:
            read = teacher.start if i in student.starts else teacher.end
            predict = teacher.end if i in student.ends else teacher.start
            found[i] = RoleSource(read, predict)
    add(student.mask, teacher.mask, teacher.unknown)
    add(student.unknown, teacher.unknown, teacher.mask)
    add(student.padding, teacher.padding, teacher.unknown)
    return found


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)
