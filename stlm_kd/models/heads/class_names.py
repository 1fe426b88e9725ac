"""Names of classes, of a model and of data: whether they mean the same, and which is which."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from stlm_kd.errors import ModelError
from stlm_kd.notes import note


def check_classes(name: str, own: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse a model whose classes are not those of the data, in their order.

    Case, spaces, dashes and underscores do not count. Numbers from 0, such as ``LABEL_0`` or ``0``, are no
    names: they are taken for the names at their places, with a note that says what is taken as what.

    Args:
        name: What messages call the model.
        own: The names of its classes in order.
        labels: Those of the data; none of a regression.

    Raises:
        ModelError: They differ in number, names or order; the message has both lists.
    """
    if len(own) != max(1, len(labels)):
        raise ModelError(
            f"{name}: its head is for {_counted(own)}, but the data has {_counted(labels)}; as a "
            "student.model it gets a new one by student.new_head: true"
        )
    ours, theirs = ([_folded(label) for label in names] for names in (own, labels))
    if not labels or ours == theirs or (_is_numbered(own) and _is_numbered(labels)):
        return
    listed = f"its classes are {', '.join(own)}"
    if sorted(ours) == sorted(theirs):
        raise ModelError(
            f"{name}: {listed} in this order, but those of the data are {', '.join(labels)}; give labels in "
            f"the model's order, or say which is which: {_option(own)}"
        )
    if _is_numbered(own) or _is_numbered(labels):
        pairs = ", ".join(f"{one} = {other}" for one, other in zip(own, labels, strict=True))
        note(f"{name}: its classes and those of the data are matched by their numbers; taken as: {pairs}")
        return
    raise ModelError(
        f"{name}: {listed}, but those of the data are {', '.join(labels)}; expected the same names; say "
        f"which is which in the recipe: {_option(own)} (of a model that is no teacher, correct id2label in "
        "its config.json)"
    )


def class_order(
    name: str, own: Sequence[str], labels: Sequence[str], classes: Mapping[str, str]
) -> tuple[int, ...]:
    """For each class of the data, the place of the model's class that is mapped to it.

    >>> class_order("m", ("POS", "NEG"), ("negative", "positive"), {"POS": "positive", "NEG": "negative"})
    (1, 0)

    Args:
        name: What messages call the model.
        own: The names of its classes in order.
        labels: Those of the data, in order.
        classes: The data's name of each of the model's classes.

    Raises:
        ModelError: Not every class of both is mapped once; the message has both lists.
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
    """Whether two models name the same classes in the same order, as far as they name them."""
    if len(own) != len(others) or _is_numbered(own) or _is_numbered(others):
        return len(own) == len(others)
    return [*map(_folded, own)] == [*map(_folded, others)]


def is_unnamed(names: Sequence[str]) -> bool:
    """Whether they are ``LABEL_0`` and so on, which transformers makes up where there are none."""
    return [*names] == [f"LABEL_{place}" for place in range(len(names))]


def _is_numbered(names: Sequence[str]) -> bool:
    """Whether each name is only its own place, as ``LABEL_1`` or ``1``."""
    found = [re.fullmatch(r"(?:label|class)? ?(\d+)", _folded(name)) for name in names]
    return all(match is not None and int(match[1]) == place for place, match in enumerate(found))


def _folded(label: str) -> str:
    return re.sub(r"[\s_-]+", " ", label).strip().casefold()


def _option(own: Sequence[str]) -> str:
    return f"teachers[].classes: {{{', '.join(f'{label}: …' for label in own)}}}"


def _counted(labels: Sequence[str]) -> str:
    return f"{len(labels)} classes ({', '.join(labels)})" if len(labels) > 1 else "a number"
