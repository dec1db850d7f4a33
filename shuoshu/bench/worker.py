"""What both workers share: reading the job, measuring a rate, printing the result."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

from shuoshu.core.device import setup_process

WARM_UP = 3  # steps before a measurement: compilation, cold caches
TEXT_BEGINNING = "The lamp was still lit when he came down to the harbour, and"


def rate_of(step: Callable[[], float], seconds: float) -> float:
    """Units per second of `step`, which returns the units it did; runs at least once."""
    amount, start = 0.0, time.perf_counter()
    while not amount or time.perf_counter() - start < seconds:
        amount += step()
    return amount / (time.perf_counter() - start)


def rate_of_steps(step: Callable[[], float], count: int) -> float:
    """Units per second of `count` steps after the warm-up."""
    for _ in range(WARM_UP):
        step()
    start = time.perf_counter()
    amount = sum(step() for _ in range(count))
    return amount / (time.perf_counter() - start)


def run_job(kinds: dict[str, Callable[..., dict]]) -> None:
    """Does the job in the first argument; prints the result as the last line of output."""
    job = json.loads(sys.argv[1])
    is_tuned = job.pop("is_tuned", True)
    device = setup_process(job.pop("device"), job.pop("threads"), tf32=True, tuned_malloc=is_tuned)
    print(json.dumps(kinds[job.pop("kind")](device, **job)))
