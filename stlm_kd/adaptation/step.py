"""Training steps of vocabulary adaptation: only the new rows are trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Self

from stlm_kd.adaptation.span_distillation import SpanTeacher
from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions import Plan
from stlm_kd.losses import LABELS
from stlm_kd.losses.spans import log_likelihoods, span_agreement, span_sums
from stlm_kd.models.forward import head_of, last_hidden
from stlm_kd.training.protocols import StepOutput

SPANS = "spans"
"""The self-distillation term: agreement with the original teacher on text spans."""


class AdaptationStep(DistillationStep):
    """Trains the new rows of a model with a frozen body, without dropout, as when it is used as a teacher."""

    trained = "the adapted teacher"

    def train(self, mode: bool = True) -> Self:
        """Set training mode, but keep the model in evaluation mode."""
        super().train(mode)
        self.student.eval()
        return self


class SpanStep(AdaptationStep):
    """Adds self-distillation of span likelihoods from the teacher with its original vocabulary.

    Both terms share one projection: ``labels`` is the negative log-likelihood of each token, and a span's
    log-likelihood is the sum over its tokens. ``weights`` are those of ``labels`` and ``SPANS``.
    """

    def __init__(self, model: PreTrainedModel, teacher: SpanTeacher, weights: Mapping[str, float]) -> None:
        super().__init__(model, [Term(LABELS, LABELS, weight=weights.get(LABELS, 0.0))])
        self._teacher = teacher
        self._weights = dict(weights)

    def count(self, batch: AnyBatch | Mapping[str, Tensor]) -> dict[str, int]:
        counts = super().count(batch)
        if not self.training:
            return counts
        assert isinstance(batch, Batch)
        return {**counts, SPANS: self._teacher.spans(batch.example_ids).count}

    def forward(
        self,
        batch: AnyBatch | Mapping[str, Tensor],
        denominators: Mapping[str, float] | None = None,
        plans: Mapping[str, Plan] | None = None,
    ) -> StepOutput:
        if not self.training:
            return super().forward(batch, denominators, plans)
        assert isinstance(batch, Batch) and denominators is not None
        sums = self._sums(batch)
        shares = {name: self._weights.get(name, 0.0) / max(denominators[name], 1.0) for name in sums}
        loss = torch.stack([shares[name] * value for name, value in sums.items()]).sum()
        return StepOutput(loss, {name: value.detach().double() for name, value in sums.items()})

    def _sums(self, batch: Batch) -> dict[str, Tensor]:
        predicts = batch.labels != IGNORED
        head, spans = head_of(self.student), self._teacher.spans(batch.example_ids)
        likelihoods_N = log_likelihoods(
            last_hidden(self.student, batch)[predicts], head.weight, head.bias, batch.labels[predicts]
        )
        of_N = spans.span_of_label.to(likelihoods_N.device)[predicts]
        own_S = span_sums(likelihoods_N, of_N, spans.count)
        target_S = self._teacher.log_probabilities(batch.example_ids)
        return {LABELS: -likelihoods_N.sum(), SPANS: span_agreement(own_S, target_S).sum()}
