"""Measures the memory of tensors, on any device and whatever the allocator does."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """While it is active: `peak`, the most bytes that new tensors had at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()  # storages
        self.calls: list[str] = []  # the names of the operators

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.known.update(storages(args))
        result = function(*args, **(kwargs or {}))
        self.calls.append(function.overloadpacket.__name__)
        for storage in storages(result):
            if storage not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def free(self, count: int) -> None:
        self.now -= count


def storages(values: object) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(values) if isinstance(x, torch.Tensor)]
