"""A live teacher that reads its own tokens; its predictions are translated to the student's.

Shapes: B rows, T positions, S nodes of a row's tree.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import AnyBatch, on_cpu
from stlm_kd.errors import ModelError
from stlm_kd.models.forward import head_of, tree_inputs
from stlm_kd.models.outputs import ModelOutputs, OutputSpec, forward_with_outputs
from stlm_kd.models.positions import num_positions
from stlm_kd.teachers import Placement
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.protocol import TeacherOutput
from stlm_kd.teachers.translated_targets import Paths, Translated, stacked
from stlm_kd.vocabulary.translation import Translation


class TranslatedTeacher(LiveTeacher):
    """A causal language model that keeps its own vocabulary, and gives distributions over the student's.

    It reads the text of a row in each way that it may have read it at some position, as a tree of its tokens
    in one forward pass. It has no hidden states at the student's positions.

    Args:
        model: The teacher, which attends as a mask tells it (``capabilities.check_trees``).
        vocabulary: Size of its own tokenizer.
        translation: To the student's vocabulary.
        name, placement: As of ``LiveTeacher``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: int,
        translation: Translation,
        *,
        name: str = "",
        placement: Placement = "replicate",
    ) -> None:
        super().__init__(model, translation.vocabulary, name=name, placement=placement)
        self.translation = translation
        self._own = vocabulary
        self._paths: Paths | None = None

    @torch.no_grad()
    def __call__(self, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        """The distributions of a batch of packed text.

        Raises:
            ModelError: A row takes more positions of the teacher than it has.
        """
        assert isinstance(batch, Batch) and not (needs.sites or needs.maps), "refused with the recipe"
        device, here = batch.input_ids.device, on_cpu(batch)
        assert isinstance(here, Batch)
        rows = zip(here.input_ids.tolist(), here.document_ids.tolist(), strict=True)
        readings = [self.translation.read(ids, documents) for ids, documents in rows]
        inputs = tree_inputs([(one.tree.tokens, one.tree.parents) for one in readings], self.model)
        self._check_depth(inputs["position_ids"])
        with self._on(device) as place:
            inputs = {name: value.to(place) for name, value in inputs.items()}
            observed = forward_with_outputs(self.model, inputs, OutputSpec(head_input=True))
        hidden_BSD = observed.head_input
        assert hidden_BSD is not None
        covers = stacked([one.covers for one in readings], hidden_BSD.shape[1]).to(place)
        if self._paths is None or self._paths.starts.device != place:
            self._paths = Paths.of(self.translation.table, place)
        target = Translated(
            hidden_BSD.flatten(0, 1),
            head_of(self.model),
            self._own,
            self.translation.vocabulary,
            self._paths,
            covers,
            device,
        )
        return TeacherOutput(target, ModelOutputs())

    def _check_depth(self, position_ids: Tensor) -> None:
        needed, most = int(position_ids.max()) + 1, num_positions(self.model.config)
        if most is not None and needed > most:
            raise ModelError(
                f"teacher {self.name} needs {needed:,} positions for its own tokens of a row, but has "
                f"{most:,}; shorten data.context"
            )
