"""What the random tests look for, they find."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from stlm_kd.errors import DataError, RecipeError, RecipeFault, UsageError
from tests.support import mutations


def failing(error: BaseException) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "found"),
    [
        (failing(KeyError("x")), "KeyError"),
        (failing(SystemExit(3)), "SystemExit"),
        (lambda: time.sleep(9), "Hung"),
        (failing(DataError("it does not work")), "no place"),
        (failing(UsageError(f"a: {'x' * 2000}")), "a line of"),
        (failing(UsageError("a: b\n" * 40)), "40 lines"),
        (failing(RecipeError("r.yaml", [])), "no origin or no fault"),
        (failing(RecipeError("r.yaml", [RecipeFault("a", " ")])), "an empty fault"),
        (lambda: 1, None),
        (failing(DataError("a.txt:3: not UTF-8; convert it")), None),
        (failing(RecipeError("r.yaml", [RecipeFault("a", "b")] * 500)), None),
    ],
)
def test_a_wrong_answer_is_seen(
    work: Callable[[], object], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutations, "LONGEST_S", 0.1)
    wrong = mutations.wrong_answers(lambda number: ("given", work), 7, 8)
    if found is None:
        assert wrong == []
    else:
        assert len(wrong) == 1
        assert found in wrong[0]
        assert wrong[0].startswith("case 7: ")
