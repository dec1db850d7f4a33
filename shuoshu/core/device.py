"""The machine: device, precision, memory, processes, seeds, signals."""

from __future__ import annotations

import ctypes
import math
import platform
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from shuoshu.core.errors import REPO_ROOT, UserError


def tune_malloc() -> None:
    """Stops glibc from giving every large tensor back to the system after each step: the page faults cost up to 40% of it.

    Call before the first tensor. Elsewhere than on glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 256 << 20)):
        mallopt(option, value)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """CUDA, else Apple's MPS, else CPU; or what the user asked for, if it is there."""
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device={name}: choose auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "--device=cuda: torch sees no NVIDIA GPU (a CPU build of torch, or no driver); use --device=cpu"
            )
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"--device={name}: there are {torch.cuda.device_count()} GPUs, numbered from 0"
            )
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device=mps: this is no Mac with an Apple GPU; use --device=cpu")
    elif device.type not in ("cpu", "mps"):
        raise UserError(f"--device={name}: choose auto, cpu, cuda, cuda:1 or mps")
    return device


def setup_process(device: str, threads: int | None, tamed: bool) -> torch.device:
    """What a measuring process does first; `tamed`: with our setting of malloc."""
    if tamed:
        tune_malloc()
    if threads:
        torch.set_num_threads(threads)
    picked = pick_device(device)
    if picked.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in fp32, as in training
    return picked


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of the matrix products: bf16 where the hardware has it, else fp16 on older GPUs, else fp32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    return (
        torch.bfloat16 if device.type == "cpu" and _multiplies_faster_in_bf16() else torch.float32
    )


def _multiplies_faster_in_bf16(n: int = 768) -> bool:
    """Whether this CPU has bf16 in hardware: the best of several products each, in turn, so that whatever else it does hits both."""
    pairs = {dtype: torch.ones(n, n, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)}
    best = dict.fromkeys(pairs, math.inf)
    for _ in range(8):
        for dtype, a in pairs.items():
            began = time.perf_counter()
            a @ a
            best[dtype] = min(best[dtype], time.perf_counter() - began)
    return best[torch.bfloat16] * 1.5 < best[torch.float32]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


PEAKS = {  # dense bf16 (fp16 where there is no bf16) FLOP/s with fp32 sums, from the vendors' data sheets; first match counts
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """What the device can do at most, where that is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAKS.items() if key in name), None)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile pays here: on CUDA with Triton."""
    if device.type != "cuda":
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 7


def synchronize(device: torch.device) -> None:
    """Waits for the device, so that a clock read next is right."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Dropout's randomness in this step is a function of these three alone."""
    torch.manual_seed(((seed * 1_000_003 + step) * 4099 + rank) % 2**63)


# ---------------------------------------------------------------- what a log says of the machine


def describe_machine(device: torch.device) -> dict[str, str]:
    """Versions, machine and commit: a log that begins with them can be repeated."""
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(terse=True),
    }
    facts["cpu"] = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda or "?"
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=REPO_ROOT,
            capture_output=True,
            text=True,
            timeout=5,
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=REPO_ROOT,
            capture_output=True,
            text=True,
            timeout=5,
        )
        if commit.returncode == 0:
            facts["commit"] = commit.stdout.strip() + (
                " (changed)" if changed.stdout.strip() else ""
            )
    except (OSError, subprocess.TimeoutExpired):
        pass
    return facts


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def free_memory(device: torch.device) -> float:
    """Bytes that a program may still take without pushing others out; without end where the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with Path("/proc/meminfo").open(encoding="utf-8") as file:
            return next(
                1024.0 * int(line.split()[1]) for line in file if line.startswith("MemAvailable")
            )
    except (OSError, StopIteration):
        return sys.maxsize


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has held at most, on the GPU if it uses one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with Path("/proc/self/status").open(
            encoding="utf-8"
        ) as file:  # getrusage counts what the parent held as well
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux
        pass
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except ImportError:  # Windows
        return 0
    return used if sys.platform == "darwin" else used * 1024
