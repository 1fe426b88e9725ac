"""What a recipe would do, and what it lacks here, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault, first_of
from stlm_kd.pipeline.checks.data_sets import mirrors_read
from stlm_kd.pipeline.checks.requirements import gguf_models, missing_here
from stlm_kd.recipe import Recipe, named_recipe, recipe_hash
from stlm_kd.recipe.describe import describe
from stlm_kd.recipe.validation.recipe import uneven_batches


@dataclass(frozen=True, slots=True)
class Plan:
    """What running a recipe means; ``name`` is that of its runs, in which ``processes`` train together."""

    name: str
    recipe: Recipe
    processes: int = 1

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the recipe's values; its first eight digits end the name of its run's folder."""
        return recipe_hash(self.recipe)

    @property
    def text(self) -> str:
        """One line for each step, in order, then for what is particular to this machine.

        These are placements of teachers, data sets read from a mirror, and GGUF files.
        """
        from stlm_kd.pipeline.builders.models import teachers_here  # imports PyTorch

        here = [*teachers_here(self.recipe, self.processes), *mirrors_read(self.recipe)]
        return "\n".join([describe(self.recipe), *here, *gguf_models(self.recipe)])

    @property
    def missing(self) -> list[RecipeFault]:
        """Missing files, variables, packages, models and data sets, with the places that need them.

        Reads no data and loads no model; may ask the Hub whether it can be reached.
        """
        return missing_here(self.recipe)

    def require(self) -> None:
        """Raise MissingResourceError if something is missing, one per line."""
        if missing := self.missing:
            headline = f"{self.name}: cannot run here: {len(missing)} missing"
            raise MissingResourceError("\n  ".join([headline, *first_of(missing)]))


def plan(
    recipe: Recipe | str, overrides: Sequence[str] = (), *, name: str | None = None, processes: int = 1
) -> Plan:
    """What a recipe would do.

    >>> print(plan("sample-two-teachers", ["seeds=[7]"]).text.splitlines()[-3])
    seeds 7; controls no-teacher, all-data, with the same seeds; logged to jsonl, tensorboard

    Args:
        recipe: A recipe, a file, or a built-in name.
        overrides: Changes ``key.path=value``, for a recipe given by name.
        name: The recipe's name in messages; default: the recipe's.
        processes: The number of processes that would train together.

    Raises:
        RecipeError: The recipe is invalid, or its batches cannot be shared evenly by the processes.
        MissingResourceError: No such recipe.
    """
    recipe, name = named_recipe(recipe, overrides, name)
    if faults := list(uneven_batches(recipe, processes)):
        raise RecipeError(name, faults)
    return Plan(name, recipe, processes)
