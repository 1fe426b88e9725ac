"""Memory and traffic of real code on tensors without storage.

Fake tensors have shapes and dtypes but no values. Code runs on them as on real ones: autocast, autograd,
gradient checkpointing and the choice of attention kernels are PyTorch's own.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_PRODUCTS = (
    _aten.mm,
    _aten.addmm,
    _aten.addmm_,
    _aten.bmm,
    _aten.baddbmm,
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward,
)
"""Operations whose time is that of their arithmetic; all others are limited by memory traffic."""

_READ_IN_PART = (_aten.embedding, _aten.index, _aten.index_select, _aten.gather)
"""Operations that read of their first argument no more than they write."""


def without_storage() -> FakeTensorMode:
    """A context in which new tensors have no storage; they may be used with real ones."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True, slots=True)
class Peak:
    """The most bytes alive at once, and those of accumulated gradients among them."""

    num_bytes: int
    gradients: int


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Within the context: the bytes of fake tensors that are alive, and those moved.

    Attributes:
        live: Bytes of the tensors that were made in the context and are still alive.
        peaks: The maximum of ``live`` during each set of activities (see ``during``), such as none.
        moved: Bytes read and written by operations other than matrix products.
        launches: Number of operations that compute.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.live = self.moved = self.launches = 0
        self.peaks = {frozenset[Hashable](): Peak(0, 0)}
        self._activities = frozenset[Hashable]()
        self._grads = 0
        self._known: set[int] = set()
        self._with_grad: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*_with_indices(func, args), **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(found) if isinstance(leaf, FakeTensor)]
        if not outputs or _is_view(func):
            return found
        if not _is_in_place(func):
            for tensor in outputs:
                self._see(tensor)
        self.launches += 1
        if func.overloadpacket not in _PRODUCTS:
            inputs = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, FakeTensor)]
            written = sum(map(_num_bytes, outputs))
            read = written if func.overloadpacket in _READ_IN_PART else sum(map(_num_bytes, inputs))
            self.moved += written + read
        return found

    @property
    def peak(self) -> Peak:
        """The maximum of ``live``, and the bytes of parameters' gradients (``watch_gradients``) within it."""
        return max(self.peaks.values(), key=lambda peak: peak.num_bytes)

    @contextmanager
    def during(self, activity: Hashable) -> Iterator[None]:
        """Note the peak within the context apart, since something else is alive there."""
        before = self._activities
        self._activities = before | {activity}
        self._add(0)
        try:
            yield
        finally:
            self._activities = before

    def watch_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Know the gradients of these parameters apart from other tensors, once they are accumulated."""
        for weight in parameters:
            if weight.grad is not None:
                self._note_gradient(weight)
            hook = weight.register_post_accumulate_grad_hook
            hook(self._note_gradient)  # type: ignore[no-untyped-call]  # likewise

    def _note_gradient(self, weight: Tensor) -> None:
        assert weight.grad is not None
        if id(weight) not in self._with_grad:
            self._with_grad.add(id(weight))
            self._grads += _num_bytes(weight.grad)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self._add(size)
        weakref.finalize(storage, self._forget, key, size)

    def _add(self, size: int) -> None:
        self.live += size
        known = self.peaks.get(self._activities)
        if known is None or self.live > known.num_bytes:
            self.peaks[self._activities] = Peak(self.live, self._grads)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _num_bytes(tensor: Tensor) -> int:
    """Bytes of the elements; of an expanded tensor, those of its storage."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


@cache
def _is_in_place(func: Any) -> bool:
    return any(one.alias_info is not None and one.alias_info.is_write for one in func._schema.returns)


@cache
def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(
        one.alias_info is not None and not one.alias_info.is_write for one in returns
    )


def _with_indices(func: Any, args: Sequence[Any]) -> Sequence[Any]:
    """Replace real masks, with which the shape of the result depends on values, by indices."""
    if func not in (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default):
        return args
    indices: list[Any] = []
    for index in args[1]:
        is_mask = isinstance(index, Tensor) and index.dtype == torch.bool
        indices += index.nonzero(as_tuple=True) if is_mask else [index]
    return [args[0], indices, *args[2:]]
