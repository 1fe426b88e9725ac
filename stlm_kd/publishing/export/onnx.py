"""Write a language model or classifier as ONNX, with its tokenizer, into a folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stlm_kd.errors import ModelError
from stlm_kd.publishing.export.job import ExportJob

FILE = "model.onnx"
_INPUTS = ("input_ids", "attention_mask")
_MAX_INLINE_BYTES = 1 << 30
"""Larger weights lie beside the file, since a protobuf has at most 2 GiB."""


class _Logits(nn.Module):
    """The model's logits, (B, T, V) or (B, C), from ids and attention mask, (B, T)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).logits
        return logits


def write_onnx(path: Path, job: ExportJob) -> None:
    """Write ``model.onnx``, config.json and the tokenizer's files into a new folder.

    Raises:
        ModelError: torch cannot export the model.
    """
    path.mkdir()
    ids = torch.zeros(2, 8, dtype=torch.int64)
    size = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    weights = sum(weight.numel() * weight.element_size() for weight in job.model.parameters())
    with _quietly():
        try:
            torch.onnx.export(
                _Logits(job.model),
                kwargs=dict(zip(_INPUTS, (ids, torch.ones_like(ids)), strict=True)),
                f=path / FILE,
                input_names=_INPUTS,
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(_INPUTS, size),
                dynamo=True,
                external_data=weights > _MAX_INLINE_BYTES,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ModelError(
                f"{job.name}: torch {torch.__version__} cannot export this {job.model.config.model_type} to "
                f"onnx ({reason}); try another release of torch, or export it to gguf"
            ) from error
    job.model.config.save_pretrained(path)
    job.tokenizer.save_pretrained(path)


def check_onnx(path: Path, job: ExportJob) -> float:
    """Run the file by ONNX Runtime and return the largest difference of logits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path / FILE, providers=["CPUExecutionProvider"])

    def run(ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        inputs = dict(zip(_INPUTS, (ids_BT.numpy(), mask_BT.numpy()), strict=True))
        return torch.from_numpy(session.run(["logits"], inputs)[0])

    return job.largest_difference(run)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter's warnings of what it decides itself, and of a missing torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
