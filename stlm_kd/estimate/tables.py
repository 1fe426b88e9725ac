"""An estimate as tables; each title says how its figures were found."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.table import Table

from stlm_kd.estimate.communication import sent_bytes
from stlm_kd.estimate.devices import DEVICES, GIB, cpu
from stlm_kd.estimate.measured import summary
from stlm_kd.estimate.memory import Memory
from stlm_kd.estimate.result import DeviceSpeed, Estimate
from stlm_kd.reporting.format import UNKNOWN, cell, count, flops, noted_table, numbers, words

_AS_IT_IS = "as in the recipe"


def tables_of(found: Estimate) -> list[Table]:
    """Models, FLOPs, memory, memory by ZeRO stage, operations, speed, caches, and what a run measured."""
    made = [
        _models(found),
        _flops(found),
        _settings(found),
        _stages(found),
        _collectives(found),
        *_speeds(found),
    ]
    if found.caches:
        made.append(_caches(found))
    return [*made, _break_even(found)] if found.break_even else made


def _models(found: Estimate) -> Table:
    steps, tokens = count(found.steps), count(found.tokens)
    per_step = found.rows * found.length
    note = (
        f"a step: {found.rows:,} rows of {found.length:,} positions = {per_step:,}; "
        f"steps {steps}, positions of all steps {tokens}"
    )
    columns = numbers("parameters", "embedding and head", "share", "weights")
    table = noted_table([note], *words("model"), *columns, *words("in training"), title="Models: counted")
    for one in found.models:
        share = f"{one.embedding / one.parameters:.0%}"
        table.add_row(
            cell(one.name), count(one.parameters), count(one.embedding), share, _gib(one.num_bytes), one.place
        )
    return table


def _flops(found: Estimate) -> Table:
    total = sum(found.flops.values())
    whole = None if found.steps is None else round(total * found.steps)
    position = round(total / found.rows / found.length)
    note = f"a step {flops(round(total))}, a position {flops(position)}, all steps {flops(whole)}"
    table = noted_table(
        [note], *words("part"), *numbers("FLOPs a step", "share"), title="FLOPs of matrix products: counted"
    )
    for part, number in found.flops.items():
        table.add_row(cell(part), flops(round(number)), f"{number / total:.1%}")
    return table


def _settings(found: Estimate) -> Table:
    title = f"GiB on one device, a micro-batch of {found.micro_batch:,} rows: counted"
    parts = ("weights", "gradients", "optimizer", "teachers", "activations", "losses and other", "peak")
    table = noted_table(found.notes, *words("precision"), *numbers(*parts), title=title)
    for label, memory in found.settings.items():
        held = (memory.weights, memory.gradients, memory.optimizer, memory.teachers)
        table.add_row(label, *map(_gib, (*held, memory.activations, memory.working, memory.peak)))
    return table


def _stages(found: Estimate) -> Table:
    gpus = list(dict.fromkeys(memory.gpus for memory in found.memory))
    table = noted_table(
        ["0 is DDP; all live teachers placed alike, or each as in the recipe"],
        *words("ZeRO stage", "teachers"),
        *numbers(*(f"{number:,} device{'s' * (number > 1)}" for number in gpus)),
        title="GiB at the peak on each device, as the recipe has it: counted",
    )
    rows: dict[tuple[int, str], list[Memory]] = {}
    for memory in found.memory:
        rows.setdefault((memory.zero, memory.placement or _AS_IT_IS), []).append(memory)
    for (zero, placement), memories in rows.items():
        table.add_row(str(zero), placement, *(_gib(memory.peak) for memory in memories))
    return table


def _collectives(found: Estimate) -> Table:
    micro_batches = math.ceil(found.rows / found.micro_batch)
    sent = {zero: sent_bytes(operations, 8) for zero, operations in found.collectives.items()}
    notes = [
        f"a step of {micro_batches:,} micro-batch{'es' * (micro_batches > 1)} on each device; "
        "sent: by each of 8, by rings",
        "stages 1 to 3 divide memory and the optimizer's update, not the other work",
    ]
    if min(sent.values()) == sent[0]:
        notes.append("no stage sends less than DDP, which is the choice for students that fit")
    title = "Collective operations of a step: counted"
    columns = numbers("sent MB", "of DDP's")
    table = noted_table(notes, *words("ZeRO stage", "operations"), *columns, title=title)
    for zero, operations in found.collectives.items():
        shown = "; ".join(f"{one.times:,} x {one.kind} of {one.of}" for one in operations)
        table.add_row(str(zero), shown, f"{sent[zero] / 1e6:,.1f}", f"{sent[zero] / sent[0]:.1f} x")
    return table


def _speeds(found: Estimate) -> Iterator[Table]:
    how = "given" if found.is_efficiency_given else "assumed"
    notes = [
        f"time: FLOPs and traffic over published limits, over an efficiency of {found.efficiency:g} ({how})",
        "strong: the recipe's rows shared by all devices; weak: its rows on each",
        "sent: by each device in a step; not overlapped with work",
    ]
    columns = numbers("devices", "rows", "tokens/s", "hours", "sent MB")
    table = noted_table(
        notes, *words("device", "scaling"), *columns, *words("bound by", "fits"), title="Speed: calculated"
    )
    for one in found.speeds:
        speed = one.speed
        hours = UNKNOWN if one.hours is None else f"{one.hours:,.2f}"
        pace = f"{one.tokens_per_second:,.0f}"
        sent = f"{speed.sent / 1e6:,.0f}"
        row = (str(speed.gpus), count(speed.rows), pace, hours, sent, speed.bound, fit_of(one))
        table.add_row(one.device, speed.scaling if speed.gpus > 1 else UNKNOWN, *row)
    yield table


def fit_of(one: DeviceSpeed) -> str:
    """Whether it fits, and what would."""
    device = DEVICES.get(one.device) or cpu()
    of = f"{_gib(one.memory.peak)} of {_gib(device.usable)} GiB"
    if one.fits:
        return f"yes, {of}"
    cure = "a shorter data.context, or train.gradient_checkpointing=true"
    if one.memory.teachers:
        cure = "teachers in bf16, sharded, offloaded or cached"
    if one.rows_that_fit:
        cure = f"train.micro_batch={one.rows_that_fit:,}"
    return f"no, {of}; try {cure}"


def _caches(found: Estimate) -> Table:
    names = list(dict.fromkeys(speed.device for speed in found.speeds))
    heads = (f"{name}: pays after" for name in names)
    table = noted_table(
        ["pays after so many epochs or students over one text, all teachers cached together"],
        *words("teacher"),
        *numbers("bytes a position", "size", *heads),
        title="Cached outputs: size counted, time calculated",
    )
    for one in found.caches:
        if one.refused is not None:
            table.add_row(cell(one.teacher), UNKNOWN, UNKNOWN, *[UNKNOWN] * len(names))
            continue
        size = UNKNOWN if one.num_bytes is None else f"{one.num_bytes / 1e9:,.2f} GB"
        after = ((one.break_even or {}).get(name) for name in names)
        shown = ("never" if number is None else f"{number:.2f} epochs" for number in after)
        table.add_row(cell(one.teacher), count(one.token_bytes), size, *shown)
    refused = [f"{one.teacher}: not cached: {one.refused}" for one in found.caches if one.refused]
    if refused:
        table.caption = cell("\n".join(refused), "table.caption")
    return table


def _break_even(found: Estimate) -> Table:
    table = noted_table(
        [summary(found.break_even)],
        *words("seed"),
        *numbers("FLOPs", "better from", "loss", "control's loss"),
        title="The student against its control at equal compute: measured in this run",
    )
    for one in found.break_even:
        after = "never" if one.after is None else f"{one.after / one.flops:.0%}"
        losses = (f"{one.loss:.3f}", f"{one.control_loss:.3f}")
        table.add_row(str(one.seed), flops(round(one.flops)), after, *losses)
    return table


def _gib(num_bytes: int) -> str:
    size = num_bytes / GIB
    return f"{size:,.2f}" if size >= 0.1 else f"{size:.4f}"
