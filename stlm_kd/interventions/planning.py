"""The intervention of one optimizer step on one micro-batch, drawn before either model runs."""

from __future__ import annotations

from stlm_kd.data.labelled.batches import AnyBatch, on_cpu
from stlm_kd.interventions.draw import SourceInputs, SourceRequest, named_generator
from stlm_kd.interventions.plan import Plan, plan_of
from stlm_kd.interventions.sources import SOURCES
from stlm_kd.interventions.spec import Intervention


def draw_plan(
    intervention: Intervention,
    batch: AnyBatch,
    supplies: SourceInputs,
    *,
    index: int,
    steps: int,
    causal: bool,
) -> Plan:
    """What is exchanged in a micro-batch of optimizer step ``index`` of ``steps``, on the batch's device.

    It is drawn on the CPU, where the batch came from, and moved without waiting for the device. The layer is
    that of all micro-batches and processes of the step. Places are never on padding, and both
    ends of an exchange lie within one document each.

    Args:
        intervention: How.
        batch: The base.
        supplies: Seed, further rows, tokens.
        index: Counted from 0.
        steps: Of the training.
        causal: Whether earlier positions do not see later ones.

    Raises:
        DataError: A source is another row, and there is none.
    """
    readable = on_cpu(batch)
    draw = SourceRequest(intervention, readable, index, supplies)
    base, source = SOURCES[intervention.source](draw, **intervention.options)
    layer = layer_at(intervention, supplies.seed, index=index, steps=steps)
    return plan_of(intervention, layer, base, source, readable, causal=causal).to(batch.input_ids.device)


def layer_at(intervention: Intervention, seed: int, *, index: int, steps: int) -> int:
    """The student's layer of an optimizer step.

    ``top-down`` and ``bottom-up`` give each layer an equal share of the steps, as the few-shot study does.
    """
    layers = intervention.student_layers
    if intervention.layer_schedule == "random":
        return layers[int(named_generator(seed, intervention.name, index, "layer").integers(len(layers)))]
    place = min(index * len(layers) // steps, len(layers) - 1)
    return layers[place if intervention.layer_schedule == "bottom-up" else -1 - place]
