"""shuoshu/runtime.py: what the machine can do, and seeds."""

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


def test_autocast_computes_products_in_the_precision_asked_for():
    a = torch.ones(2, 2)
    with core_device.autocast(torch.device("cpu"), torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
    with core_device.autocast(torch.device("cpu"), torch.float32):
        assert (a @ a).dtype == torch.float32


def test_the_precision_asked_for_is_taken():
    assert core_device.pick_dtype("float32", torch.device("cpu")) == torch.float32
    assert core_device.pick_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


def test_the_log_can_say_what_ran_where():
    facts = core_device.describe_machine(torch.device("cpu"))
    assert {"python", "torch", "system", "cpu"} <= facts.keys() and "threads" in facts["cpu"]


def test_memory_can_be_kept_and_counted():
    core_device.tune_malloc()
    assert core_device.peak_memory(torch.device("cpu")) > 50_000_000


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs an NVIDIA GPU: the choice of precision and the peak on CUDA",
)
def test_a_gpu_is_used_as_it_can_be():
    device = core_device.pick_device("auto")
    assert device.type == "cuda"
    wanted = torch.bfloat16 if torch.cuda.get_device_capability()[0] >= 8 else torch.float16
    assert core_device.pick_dtype("auto", device) == wanted
    assert core_device.can_compile(device)
