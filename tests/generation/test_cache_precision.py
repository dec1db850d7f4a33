"""The precision of the KV cache while the weights are float32 and autocast is on."""

from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from model import GPT, GPTConfig, KVCache
from shuoshu.generation.sampling import empty_cache

SHAPE = GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=4, n_embd=32, n_kv_head=2)


@pytest.mark.parametrize(
    "device, is_autocast, dtype",
    [
        ("cuda", True, torch.bfloat16),
        ("cuda", False, torch.float32),
        ("cpu", True, torch.float32),  # CpuDecoder's attention
    ],
)
def test_the_cache_has_the_precision_of_attention(monkeypatch, device, is_autocast, dtype):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: is_autocast)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    with FakeTensorMode():  # has devices that this machine lacks
        head = SimpleNamespace(weight=torch.empty(1, device=device))
        model = SimpleNamespace(config=SHAPE, lm_head=head)
        assert empty_cache(model, 2, 8).k.dtype == dtype


def test_under_autocast_a_bfloat16_cache_gives_the_logits_of_a_float32_one():
    torch.manual_seed(0)
    model, ids = GPT(SHAPE).eval(), torch.randint(64, (3, 9))

    def logits(dtype):
        cache = KVCache(SHAPE, 3, dtype=dtype)
        read = [model.next_logits(ids, [8] * 3, cache)]
        cache.lengths = [9, 7, 8]
        read += [model.next_logits(ids[:, n : n + 1], [0] * 3, cache) for n in range(4)]
        return torch.stack(read)

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(logits(torch.bfloat16), logits(torch.float32))
