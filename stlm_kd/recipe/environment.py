"""What a recipe needs of the machine, as far as it shows without reading data or models."""

from __future__ import annotations

from stlm_kd.errors import EnvironmentFault
from stlm_kd.recipe.interchange import relations
from stlm_kd.recipe.schema import Recipe


def check_environment(recipe: Recipe, *, origin: str) -> None:
    """Refuse a recipe that could not run here.

    Args:
        recipe: One without faults; its teachers' recipes count too.
        origin: Where it came from, for the message.

    Raises:
        EnvironmentFault: NLTK or WordNet is needed, and not there.
    """
    for teacher in recipe.teachers:
        if teacher.recipe is not None:
            check_environment(teacher.recipe, origin=f"{origin}: teacher {teacher.name}")
    if found := relations(recipe.objectives):
        from stlm_kd.interventions.wordnet import require_wordnet

        try:
            require_wordnet()
        except EnvironmentFault as error:
            raise EnvironmentFault(f"{origin}: source {', '.join(found)}: {error}") from error
