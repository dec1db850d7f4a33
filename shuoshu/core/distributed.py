"""The processes that torchrun starts, and the signals that stop them."""

from __future__ import annotations

import datetime
import gc
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from shuoshu.core.errors import UserError

# ---------------------------------------------------------------- processes


class Processes:
    """This process among those that torchrun started; alone if none."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.is_rank_zero = self.rank == 0

    def start(self, device: torch.device) -> None:
        if self.world > 1 and not dist.is_initialized():
            # What the hosts agree on goes through gloo, beside the GPUs: nobody waits for a device, and a process that is gone is noticed at once.
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                timeout=datetime.timedelta(minutes=10),
            )

    def sum(self, values: list[float]) -> list[float]:
        """The sums over all processes, in float64."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def sum_(self, value: torch.Tensor) -> None:
        """Makes a tensor the sum over all processes, without waiting for the device that it is on."""
        if self.world > 1:
            dist.all_reduce(value)

    def broadcast(self, value: object) -> object:
        """What the first process says."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_rank_zero(self, work: Callable[[], Any]) -> Any:
        """What `work` returns in the first process, which alone does it; if a UserError stops it, all of them end."""
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
            raise SystemExit(2)  # the first one says why
        return result

    def any_signal(self, number: int | None) -> int | None:
        """The signal that any of the processes got."""
        if self.world == 1:
            return number
        flag = torch.tensor(number or 0)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return flag.item() or None

    def is_lost_peer(self, error: RuntimeError) -> bool:
        """Whether this is what a process sees when another one is gone."""
        return self.world > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error))

    def stop(self, failed: bool) -> None:
        """Ends the group and its threads: one that still let go of a tensor while the interpreter shuts down would abort the process."""
        if failed and dist.is_initialized() and dist.get_backend() != "gloo":
            return  # nccl would wait for the others, and they for us
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()
            gc.collect()  # the model's cycles hold the group, and its threads end with it


class StopFlag:
    """Ctrl-C, SIGTERM or SIGHUP raises a flag that the loop looks at; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.raised: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopFlag:
        for number in {
            signal.SIGINT,
            signal.SIGTERM,
            getattr(signal, "SIGHUP", signal.SIGTERM),
        }:  # Windows has no SIGHUP
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup, and & in a script, mean it
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: object) -> None:
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised = number
