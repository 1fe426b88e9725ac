"""Registries as they were: for tests and examples that register something."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stlm_kd.adaptation.initialisers import INITIALISERS
from stlm_kd.data.sources.sources import DATA_SOURCES
from stlm_kd.eval import SUITES
from stlm_kd.interventions import SOURCES
from stlm_kd.losses import LOSSES, MAP_LOSSES, STATE_LOSSES
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.teachers.combination import COMBINERS

REGISTRIES = (LOSSES, STATE_LOSSES, MAP_LOSSES, SOURCES, COMBINERS, INITIALISERS, SUITES, DATA_SOURCES)


@contextmanager
def unchanged_registries() -> Iterator[None]:
    """Forget what is registered within the context, except by modules that are imported on first use."""
    tables = [(table, one._modules) for one in REGISTRIES for table in (one._rows, one._taken)]
    tables.append((ARCHITECTURES, {}))
    before = [set(table) for table, _ in tables]
    try:
        yield
    finally:
        for (table, later), known in zip(tables, before, strict=True):
            for name in set(table) - known - set(later):
                del table[name]
