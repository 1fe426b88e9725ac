"""What a recipe would do, and what it lacks here, without running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault, first_of
from stlm_kd.pipeline.checks.data_sets import mirrors_read
from stlm_kd.pipeline.checks.requirements import gguf_models, missing_here
from stlm_kd.recipe import Recipe, named_recipe, recipe_hash
from stlm_kd.recipe.describe import describe
from stlm_kd.recipe.validation.recipe import uneven_batches


@dataclass(frozen=True, slots=True)
class Plan:
    """What running a recipe means.

    Attributes:
        name: That of its runs.
        recipe: The recipe.
        processes: The number of processes that train together, and
        on_node: of those on this node.
        adapting: Whether only teachers are adapted, as by ``adapt_teacher``.
    """

    name: str
    recipe: Recipe
    processes: int = 1
    on_node: int = 1
    adapting: bool = False

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
        return "\n".join([describe(self.recipe, adapting=self.adapting), *here, *gguf_models(self.recipe)])

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

    def require_room(
        self,
        *,
        output_dir: str | PathLike[str] = "runs",
        resume: bool = True,
        trust_remote_code: bool = False,
        teacher: str | None = None,
    ) -> None:
        """Raise RecipeError if a teacher lacks room on this machine, as a run would. Makes nothing.

        Teachers need no room where all outputs are cached or nothing is left to train. Loads no weights.

        Args:
            output_dir: Contains the runs and their shared stages.
            resume: Whether the run would resume unfinished work.
            trust_remote_code: Whether to build models by code shipped with them.
            teacher: The one that would be adapted, or None for all.
        """
        from stlm_kd.pipeline.checks.fitting import check_planned_room, is_prepared
        from stlm_kd.pipeline.checks.room import room_here
        from stlm_kd.pipeline.context import RecipeSetup, context_for
        from stlm_kd.pipeline.recording import folder_of
        from stlm_kd.pipeline.stages.students import has_folders, is_trained

        recipe, folder = self.recipe, Path(output_dir)
        run = folder_of(recipe, name=self.name, output_dir=folder)

        def is_finished(setup: RecipeSetup | None) -> bool:
            if not self.adapting:
                return has_folders(recipe, run) if setup is None else is_trained(setup, run)
            adapted = (one for one in recipe.teachers if one.adapt and teacher in (None, one.name))
            return setup is not None and all(is_prepared(one, setup) for one in adapted)

        context = context_for(recipe, folder, resume=resume, trust_remote_code=trust_remote_code, run_name="")
        room = replace(room_here(), processes=self.processes, local=self.on_node)
        check_planned_room(recipe, context, self.name, is_finished, room)


def plan(
    recipe: Recipe | str,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    processes: int = 1,
    on_node: int | None = None,
    adapting: bool = False,
) -> Plan:
    """What a recipe would do.

    >>> print(plan("sample-two-teachers", ["seeds=[7]"]).text.splitlines()[-3])
    seeds 7; controls no-teacher, all-data, with the same seeds; logged to jsonl, tensorboard

    Args:
        recipe: A recipe, a file, or a built-in name.
        overrides: Changes ``key.path=value``, for a recipe given by name.
        name: The recipe's name in messages; default: the recipe's.
        processes: The number of processes that would train together.
        on_node: The number of those on this node; default: all.
        adapting: Whether only teachers would be adapted, as by ``adapt_teacher``.

    Raises:
        RecipeError: The recipe is invalid, or its batches cannot be shared evenly by the processes.
        MissingResourceError: No such recipe.
    """
    recipe, name = named_recipe(recipe, overrides, name)
    if faults := list(uneven_batches(recipe, processes)):
        raise RecipeError(name, faults)
    return Plan(name, recipe, processes, processes if on_node is None else on_node, adapting)
