"""Examples in docstrings leave the registries as they were, in the package and behind its links."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def registries_of_examples(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forget what an example registers."""
    if not isinstance(request.node, pytest.DoctestItem):
        yield
        return
    from tests.support.registries import unchanged_registries

    with unchanged_registries():
        yield
