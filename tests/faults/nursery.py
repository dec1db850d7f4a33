"""A process that has imported everything and forks a training whenever it is told: a tenth of a second instead of four.

It reads a line of JSON and answers one: `start` with argv, out (the file for what the training prints), environment and faults (see
injected.py) → the pid; `wait` with pid and seconds → the exit code, minus the signal that ended it, or null if it still runs.
Being a process of its own, with one thread and no GPU, it can fork safely.
"""

import json
import os
import sys
import time
import traceback
from contextlib import suppress

import torch

from tests.faults import injected
from tests.in_process import train_model


def start(argv: list[str], out: str, environment: dict[str, str], faults: dict[str, object]) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(handle, stream)
        os.environ.update(environment)
        for name, value in faults.items():
            getattr(injected, name)(value)
        code = train_model(argv)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.optim.AdamW(
        [torch.nn.Parameter(torch.zeros(1))]
    ).zero_grad()  # the first optimiser of a process imports for a second
    for line in sys.stdin:
        order = json.loads(line)
        answer = {"start": start, "wait": wait}[order.pop("do")](**order)
        os.write(int(sys.argv[1]), (json.dumps(answer) + "\n").encode())
