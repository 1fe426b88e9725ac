"""What is written to stderr while it is held, and who keeps a stream that stood for it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

import pytest

from stlm_kd.held_output import stderr_held

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="held on Linux only")


@pytest.fixture
def own_stderr(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """The interpreter's stderr, in place of pytest's."""
    with os.fdopen(os.dup(2), "w", buffering=1) as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "__stderr__", stream)
        patch.setattr(sys, "stderr", stream)
        yield


@pytest.mark.usefixtures("own_stderr")
def test_a_handler_that_was_made_within_works_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("held")
    with stderr_held():
        handler = logging.StreamHandler()
        logger.addHandler(handler)
        logger.error("within")
    logger.error("after")
    logger.removeHandler(handler)
    assert capfd.readouterr().err == "within\nafter\n"


def test_lines_of_a_library_are_shown_if_nothing_fails_and_else_are_a_note(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)  # some builds of Python lack it
    with stderr_held():
        os.write(2, b"a line\n")
    assert capfd.readouterr().err == "a line\n"
    with stderr_held() as explained:
        os.write(2, b"another\n")
        explained.append(ValueError("x"))
    assert capfd.readouterr().err == ""
    assert sys.version_info < (3, 11) or explained[0].__notes__ == ["another\n"]
