"""From a recipe's teachers to folders that are ready to teach in the student's vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import load_tokenizer, same_vocabulary
from stlm_kd.errors import Fault, RecipeError
from stlm_kd.models.load import load_config
from stlm_kd.models.presets import PRESETS
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema import Teacher
from stlm_kd.run.adapting import adapt_model, adaptation_key
from stlm_kd.run.text import student_tokenizer
from stlm_kd.run.training import train_student, training_key
from stlm_kd.run.workshop import Workshop


@dataclass(frozen=True, slots=True)
class ReadyTeacher:
    """A teacher that can be asked.

    Attributes:
        name: In the recipe.
        original: Folder or Hub id before adaptation.
        training: The folder of the training that made it; None for a model that was there.
        adaptation: The folder of its adaptation; None where it has the student's vocabulary already.
    """

    name: str
    original: str
    training: Path | None
    adaptation: Path | None

    @property
    def model(self) -> str:
        """What to load."""
        return self.original if self.adaptation is None else str(self.adaptation / "model")


def check_teachers(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, workshop: Workshop, *, origin: str
) -> None:
    """Refuse, before anything is trained, teachers that cannot teach this student.

    Raises:
        RecipeError: All that is wrong: a vocabulary that differs without ``adapt``, too few positions.
    """
    faults: list[Fault] = []
    for index, teacher in enumerate(recipe.teachers):
        place = f"teachers[{index}] ({teacher.name})"
        positions = _positions(teacher, workshop)
        if positions is not None and positions < recipe.data.context:
            message = f"it has {positions} positions, but data.context is {recipe.data.context}; shorten it"
            faults.append(Fault(place, message))
        if teacher.adapt is None:
            own = teacher_tokenizer(teacher, workshop)
            if own is not None and not same_vocabulary(own, tokenizer):
                message = (
                    f"its vocabulary ({len(own)} tokens) is not the student's ({len(tokenizer)} tokens): "
                    "ids mean different tokens; add adapt: {}, or give the student the teacher's tokenizer"
                )
                faults.append(Fault(place, message))
    if faults:
        raise RecipeError(origin, faults)


def ready_teacher(
    recipe: Recipe, teacher: Teacher, tokenizer: PreTrainedTokenizerFast, workshop: Workshop
) -> ReadyTeacher:
    """The teacher, trained by its recipe and adapted if the recipe says so; made stages are reused."""
    training = _trained(teacher.recipe, workshop) if teacher.recipe is not None else None
    original = str(training / "model") if training is not None else teacher.model
    assert original is not None
    if teacher.adapt is None:
        return ReadyTeacher(teacher.name, original, training, None)
    adapt = teacher.adapt

    def build(folder: Path) -> None:
        adapt_model(recipe, adapt, original, tokenizer, name=teacher.name, folder=folder, workshop=workshop)

    key = adaptation_key(recipe, adapt, original, tokenizer)
    return ReadyTeacher(teacher.name, original, training, workshop.stages.make("adapted", key, build))


def teacher_tokenizer(teacher: Teacher, workshop: Workshop) -> PreTrainedTokenizerFast | None:
    """The teacher's own tokenizer."""
    if teacher.recipe is not None:
        return student_tokenizer(teacher.recipe, workshop)
    assert teacher.model is not None
    return load_tokenizer(teacher.model, trust_remote_code=workshop.trust_remote_code)


def _trained(recipe: Recipe, workshop: Workshop) -> Path:
    """What a teacher's own recipe trains, with the first of its seeds."""
    tokenizer = student_tokenizer(recipe, workshop)
    check_teachers(recipe, tokenizer, workshop, origin="a teacher's recipe")
    teachers = {t.name: ready_teacher(recipe, t, tokenizer, workshop).model for t in recipe.teachers}
    seed = recipe.seeds[0]

    def build(folder: Path) -> None:
        train_student(
            recipe, "student", seed, teachers=teachers, tokenizer=tokenizer, folder=folder, workshop=workshop
        )

    return workshop.stages.make("model", training_key(recipe, "student", seed, teachers), build)


def _positions(teacher: Teacher, workshop: Workshop) -> int | None:
    """How long a text the teacher can read; None where its configuration does not say."""
    if teacher.model is not None:
        config = load_config(teacher.model, trust_remote_code=workshop.trust_remote_code)
        value = getattr(config, "max_position_embeddings", None)
        return value if isinstance(value, int) else None
    assert teacher.recipe is not None
    student, context = teacher.recipe.student, teacher.recipe.data.context
    fields = PRESETS[student.preset] if student.preset is not None else student.architecture
    if fields is None:
        return None
    return max(int(fields.get("max_position_embeddings", 0)), context)
