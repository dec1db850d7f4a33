"""shuoshu/training/optimizers.py: parameter groups, Muon's updates, learning rates."""

import math
from itertools import pairwise

import pytest
import torch

from model import GPT, GPTConfig
from shuoshu.core.settings import OptimSettings
from shuoshu.training.optimizers import (
    Muon,
    build_optimizers,
    load_state_tensors,
    orthogonalize,
    set_rates,
    state_tensors,
)
from shuoshu.training.schedule import rate_factor
from shuoshu.training.state import Plan

CONFIG = GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32)
CPU = torch.device("cpu")


def groups_of(model, **changes):
    optimizers = build_optimizers(model, OptimSettings(**changes), CPU, torch.float32)
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (type(o), g["full_lr"], g["weight_decay"])
        for o in optimizers
        for g in o.param_groups
        for p in g["params"]
    }


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_parameter_is_in_exactly_one_group(name, tied):
    model = GPT(GPTConfig(64, 16, 2, 2, 32, tie_embeddings=tied))
    optimizers = build_optimizers(model, OptimSettings(optimizer=name), CPU, torch.float32)
    listed = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_muon_takes_the_block_matrices_and_each_other_kind_has_its_rate():
    groups = groups_of(GPT(CONFIG), weight_decay=0.1)
    assert groups["model.layers.0.self_attn.q_proj.weight"] == (Muon, 0.02, 0.1)
    assert groups["model.embed_tokens.weight"] == (torch.optim.AdamW, 0.1, 0.0)
    assert groups["lm_head.weight"] == (torch.optim.AdamW, 0.004, 0.1)
    assert groups["model.layers.1.self_attn.q_norm.weight"] == (torch.optim.AdamW, 0.004, 0.0)
    tied = groups_of(GPT(GPTConfig(64, 16, 2, 2, 32, tie_embeddings=True)))
    assert tied["model.embed_tokens.weight"][1] == 0.008


def test_adamw_alone_decays_matrices_and_spares_gains():
    groups = groups_of(GPT(CONFIG), optimizer="adamw", learning_rate=0.003, weight_decay=0.1)
    assert {kind for kind, _, _ in groups.values()} == {torch.optim.AdamW}
    assert groups["model.embed_tokens.weight"][1:] == (0.003, 0.1)
    assert groups["model.norm.weight"][1:] == (0.003, 0.0)


@pytest.mark.parametrize(
    ("device", "generation", "dtype", "expected"),
    [
        ("cpu", None, torch.float32, torch.float32),
        ("cpu", None, torch.float16, torch.bfloat16),
        ("cuda", 7, torch.float16, torch.float32),
        ("cuda", 7, torch.bfloat16, torch.float32),
        ("cuda", 8, torch.float32, torch.float32),
        ("cuda", 8, torch.float16, torch.bfloat16),
        ("cuda", 9, torch.bfloat16, torch.bfloat16),
    ],
)
def test_muon_computes_in_bf16_only_where_the_gpu_has_it(
    device, generation, dtype, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (generation, 0))
    muon, _ = build_optimizers(GPT(CONFIG), OptimSettings(), torch.device(device), dtype)
    assert muon.dtype == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 24, 64), (2, 64, 24), (1, 32, 32)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape, dtype):
    draw = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=draw), full_matrices=False)
    spectrum = torch.logspace(-1.5, 0, u.shape[-1])  # from 0.03
    values = torch.linalg.svdvals(orthogonalize(7 * u * spectrum @ v, dtype).float())
    assert values.min() > 0.75 and values.max() < 1.2


def test_orthogonalising_keeps_the_directions():
    matrices = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    assert ((orthogonalize(matrices, torch.float32) - u @ v).norm() / (u @ v).norm()) < 0.2


