"""What the fork server of ``pipeline.workers`` imports once; its workers begin with it."""

from __future__ import annotations

import gc

import stlm_kd.pipeline.stages.score
import stlm_kd.pipeline.stages.students
import stlm_kd.pipeline.stages.teacher  # noqa: F401

gc.freeze()  # no collection visits these objects again, which would copy the memory that the workers share
