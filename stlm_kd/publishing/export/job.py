"""A model to export, and how an export is compared with it.

Shapes: B texts, T tokens, V tokens of the vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.errors import ModelError
from stlm_kd.models.heads.classifiers import kind_of
from stlm_kd.models.positions import num_positions

_SHAPES = ((1, 1), (2, 7), (3, 33))
"""Texts and tokens of the compared batches."""

Run = Callable[[Tensor, Tensor], Tensor]
"""Ids and attention mask, each (B, T), → logits, (B, T, V) or (B, C)."""


@dataclass(frozen=True, slots=True)
class ExportJob:
    """A model to export.

    Attributes:
        name: Its folder or Hub id.
        model: The model, in evaluation mode on the CPU.
        tokenizer: Its tokenizer.
        dtype: Dtype of its weights in the export.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    dtype: str

    @torch.no_grad()
    def largest_difference(self, run: Run) -> float:
        """The largest difference of logits between the model and its export.

        It is relative to the largest logit, or to 1 if that is smaller; infinite if an export's logits are
        not finite. Random texts of several lengths are compared, in batches with padding.

        Raises:
            ModelError: The export gives logits of another shape.
        """
        differences = []
        classifies = kind_of(self.model.config) is not None
        for ids_BT, mask_BT in self._batches():
            expected = self.model(input_ids=ids_BT, attention_mask=mask_BT).logits
            found = run(ids_BT, mask_BT).float()
            if found.shape != expected.shape:
                raise ModelError(
                    f"{self.name}: the export gives logits of shape {list(found.shape)}, expected "
                    f"{list(expected.shape)}; this release of the library exports it wrongly, try another"
                )
            if not classifies:
                expected, found = expected[mask_BT.bool()], found[mask_BT.bool()]
            difference = float((expected - found).abs().max() / expected.abs().max().clamp_min(1))
            differences.append(difference if difference == difference else float("inf"))
        return max(differences)

    def _batches(self) -> list[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        padding = self.tokenizer.pad_token_id or 0
        positions = num_positions(self.model.config)
        batches = []
        for rows, length in _SHAPES:
            length = min(length, positions or length)
            ids_BT = torch.randint(len(self.tokenizer), (rows, length), generator=generator)
            mask_BT = torch.ones_like(ids_BT)
            mask_BT[1:, length - length // 3 :] = 0
            batches.append((ids_BT.where(mask_BT.bool(), padding), mask_BT))
        return batches
