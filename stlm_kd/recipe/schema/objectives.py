"""The objectives of a recipe, and the combination of teachers.

A loss belongs to one registry (logits, hidden states, attention maps, interventions), which determines the
further fields of its objective.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny, WrapValidator

from stlm_kd.recipe.schema.fields import BelowOne, Part, Text
from stlm_kd.recipe.schema.interchange import Interchange
from stlm_kd.recipe.schema.objective import LABELS, Feature, MapFeature, Objective, Response, loss_registries
from stlm_kd.recipe.schema.options import added_options, known_name, row_of, with_options
from stlm_kd.registry import Registry


def _tables() -> list[tuple[type[Objective], Registry[Any]]]:
    """Each registry of losses, with the class of its objectives."""
    return list(zip((Response, Feature, MapFeature, Interchange), loss_registries(), strict=True))


def _combiners() -> Registry[Any]:
    from stlm_kd.teachers.combination import COMBINERS

    return COMBINERS


AnyObjective = Annotated[SerializeAsAny[Objective], WrapValidator(row_of(Objective, "loss", _tables))]


def labels_alone() -> Objective:
    """The only objective of a student without teachers."""
    return with_options(Response, LABELS, loss_registries()[0]).model_validate({"loss": LABELS})


class Combine(Part):
    """The combination of several teachers; the options of ``how`` are further fields.

    ``teacher_dropout``: the probability that a teacher is dropped in an optimizer step and does not run; at
    least one stays.
    """

    called: ClassVar[str] = "a key of combine"
    how: Annotated[Text, BeforeValidator(lambda value: known_name(value, _combiners()))] = "mean"
    teacher_dropout: BelowOne = 0.0

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the combiner."""
        return added_options(self, Combine)


AnyCombine = Annotated[
    SerializeAsAny[Combine], WrapValidator(row_of(Combine, "how", lambda: [(Combine, _combiners())]))
]
