"""Draw the intervention of an optimizer step on one micro-batch, before student and teachers run."""

from __future__ import annotations

from stlm_kd.data.labelled.batches import AnyBatch, on_cpu
from stlm_kd.interventions.draw import SourceInputs, SourceRequest, named_generator
from stlm_kd.interventions.plan import Plan, affected
from stlm_kd.interventions.source import SOURCES
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
    """Draw the plan for a micro-batch of optimizer step ``index`` of ``steps``, on the batch's device.

    Drawn on the CPU and moved without synchronising with the device. All micro-batches and processes of a
    step use the same layer. Positions are never padding, and base and source positions each lie within one
    document.

    Args:
        intervention: The intervention.
        batch: The base batch.
        supplies: Seed, further rows, tokens.
        index: Optimizer step, from 0.
        steps: Number of optimizer steps.
        causal: Whether the model is causal.

    Raises:
        DataError: The source must be another row, and there is none.
    """
    readable = on_cpu(batch)
    draw = SourceRequest(intervention, readable, index, supplies)
    base, source = SOURCES[intervention.source](draw, **intervention.options)
    layer = layer_at(intervention, supplies.seed, index=index, steps=steps)
    plan = Plan(
        student_layer=layer,
        teacher_layers={name: layers[layer] for name, layers in intervention.layers.items()},
        source_site=intervention.source_site,
        base=base,
        source=source,
        touched=affected(base, readable, causal=causal),
        exact_dropout=intervention.exact_dropout,
    )
    return plan.to(batch.input_ids.device)


def layer_at(intervention: Intervention, seed: int, *, index: int, steps: int) -> int:
    """The student layer to overwrite in an optimizer step.

    ``top-down`` and ``bottom-up`` give each layer an equal share of the steps, as in the few-shot study.
    """
    layers = intervention.student_layers
    if intervention.layer_schedule == "random":
        return layers[int(named_generator(seed, intervention.name, index, "layer").integers(len(layers)))]
    place = min(index * len(layers) // steps, len(layers) - 1)
    return layers[place if intervention.layer_schedule == "bottom-up" else -1 - place]
