"""As many source passes in every process, for models whose weights are divided over the processes.

Whether a micro-batch needs further passes depends on its rows. A process that needs fewer passes than another
runs its own batch again and copies no position of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distributed import largest_of_all
from stlm_kd.interventions.plan import (
    Joined,
    Noise,
    OtherStates,
    OwnStates,
    Plan,
    Positions,
    Tokens,
    parts_of,
)


def equal_passes(plans: Mapping[str, Plan], batch: AnyBatch) -> dict[str, Plan]:
    """The plans with sources of as many passes in all processes, which must call this together."""
    counts = [_parts(plan, kind) for plan in plans.values() for kind in (OtherStates, OwnStates)]
    most = iter(largest_of_all(counts) if any(map(_runs_sources, plans.values())) else counts)
    return {name: _padded(plan, batch, others=next(most), own=next(most)) for name, plan in plans.items()}


def _runs_sources(plan: Plan) -> bool:
    """Whether the kind of source, the same in all processes, may need passes."""
    return not isinstance(plan.source, (Noise, Tokens))


def _parts(plan: Plan, kind: type[OtherStates | OwnStates]) -> int:
    if isinstance(plan.source, (Noise, Tokens)):
        return 0
    return sum(isinstance(part, kind) for part in parts_of(plan.source))


def _padded(plan: Plan, batch: AnyBatch, *, others: int, own: int) -> Plan:
    """The plan with so many sources of each kind; own states need a pass where dropout is drawn anew."""
    if isinstance(plan.source, (Noise, Tokens)):
        return plan
    nothing = Positions(plan.base.rows[:0], plan.base.positions[:0])
    more = [OtherStates(batch, nothing)] * (others - _parts(plan, OtherStates))
    again = [OwnStates(nothing)] * (own - _parts(plan, OwnStates))
    if not more and not again:
        return plan
    return replace(plan, source=Joined((*parts_of(plan.source), *more, *again)))
