"""Map each token of a student's vocabulary to the teacher's tokens of the same text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from stlm_kd.lazy import np
from stlm_kd.vocabulary.special_tokens import map_roles, roles_of
from stlm_kd.vocabulary.token_bytes import Vocabulary, read_vocabulary
from stlm_kd.vocabulary.tokenise_bytes import split_surfaces

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase


class Kind(IntEnum):
    """How a student token is mapped to the teacher's vocabulary."""

    FALLBACK = 0
    """Unmapped: the teacher cannot represent it."""
    EXACT = 1
    """One teacher token has exactly the same bytes."""
    PIECES = 2
    """The teacher's tokenizer splits it (or normalises it, as an uncased one does)."""
    ROLE = 3
    """A special token, mapped to the teacher's token of the same role."""


@dataclass(frozen=True, slots=True)
class VocabularyMapping:
    """Teacher ids of each student id, in compressed sparse rows: ``offsets`` (V' + 1,) into ``sources``.

    ``kinds`` (V',) has each one's ``Kind``. ``teacher_ids``, ascending, are all in use; further rows of a
    padded embedding were never trained. ``predicted``: student ids whose *output* row has another source than
    their input row (one token that both starts and ends documents, where the teacher has two), with that
    teacher id.
    """

    kinds: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    sources: NDArray[np.int64]
    teacher_ids: NDArray[np.int64]
    predicted: Mapping[int, int]

    def __len__(self) -> int:
        return len(self.kinds)

    def sources_of(self, student_id: int) -> list[int]:
        """Teacher ids of one student id; empty if the teacher cannot represent it."""
        first, last = self.offsets[student_id : student_id + 2]
        return [int(i) for i in self.sources[first:last]]

    def ids_of(self, *kinds: Kind) -> NDArray[np.int64]:
        """Student ids of these kinds, ascending."""
        return np.flatnonzero(np.isin(self.kinds, kinds)).astype(np.int64)

    @property
    def counts(self) -> dict[str, int]:
        """Number of student ids by kind: ``exact``, ``pieces``, ``role``, ``fallback``."""
        kinds = (Kind.EXACT, Kind.PIECES, Kind.ROLE, Kind.FALLBACK)
        return {kind.name.lower(): int((self.kinds == kind).sum()) for kind in kinds}

    def for_output(self) -> VocabularyMapping:
        """The mapping for output rows instead of input rows."""
        sources = self.sources.copy()
        for student_id, teacher_id in self.predicted.items():
            sources[self.offsets[student_id]] = teacher_id
        return VocabularyMapping(self.kinds, self.offsets, sources, self.teacher_ids, {})


def map_vocabulary(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> VocabularyMapping:
    """Map every student token to the teacher's vocabulary; errors as ``read_vocabulary``."""
    old, new = read_vocabulary(teacher), read_vocabulary(student)
    old_roles, new_roles = roles_of(teacher), roles_of(student)
    roles = {i: role for i, role in map_roles(old_roles, new_roles).items() if i in new.special}
    exact = {i: [source] for i, source in _exact(old, new).items() if i not in roles}
    left = {i: text for i, text in enumerate(new.surfaces) if text and i not in roles and i not in exact}
    splits = split_surfaces(old, list(left.values()), unknown=old_roles.unknown)
    pieces = {i: row for i, row in zip(left, splits, strict=True) if row}
    found = {i: [role.read] for i, role in roles.items()} | exact | pieces
    kinds = np.zeros(new.size, np.uint8)
    for kind, ids in ((Kind.ROLE, roles), (Kind.EXACT, exact), (Kind.PIECES, pieces)):
        kinds[list(ids)] = kind
    rows = [found.get(i, []) for i in range(new.size)]
    offsets = np.cumsum([0, *map(len, rows)])
    sources = np.fromiter((i for row in rows for i in row), np.int64, count=int(offsets[-1]))
    predicted = {i: role.predict for i, role in roles.items() if role.predict != role.read}
    return VocabularyMapping(kinds, offsets, sources, np.array(old.used_ids, np.int64), predicted)


def _exact(old: Vocabulary, new: Vocabulary) -> dict[int, int]:
    """Student id → teacher id of the same string, or of the same bytes in another alphabet.

    Added tokens (special ones included) are matched by string first; special tokens have no bytes.
    """
    by_string: dict[tuple[bool, str], int] = {
        (i in old.added, token): i for i, token in enumerate(old.tokens) if token is not None
    }
    by_surface = ids_by_surface(old)
    found: dict[int, int] = {}
    for i, (token, surface) in enumerate(zip(new.tokens, new.surfaces, strict=True)):
        if token is None:
            continue
        same_string = by_string.get((i in new.added, token))
        if same_string is not None and (i in new.added or old.surfaces[same_string] == surface):
            found[i] = same_string
        elif surface is not None and surface in by_surface:
            found[i] = by_surface[surface]
    return found


def ids_by_surface(vocabulary: Vocabulary) -> dict[bytes, int]:
    """The id of each byte string, pieces before byte tokens; without tokens that are never produced."""
    index: dict[bytes, int] = {}
    bytes_last = sorted(vocabulary.used_ids, key=set(vocabulary.byte_tokens.values()).__contains__)
    for i in bytes_last:
        token, surface = vocabulary.tokens[i] or "", vocabulary.surfaces[i]
        cannot_continue = token.startswith("##") and token[2:3] in vocabulary.isolated
        if surface is not None and not cannot_continue:
            index.setdefault(surface, i)
            if token in vocabulary.isolated:
                index.setdefault(b" " + surface, i)
    return index
