"""Teachers: live, precomputed or cached; their targets, and combinations of several teachers."""

from typing import Literal

Placement = Literal["replicate", "shard", "offload", "cpu"]
"""Where a live teacher's weights are: all on each process's device; divided over the processes; on the CPU
and on the device only while they are used; or on the CPU, where it also runs."""

COMBINED = "combined"
"""The name of the teachers' mixture, used like a teacher's name."""
