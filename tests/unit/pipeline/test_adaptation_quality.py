"""What an adaptation's validations may cost."""

from __future__ import annotations

import pytest

from stlm_kd.pipeline.stages.adaptation_quality import validation_rows


@pytest.mark.parametrize(
    ("tokens", "validations", "context", "expected"),
    [
        (20_000, 2, 256, 32),  # 2,000 positions would be a tenth: the fewest, 8,192 = 32 rows
        (10_000_000, 25, 512, 157),  # 25 x 80,000 forwards for 10M tokens at two forwards each; 156.25 rows
        (200_000_000, 123, 512, 636),  # 325,203 positions each
    ],
)
def test_validations_cost_a_tenth_of_training_or_what_the_fewest_positions_cost(
    tokens: int, validations: int, context: int, expected: int
) -> None:
    rows = validation_rows(tokens, validations, context)
    assert rows == expected
    assert rows * context == 8192 or validations * (rows - 1) * context <= 0.1 * 2 * tokens