def test_muon_treats_matrices_of_one_shape_independently():
    torch.manual_seed(0)
    grads = [torch.randn(8, 12), 100 * torch.randn(8, 12)]
    together = [torch.nn.Parameter(torch.zeros(8, 12)) for _ in grads]
    alone = [torch.nn.Parameter(torch.zeros(8, 12)) for _ in grads]
    for p, q, grad in zip(together, alone, grads, strict=True):
        p.grad, q.grad = grad.clone(), grad.clone()
        Muon([q], 0.1, 0.0, torch.float32).step()
    Muon(together, 0.1, 0.0, torch.float32).step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q)


def test_a_tall_matrix_moves_further():
    sizes = {}
    for rows, columns in ((8, 32), (32, 8)):
        p = torch.nn.Parameter(torch.zeros(rows, columns))
        p.grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
        Muon([p], 1.0, 0.0, torch.float32).step()
        sizes[rows] = torch.linalg.svdvals(p.detach()).mean().item()
    assert sizes[32] / sizes[8] == pytest.approx(2, rel=0.1)


def trained(model, optimizers, steps):
    for step in steps:
        ids = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(step))
        model(ids[:, :-1], ids[:, 1:]).backward()
        set_rates(optimizers, 1.0, step)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_optimizer_state_is_saved_and_restored_exactly(name):
    def fresh():
        torch.manual_seed(0)
        model = GPT(CONFIG)
        return model, build_optimizers(model, OptimSettings(optimizer=name), CPU, torch.float32)

    model, optimizers = fresh()
    trained(model, optimizers, range(3))
    again, others = fresh()
    again.load_tensors(model.tensors())
    load_state_tensors(again, others, state_tensors(model, optimizers))
    trained(model, optimizers, range(3, 6))
    trained(again, others, range(3, 6))
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="belongs to another optimizer"):
        load_state_tensors(
            model, optimizers, {"model.layers.0.mlp.up_proj.weight/nonsense": torch.ones(128, 32)}
        )
    with pytest.raises(ValueError, match="fits no parameter"):
        load_state_tensors(model, optimizers, {"model.norm.weight/exp_avg": torch.ones(3)})


def test_wsd_rates_warm_up_stay_and_decay():
    plan, settings = Plan(100, 50), OptimSettings(warmup_iters=10)
    factors = [rate_factor(step, plan, settings) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11) and factors[10:50] == [1.0] * 40
    assert factors[74] == pytest.approx(0.51) and factors[99] == pytest.approx(0.02)
    assert all(a > b for a, b in pairwise(factors[49:]))


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
def test_a_share_of_a_budget_has_the_rate_of_that_share_of_the_steps(schedule):
    settings = OptimSettings(schedule=schedule, warmup_iters=4)
    for step in range(100):
        budget = Plan(None, 0.5, share=(step + 1) / 100)
        expected = rate_factor(step, Plan(100, 50), settings)
        assert rate_factor(step, budget, settings) == pytest.approx(expected)


def test_the_example_in_the_docstring_of_rate_factor_is_right():
    plan, settings = Plan(100, 50), OptimSettings(warmup_iters=4)
    factors = [rate_factor(step, plan, settings) for step in (0, 1, 2, 3, 4, 49, 50, 74, 99)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 0.98, 0.51, 0.02], abs=0.005)


def test_cosine_and_constant_schedules():
    plan = Plan(100, 50)
    cosine = OptimSettings(schedule="cosine", warmup_iters=0, min_lr_fraction=0.1)
    assert rate_factor(49, plan, cosine) == pytest.approx(0.55) and rate_factor(
        99, plan, cosine
    ) == pytest.approx(0.1)
    assert rate_factor(99, plan, OptimSettings(schedule="constant", warmup_iters=0)) == 1.0


def test_muons_momentum_grows_over_the_first_steps():
    optimizers = build_optimizers(GPT(CONFIG), OptimSettings(), CPU, torch.float32)
    for step, momentum in ((0, 0.85), (100, 0.9), (200, 0.95), (10**6, 0.95)):
        set_rates(optimizers, 0.5, step)
        assert math.isclose(optimizers[0].param_groups[0]["momentum"], momentum)
    assert optimizers[0].param_groups[0]["lr"] == 0.01
