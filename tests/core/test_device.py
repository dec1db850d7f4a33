"""shuoshu/core/device.py: seeds, precision, memory, and the machine's description."""

import pytest
import torch

from shuoshu.core import device as core_device


def test_a_step_has_its_own_randomness_for_each_seed_step_and_rank():
    def draw(*key):
        core_device.seed_step(*key)
        return torch.rand(1).item()

    keys = [(seed, step, rank) for seed in (0, 1337) for step in (0, 1, 500) for rank in (0, 1, 7)]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert draw(1337, 5, 0) == draw(1337, 5, 0)


def test_autocast_multiplies_in_the_chosen_precision():
    a = torch.ones(2, 2)
    with core_device.autocast(torch.device("cpu"), torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
    with core_device.autocast(torch.device("cpu"), torch.float32):
        assert (a @ a).dtype == torch.float32


def test_a_named_precision_is_used():
    assert core_device.pick_dtype("float32", torch.device("cpu")) == torch.float32
    assert core_device.pick_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


def test_a_machines_description_names_its_parts():
    machine = core_device.describe_machine(torch.device("cpu"))
    assert {"python", "torch", "system", "cpu"} <= machine.keys() and "threads" in machine["cpu"]


def test_malloc_is_tuned_and_peak_memory_is_measured():
    core_device.tune_malloc()
    assert core_device.peak_memory(torch.device("cpu")) > 50_000_000


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA B200", 2250),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 4090", 165),
        ("GeForce RTX 3090", 71),
    ],
)
def test_each_gpu_has_the_peak_of_its_own_name(name, peak, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert core_device.peak_flops(torch.device("cuda")) == peak * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA RTX A1000",
        "NVIDIA T400 4GB",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GB200",
        "Tesla V100S-PCIE-32GB",
        "NVIDIA",
    ],
)
def test_an_unknown_gpu_has_no_peak(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert core_device.peak_flops(torch.device("cuda")) is None


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs an NVIDIA GPU: the choice of precision and the peak on CUDA",
)
def test_a_gpu_gets_its_fastest_precision_and_the_compiler():
    device = core_device.pick_device("auto")
    assert device.type == "cuda"
    expected = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    assert core_device.pick_dtype("auto", device) == expected
    assert core_device.can_compile(device)
