"""A process that has imported everything and forks trainings: 0.1 s each instead of 4 s.

It reads lines of JSON and answers each with one:
    start, with argv, out (the file for the output), environment and faults (see injected.py): pid
    wait, with pid and seconds: the exit code, minus the signal, or null if the process still runs
It has one thread and no GPU, so it can fork safely.
"""

import json
import os
import sys
import time
import traceback
from contextlib import suppress

import torch

from shuoshu.training import loop
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
        code = train_model(argv, lambda *args: loop.train_step(*args))  # a fault may replace it
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
    # The first optimizer of a process imports modules for a second.
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).zero_grad()
    for line in sys.stdin:
        order = json.loads(line)
        answer = {"start": start, "wait": wait}[order.pop("do")](**order)
        os.write(int(sys.argv[1]), (json.dumps(answer) + "\n").encode())
