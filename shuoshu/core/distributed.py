"""The processes that torchrun starts, and the signals that stop a run."""

from __future__ import annotations

import datetime
import gc
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from shuoshu.core.errors import UserError

TIMEOUT = datetime.timedelta(minutes=10)  # for one collective operation


class Processes:
    """This process and its group under torchrun; a group of one without torchrun."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.is_rank_zero = self.rank == 0

    def start(self, device: torch.device) -> None:
        """Joins the process group; ValueError or RuntimeError if that fails."""
        if self.world_size > 1 and not dist.is_initialized():
            # CPU tensors use gloo even on GPUs: they need no device synchronisation, and gloo
            # notices a lost process at once.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            store, rank, world_size = next(rendezvous("env://", timeout=TIMEOUT))
            if os.environ.get("LOCAL_WORLD_SIZE") == str(world_size):
                # torchrun --max_restarts keeps the store, with the addresses of the group before.
                # On several machines the counts may differ.
                attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                store = dist.PrefixStore(f"attempt {attempt}", store)
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT
            )

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sums over all processes, in float64."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def sum_(self, value: torch.Tensor) -> None:
        """Sums a tensor over all processes in place, without synchronising its device."""
        if self.world_size > 1:
            dist.all_reduce(value)

    def broadcast(self, value: object) -> object:
        """Rank 0's value."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def on_rank_zero(self, work: Callable[[], Any]) -> Any:
        """Runs `work` on rank 0; returns its result on all ranks. Its UserError ends all ranks."""
        result, error = None, None
        if self.is_rank_zero:
            try:
                result = work()
            except UserError as raised:
                error = raised
        result, failed = self.broadcast((result, error is not None))
        if error:
            raise error
        if failed:
            raise SystemExit(2)  # rank 0 prints the message
        return result

    def any_signal(self, number: int | None) -> int | None:
        """The highest signal number that a process received; None if there was none."""
        if self.world_size == 1:
            return number
        flag = torch.tensor(number or 0)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return flag.item() or None

    def is_lost_peer(self, error: RuntimeError) -> bool:
        """Whether the error means that another process of the group has ended."""
        return self.world_size > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))

    def stop(self, failed: bool) -> None:
        """Leaves the process group and ends its threads.

        A thread that frees a tensor during interpreter shutdown would abort the process.
        """
        if failed and dist.is_initialized() and dist.get_backend() != "gloo":
            return  # nccl would wait for the other processes, and they for this one
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()
            gc.collect()  # reference cycles in the model keep the group alive


class StopFlag:
    """Ctrl-C, SIGTERM and SIGHUP set `raised`, which loops check.

    A second Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.raised: int | None = None  # the number of the last signal
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> StopFlag:
        hangup = getattr(signal, "SIGHUP", signal.SIGTERM)  # Windows has no SIGHUP
        for number in {signal.SIGINT, signal.SIGTERM, hangup}:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores a signal on purpose
                self._handlers[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: object) -> None:
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised = number
