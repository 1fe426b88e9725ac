"""The teachers that a student is compared with: found, loaded, and layer-aligned per the recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.json_io import AGAIN, read_saved
from stlm_kd.artifacts.run_dir import model_of
from stlm_kd.data.tokenizers import load_tokenizer, same_vocabulary
from stlm_kd.errors import ModelError
from stlm_kd.eval.interchange.suite import AlignedTeacher
from stlm_kd.models.capabilities import require_paths
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.forward import head_of, task_of, vocabulary_head
from stlm_kd.models.heads.classifiers import class_names, load_classifier
from stlm_kd.models.layer_alignment import Alignment, aligned
from stlm_kd.models.load import load_config, load_language_model, to_device
from stlm_kd.pipeline.builders.interchange import interchange_teachers, layers_of
from stlm_kd.pipeline.builders.numbers import num_layers
from stlm_kd.pipeline.builders.objective import active_objectives
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.interchange import Interchange
from stlm_kd.training.processes import current_device
from stlm_kd.vocabulary.token_bytes import vocabulary_size

TEACHERS = "teachers.json"
"""File in a run folder with its (adapted) teachers by name; folders are relative to the run folder."""
_TEACHERS: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


@dataclass(frozen=True, slots=True)
class TeacherSet:
    """The teachers that a student is compared with: folders or Hub ids by name.

    The layer alignment is that of the recipe's objectives; ``full`` without a recipe.
    """

    teachers: Mapping[str, str]
    recipe: Recipe | None

    def taught(
        self, name: str, student: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, trust: bool
    ) -> dict[str, AlignedTeacher]:
        """Load the teachers; ``name`` is the student's in messages.

        Raises:
            ModelError: Vocabulary, classes or task differ, or the model family is unknown.
        """
        found = {}
        for one, place in self.teachers.items():
            check_vocabulary(name, tokenizer, one, load_tokenizer(place, trust_remote_code=trust))
            if vocabulary_head(student) is None:
                teacher = load_classifier(
                    place, class_names(student.config), tokenizer=tokenizer, trust_remote_code=trust
                )
                to_device(teacher, current_device())
            else:
                teacher = load_for_exchange(place, tokenizer, trust)
                if task_of(teacher) != task_of(student):
                    raise ModelError(
                        f"{name} and {one}: one predicts the next token and the other masked ones; "
                        "compare models of one task"
                    )
            check_family(name, student.config)
            check_family(one, teacher.config)
            found[one] = AlignedTeacher(teacher, self._aligned(one, student.config, teacher.config))
        return found

    def layers(self, teacher: str, student: str, trust: bool) -> Alignment:
        """A teacher's layers aligned with each layer of the student."""
        configs = (load_config(model, trust_remote_code=trust) for model in (student, self.teachers[teacher]))
        return self._aligned(teacher, *configs)

    def _aligned(self, teacher: str, student: PretrainedConfig, config: PretrainedConfig) -> Alignment:
        """The alignment of the first intervention objective that uses this teacher."""
        for entry in active_objectives(self.recipe).values() if self.recipe is not None else ():
            assert self.recipe is not None
            if isinstance(entry, Interchange) and teacher in interchange_teachers(entry, self.recipe):
                return layers_of(entry, teacher, student, config)
        return aligned("full", num_layers(student), num_layers(config))


def remember_teachers(run: Path, teachers: Mapping[str, str]) -> None:
    """Save a run's teachers."""
    saved = {
        name: os.path.relpath(model, run) if Path(model).is_dir() else model
        for name, model in teachers.items()
    }
    write_json(run / TEACHERS, saved)


def teachers_of_run(run: Path) -> dict[str, str]:
    """Read a run's saved teachers; empty if there are none."""
    if not os.path.lexists(run / TEACHERS):
        return {}
    saved = read_saved(run / TEACHERS, _TEACHERS, remedy=AGAIN)
    return {
        name: str((run / model).resolve()) if os.path.isdir(run / model) else model  # noqa: PTH112  # long names
        for name, model in saved.items()
    }


def shared_tokenizer(names: Sequence[str], *, trust: bool) -> PreTrainedTokenizerFast:
    """The tokenizer that all models share; ModelError if their vocabularies differ."""
    first, *others = names
    tokenizer = load_tokenizer(model_of(first), trust_remote_code=trust)
    for name in others:
        check_vocabulary(first, tokenizer, name, load_tokenizer(model_of(name), trust_remote_code=trust))
    return tokenizer


def check_vocabulary(
    name: str, tokenizer: PreTrainedTokenizerFast, other: str, theirs: PreTrainedTokenizerFast
) -> None:
    """Raise an error for models with different vocabularies."""
    if not same_vocabulary(tokenizer, theirs):
        raise ModelError(
            f"{name} and {other} have different vocabularies, so their outputs cannot be compared; "
            "adapt the teacher to the student's tokenizer first: stlm-kd adapt-teacher"
        )


def load_for_exchange(name: str, tokenizer: PreTrainedTokenizerFast, trust: bool) -> PreTrainedModel:
    """Load a language model with this tokenizer that supports interchange interventions."""
    model = load_language_model(model_of(name), None, trust_remote_code=trust)
    check_family(name, model.config)
    size, needed = head_of(model).size, vocabulary_size(tokenizer)
    if size < needed:
        raise ModelError(
            f"{name}: the tokenizer has ids up to {needed - 1}, but the model has a vocabulary of {size}; "
            "give the model the tokenizer that it was trained with"
        )
    to_device(model, current_device())
    require_paths(model, {"blocks"}, name=name)
    return model


def check_family(name: str, config: PretrainedConfig) -> None:
    """Raise an error for an unknown model family."""
    if config.model_type not in ARCHITECTURES:
        raise ModelError(
            f"{name}: interchange does not support the model type {config.model_type}; supported: "
            f"{', '.join(ARCHITECTURES)}"
        )
