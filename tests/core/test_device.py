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
