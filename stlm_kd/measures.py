"""What a step measures that is no term of its loss: no weight, no gradient, and counted as it is measured."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Measure(NamedTuple):
    """A mean by its parts, scalars without a gradient: means of several micro-batches cannot be added up.

    It is named ``group/name``; what one group holds is drawn in one panel. A tuple, since engines look for
    tensors in tuples and dictionaries.
    """

    total: Tensor
    number: Tensor
