"""Untrained models for the rehearsal: the student, and small stand-ins for the teachers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import torch
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stlm_kd.models.checkpoints.generation_config import mend_generation_config
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.vocabulary import (
    is_tied,
    plain_embedding,
    replace_embedding,
    replace_vocabulary,
    set_padding,
    vocabulary_layers,
)
from stlm_kd.pipeline.builders.numbers import num_layers, width
from stlm_kd.pipeline.builders.untrained import untrained_model, with_rows
from stlm_kd.pipeline.checks.validate import student_config, teacher_config
from stlm_kd.pipeline.context import RecipeSetup
from stlm_kd.pipeline.stages.student import initial_student
from stlm_kd.pipeline.stages.student_job import StudentJob
from stlm_kd.pipeline.stages.tokenizer import own_tokenizer
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.sharing.pins import local_folder
from stlm_kd.vocabulary.token_bytes import vocabulary_size

LAYERS = 2  # blocks of a stand-in; two, since some families share weights between blocks

LARGEST = 2**28  # maximum parameters in a stand-in's embedding and head: 1 GiB

_FEW_ROWS = 16


def untrained_student(setup: RecipeSetup) -> PreTrainedModel:
    """The recipe's student; with random weights if it starts from a teacher, which may not exist yet."""
    recipe = setup.recipe
    if recipe.student.init_from is None:
        student = initial_student(StudentJob.of(setup, "student", recipe.seeds[0], {}))
        student.eval()
        return student
    (source,) = (t for t in recipe.teachers if t.name == recipe.student.init_from.teacher)
    config = deepcopy(student_config(recipe, setup.context))
    if source.adapt is not None:
        return _with_rows_for(setup.tokenizer, untrained_model(with_rows(config, _FEW_ROWS), setup))
    return _build(config, setup)


def stand_in(teacher: Teacher, setup: RecipeSetup) -> tuple[PreTrainedModel, PreTrainedTokenizerFast] | None:
    """A stand-in for the unadapted teacher, and its tokenizer; None if too large or of an unknown family."""
    config = _truncate(teacher_config(teacher, setup.context))
    if config is None:
        return None
    own = replace(setup, tokenizer=own_tokenizer(teacher, setup.context))
    return _build(config, own), own.tokenizer


def adapted_stand_in(
    teacher: Teacher, setup: RecipeSetup
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast] | None:
    """A stand-in for the adapted teacher, and the student's tokenizer; None if too large or unknown."""
    config = _truncate(teacher_config(teacher, setup.context), rows=vocabulary_size(setup.tokenizer))
    if config is None:
        return None
    model = untrained_model(with_rows(config, _FEW_ROWS), setup)
    if teacher.model is not None and model.can_generate():
        _take_generation_config(model, teacher.model)
    return _with_rows_for(setup.tokenizer, model), setup.tokenizer


def _truncate(config: PretrainedConfig, *, rows: int | None = None) -> PretrainedConfig | None:
    """The configuration with fewer blocks; None for an unknown family, or if its vocabulary is too large."""
    if config.model_type not in ARCHITECTURES:
        return None
    rows = int(config.get_text_config().vocab_size) if rows is None else rows
    if rows * width(config) * (1 if config.tie_word_embeddings else 2) > LARGEST:
        return None
    config = deepcopy(config)
    text, layers = config.get_text_config(), num_layers(config)
    text.num_hidden_layers = min(LAYERS, layers)
    for name, value in list(vars(text).items()):
        if "layer" in name and isinstance(value, list) and len(value) == layers:
            setattr(text, name, value[: text.num_hidden_layers])
    return config


def _build(config: PretrainedConfig, setup: RecipeSetup) -> PreTrainedModel:
    model = untrained_model(config, setup)
    if setup.recipe.language_task is None:
        set_padding(model, setup.tokenizer)
    return model


def _with_rows_for(tokenizer: PreTrainedTokenizerFast, model: PreTrainedModel) -> PreTrainedModel:
    """Install a random embedding and head for the tokenizer, as adaptation does."""
    size = vocabulary_size(tokenizer)
    old = plain_embedding(model)
    rows_VD = 0.02 * torch.randn(size, old.embedding_dim)
    if model.get_output_embeddings() is None:
        replace_embedding(model, rows_VD, tokenizer=tokenizer)
        return model
    _, head = vocabulary_layers(model)
    bias_V = None if head.bias is None else torch.zeros(size)
    replace_vocabulary(model, rows_VD, None if is_tied(model) else rows_VD, bias_V, tokenizer=tokenizer)
    return model


def _take_generation_config(model: PreTrainedModel, name: str) -> None:
    """Set the generation configuration of the teacher's checkpoint, corrected as on loading."""
    try:
        folder = local_folder(name, weights=False)
        model.generation_config = GenerationConfig.from_pretrained(folder)  # nosec B615
    except OSError:
        return  # the checkpoint has none
    mend_generation_config(model, place=name)
