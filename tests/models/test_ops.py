"""Each operation that may be replaced agrees with the plain one in model.py."""

from __future__ import annotations

import ast
import inspect
import runpy

import pytest
import torch

import model
from model import GPT, GPTConfig
from shuoshu.models import cpu_kernels

EPS = 1e-6
OPS = list(vars(model.ops))


def angles(length: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    config = GPTConfig(96, length, 1, 1, width, head_dim=width)
    table = model.rotary_angles(config).repeat(1, 2).float()
    return table.cos(), table.sin()


def inputs_of(name: str) -> tuple[list[torch.Tensor], list]:
    """(differentiable inputs, other arguments) of an operation; a new one must be added here."""
    torch.manual_seed(0)
    draw = torch.randn
    return {
        "rms_norm": lambda: ([draw(3, 20, 32), draw(32)], [EPS]),
        "rotate": lambda: ([draw(3, 4, 20, 16)], [*angles(20, 16)]),
        "norm_and_rotate": lambda: ([draw(3, 20, 4, 16), draw(16)], [EPS, *angles(20, 16)]),
        "causal_attention": lambda: ([draw(2, heads, 200, 16) for heads in (4, 2, 2)], []),
        "head_loss": lambda: (
            [draw(18, 32), draw(64, 32)],
            [torch.tensor([3, -100, 5] * 6), "sum"],
        ),
    }[name]()


def run(operation, name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """The result of an operation and its gradients."""
    tensors, others = inputs_of(name)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    if name == "causal_attention":  # its inputs have the autocast dtype
        tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        result = operation(*tensors, *others)
    torch.manual_seed(1)
    weight = torch.randn(result.shape).to(result.dtype)
    return [result, *torch.autograd.grad(result, tensors, weight)]


@pytest.mark.parametrize("name", OPS)
def test_the_installed_operation_agrees_with_the_plain_one(name):
    plain, installed = getattr(model, name), getattr(model.ops, name)
    assert installed is getattr(cpu_kernels, name) and installed is not plain
    assert list(inspect.signature(installed).parameters) == list(
        inspect.signature(plain).parameters
    )
    exact = run(plain, name, torch.float32)
    for own, true in zip(run(installed, name, torch.float32), exact, strict=True):
        assert torch.equal(own, true)  # without autocast the plain operation runs
    fast = run(installed, name, torch.bfloat16)
    for own, true in zip(fast, exact, strict=True):
        assert own.shape == true.shape
        assert (own.float() - true).norm() < 0.02 * true.norm()
    assert any(not torch.equal(own.float(), true) for own, true in zip(fast, exact, strict=True))


def test_the_plain_operations_are_the_defaults():
    plain = runpy.run_path(model.__file__)  # a fresh module, into which nothing is installed
    assert all(function is plain[name] for name, function in vars(plain["ops"]).items())


def test_model_py_has_no_imports_from_the_package_and_no_device_conditions():
    source = inspect.getsource(model)
    imported = [
        node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not [name for name in imported if name.startswith("shuoshu")]
    for words in ("autocast", "is_grad_enabled", "is_compiling", "device.type"):
        assert words not in source


@pytest.mark.parametrize("is_autocast", [False, True])
def test_the_whole_model_is_traced_as_one_graph(is_autocast):
    network = GPT(GPTConfig(96, 16, 2, 4, 32, n_kv_head=2))
    ids = torch.randint(96, (2, 16))
    traced = torch.compile(network, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        assert torch.isfinite(traced(ids, ids, reduction="sum"))
