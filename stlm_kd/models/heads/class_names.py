"""Match the class names of a model with those of the data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from stlm_kd.errors import ModelError
from stlm_kd.notes import note


def check_classes(name: str, own: Sequence[str], labels: Sequence[str]) -> None:
    """Check that a model's classes equal those of the data (none for regression), in the same order.

    Case, spaces, dashes and underscores are ignored. Numbered names from 0, such as ``LABEL_0`` or ``0``, are
    matched by index, with a note that lists the pairs. Raises ``ModelError``, with both lists, if they differ
    in number, names or order.
    """
    if len(own) != max(1, len(labels)):
        raise ModelError(
            f"{name}: its head is for {_counted(own)}, but the data has {_counted(labels)}; use it as "
            "student.model with student.new_head: true"
        )
    ours, theirs = ([_folded(label) for label in names] for names in (own, labels))
    if not labels or ours == theirs or (_is_numbered(own) and _is_numbered(labels)):
        return
    listed = f"its classes are {', '.join(own)}"
    if sorted(ours) == sorted(theirs):
        raise ModelError(
            f"{name}: {listed} in this order, but those of the data are {', '.join(labels)}; give labels in "
            f"the model's order, or map them: {_option(own)}"
        )
    if _is_numbered(own) or _is_numbered(labels):
        pairs = ", ".join(f"{one} = {other}" for one, other in zip(own, labels, strict=True))
        note(f"{name}: its classes and those of the data are matched by their numbers; taken as: {pairs}")
        return
    raise ModelError(
        f"{name}: {listed}, but those of the data are {', '.join(labels)}; expected the same names; map them "
        f"in the recipe: {_option(own)} (for a model that is not a teacher, correct id2label in its "
        "config.json)"
    )


def class_order(
    name: str, own: Sequence[str], labels: Sequence[str], classes: Mapping[str, str]
) -> tuple[int, ...]:
    """For each class of the data, the index of the model's class that ``classes`` maps to it.

    Raises ``ModelError``, with both lists, if the mapping is not one to one.

    >>> class_order("m", ("POS", "NEG"), ("negative", "positive"), {"POS": "positive", "NEG": "negative"})
    (1, 0)
    """
    ours = {_folded(label): place for place, label in enumerate(own)}
    theirs = {_folded(label): place for place, label in enumerate(labels)}
    mapped = {_folded(one): _folded(other) for one, other in classes.items()}
    if set(mapped) != set(ours) or sorted(mapped.values()) != sorted(theirs) or len(ours) != len(own):
        pairs = ", ".join(f"{one}: {other}" for one, other in classes.items())
        raise ModelError(
            f"{name}: classes {{{pairs}}} found; expected each of its classes ({', '.join(own)}) with a "
            f"different class of the data ({', '.join(labels)})"
        )
    back = {other: one for one, other in mapped.items()}
    return tuple(ours[back[label]] for label in theirs)


def same_classes(own: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two models have the same class names in the same order; numbered names match any."""
    if len(own) != len(others) or _is_numbered(own) or _is_numbered(others):
        return len(own) == len(others)
    return [*map(_folded, own)] == [*map(_folded, others)]


def is_unnamed(names: Sequence[str]) -> bool:
    """Whether the names are ``LABEL_0`` and so on, transformers' default."""
    return [*names] == [f"LABEL_{place}" for place in range(len(names))]


def _is_numbered(names: Sequence[str]) -> bool:
    """Whether each name is only its index, such as ``LABEL_1`` or ``1``."""
    found = [re.fullmatch(r"(?:label|class)? ?(\d+)", _folded(name)) for name in names]
    return all(match is not None and int(match[1]) == place for place, match in enumerate(found))


def _folded(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", label).strip().casefold()


def _option(own: Sequence[str]) -> str:
    return f"teachers[].classes: {{{', '.join(f'{label}: …' for label in own)}}}"


def _counted(labels: Sequence[str]) -> str:
    return f"{len(labels)} classes ({', '.join(labels)})" if len(labels) > 1 else "a number"
