"""PyTorch and other libraries, imported when something of them is first used.

Recipes are checked against the signatures of losses, combiners and suites. Modules that define these take the
libraries from here, so that reading a signature costs no import of PyTorch. Type checkers read ``lazy.pyi``,
in which the names are the modules themselves.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class _Lazy(ModuleType):
    """A module by name, imported at the first access; what was accessed is kept."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)
        return value


nn = _Lazy("torch.nn")
torch = _Lazy("torch")
filelock = _Lazy("filelock")
functional = _Lazy("torch.nn.functional")
np = _Lazy("numpy")
special = _Lazy("scipy.special")
tokenizers = _Lazy("tokenizers")
