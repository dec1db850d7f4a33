"""The machine: device, precision, memory, seeds, and what a log says about it."""

from __future__ import annotations

import ctypes
import math
import platform
import re
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from shuoshu.core.errors import REPO_ROOT, UserError


def tune_malloc() -> None:
    """Makes glibc keep freed memory. Otherwise page faults cost up to 40% of a training step.

    Call it before the first tensor. Without glibc it does nothing.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from malloc.h
    for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 256 << 20)):
        mallopt(option, value)


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The named device; auto: CUDA, else Apple's MPS, else CPU. UserError if it isn't there."""
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else name
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device={name}: choose auto, cpu, cuda, cuda:1 or mps") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "--device=cuda: torch finds no NVIDIA GPU (no driver, or a CPU build of torch);"
                " use --device=cpu"
            )
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"--device={name}: there are {torch.cuda.device_count()} GPUs, numbered from 0"
            )
        torch.cuda.set_device(device)
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device=mps: this machine has no Apple GPU; use --device=cpu")
    elif device.type not in ("cpu", "mps"):
        raise UserError(f"--device={name}: choose auto, cpu, cuda, cuda:1 or mps")
    return device


def setup_process(
    device_name: str,
    threads: int | None,
    local_rank: int = 0,
    tf32: bool = False,
    tuned_malloc: bool = True,
) -> torch.device:
    """Sets malloc, threads and device of this process; call it before the first tensor.

    `tf32` allows TF32 for float32 products on CUDA. UserError if the device isn't there.
    """
    if tuned_malloc:
        tune_malloc()
    if threads:
        torch.set_num_threads(threads)
    device = pick_device(device_name, local_rank)
    if tf32 and device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Precision of matrix products; auto: bf16 in hardware, else fp16 on older GPUs, else fp32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.float16 if is_gpu_without_bf16(device) else torch.bfloat16
    is_faster = device.type == "cpu" and _multiplies_faster_in_bf16()
    return torch.bfloat16 if is_faster else torch.float32


def is_gpu_without_bf16(device: torch.device) -> bool:
    """Whether the device is an NVIDIA GPU from before Ampere, whose tensor cores lack bf16."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8


MIN_BF16_GAIN = 1.5  # without hardware support bf16 is slower than fp32 or equal


def _multiplies_faster_in_bf16(n: int = 768) -> bool:
    """Whether this CPU has bf16 in hardware: compares the fastest of eight n x n products.

    The two types alternate, so that other load on the machine slows both.
    """
    matrices = {dtype: torch.ones(n, n, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)}
    best = dict.fromkeys(matrices, math.inf)
    for _ in range(8):
        for dtype, a in matrices.items():
            began = time.perf_counter()
            a @ a
            best[dtype] = min(best[dtype], time.perf_counter() - began)
    return best[torch.bfloat16] * MIN_BF16_GAIN < best[torch.float32]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


# Peak FLOP/s of dense bf16 products (fp16 on GPUs without bf16) with fp32 accumulation, from
# NVIDIA's data sheets. A key is the GPU's name without the words that NOT_A_MODEL matches.
PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIE": 756e12,
    "A100 SXM4": 312e12,
    "A100 PCIE": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10": 125e12,
    "A10G": 70e12,
    "V100 SXM2": 125e12,
    "V100 PCIE": 112e12,
    "T4": 65e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
NOT_A_MODEL = re.compile(r"NVIDIA|TESLA|GEFORCE|\d+GB|HBM\w+")  # brand and memory


def peak_flops(device: torch.device) -> float | None:
    """The device's peak FLOP/s; None if it is unknown, as for a part (MIG) of a GPU."""
    if device.type != "cuda":
        return None
    words = re.split("[ -]", torch.cuda.get_device_name(device).upper())
    return PEAK_FLOPS.get(" ".join(word for word in words if not NOT_A_MODEL.fullmatch(word)))


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile is worth it here: on CUDA with Triton."""
    if device.type != "cuda":
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return torch.cuda.get_device_capability(device)[0] >= 7


def synchronize(device: torch.device) -> None:
    """Waits until the device has finished. Call it before reading a clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds dropout for one step of one rank, so that a resumed run draws the same numbers."""
    torch.manual_seed(((seed * 1_000_003 + step) * 4099 + rank) % 2**63)


# ---------------------------------------------------------------- description and memory


def describe_machine(device: torch.device) -> dict[str, str]:
    """Versions, hardware and commit, which are needed to repeat a logged run."""
    machine = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(terse=True),
    }
    machine["cpu"] = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
        machine["cuda"] = torch.version.cuda or "?"
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
            machine["commit"] = commit.stdout.strip() + (
                " (changed)" if changed.stdout.strip() else ""
            )
    except (OSError, subprocess.TimeoutExpired):
        pass
    return machine


def _cpu_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def free_memory(device: torch.device) -> float:
    """Bytes of memory still available; sys.maxsize where the system doesn't report it."""
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
    """Peak bytes allocated by this process, on the GPU if `device` is one; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # getrusage would include the parent's memory from before the fork.
        with Path("/proc/self/status").open(encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux
        pass
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    except ImportError:  # Windows
        return 0
    return used if sys.platform == "darwin" else used * 1024
