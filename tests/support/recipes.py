"""What tests of recipes share: what is wrong with a recipe, whatever way it was given."""

from __future__ import annotations

import re

import pytest

from stlm_kd.errors import RecipeError
from stlm_kd.recipe import load


def faults(file: str, *overrides: str) -> list[str]:
    """``place: message`` of every fault; the override that is to blame is left out of the place."""
    with pytest.raises(RecipeError) as caught:
        load(file, overrides)
    places = [re.split(r"=| \(", fault.place)[0] for fault in caught.value.faults]
    return [f"{place}: {fault.message}" for place, fault in zip(places, caught.value.faults, strict=True)]
