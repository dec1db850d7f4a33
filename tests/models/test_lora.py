"""LoRA and its files, judged by PEFT and transformers."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from model import GPT, GPTConfig
from shuoshu.core.errors import UserError
from shuoshu.core.files import sha256_of
from shuoshu.core.settings import LORA_TARGETS
from shuoshu.models.adapters import save_adapter, write_adapter_folder
from shuoshu.models.lora import (
    LoraConfig,
    LoraLinear,
    add_lora,
    merge_lora,
    share_parameters,
)
from shuoshu.models.purpose import Purpose
from shuoshu.models.weights import load_adapted, load_model
from shuoshu.text.tokenizer import train_bpe
from tests.models.adapter_folders import write_adapter

SIZES = {
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FAMILIES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 16}),
}
IDS = torch.randint(0, 500, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def bases(tokenizer, tmp_path_factory):
    """A folder with a small random model for each family."""
    folders = {}
    for name, (config, cls, more) in FAMILIES.items():
        folder = tmp_path_factory.mktemp("bases") / name
        torch.manual_seed(1)
        model = cls(config(**SIZES, **more, tie_word_embeddings=name == "qwen2"))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter) * 0.05
        model.save_pretrained(folder)
        for file, text in tokenizer.files(64, "").items():
            (folder / file).write_text(text, encoding="utf-8")
        folders[name] = folder
    return folders


@pytest.fixture
def base(bases):
    return bases["llama"]


def peft_adapter(base, folder, steps=0, **settings):
    """Saves an adapter of PEFT with a random B; returns the logits that PEFT computes."""
    torch.manual_seed(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 10, "target_modules": list(LORA_TARGETS), **settings}
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    return model(IDS).logits


def our_adapter(base, folder, lora):
    """Saves an adapter of ours with a random B; returns the model."""
    purpose = Purpose("questions", turns=1)
    return load_model(write_adapter(folder, base, purpose, seed=3, lora=lora)).model


def change_json(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


PLAIN = LoraConfig(rank=4, alpha=10, targets=LORA_TARGETS)


# ---------------------------------------------------------------- the layer


def tiny_gpt():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=500, block_size=32, n_layer=2, n_head=2, n_embd=32))


def test_a_new_adapter_changes_nothing_and_alone_requires_gradients():
    model = tiny_gpt()
    before = model(IDS)
    add_lora(model, PLAIN)
    assert torch.equal(model(IDS), before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == model.tensors().keys() and len(trained) == 2 * 7 * 2
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in trained)
    bound = model.model.layers[0].mlp.down_proj.in_features ** -0.5
    a = model.model.layers[0].mlp.down_proj.lora_A.weight.abs()
    assert 0.95 * bound < a.max() <= bound


def test_a_seed_decides_the_initial_weights():
    one, two, other = (tiny_gpt() for _ in range(3))
    add_lora(one, PLAIN, seed=1)
    torch.rand(5)
    add_lora(two, PLAIN, seed=1)
    add_lora(other, PLAIN, seed=2)
    name = "model.layers.1.mlp.up_proj.lora_A.weight"
    assert torch.equal(one.tensors()[name], two.tensors()[name])
    assert not torch.equal(one.tensors()[name], other.tensors()[name])


@pytest.mark.parametrize("rslora", [False, True])
def test_the_update_is_scale_times_b_a(rslora):
    lora = LoraConfig(9, 6, ("up_proj",), rslora=rslora, ranks={"model.layers.1.mlp.up_proj": 4})
    model = tiny_gpt()
    add_lora(model, lora)
    for layer, rank in ((0, 9), (1, 4)):
        linear = model.model.layers[layer].mlp.up_proj
        torch.nn.init.normal_(linear.lora_B.weight)
        x = torch.randn(5, 32)
        scale = 6 / (rank**0.5 if rslora else rank)
        update = scale * linear.lora_B.weight @ linear.lora_A.weight
        torch.testing.assert_close(linear(x), x @ (linear.weight + update).T)
    assert not isinstance(model.model.layers[0].mlp.gate_proj, LoraLinear)


def test_the_first_update_of_the_product_is_what_algebra_says():
    """With B = 0, a step of gradient descent on B changes B A by -rate · scale · G A' A, where G is the gradient of the whole weight. A square orthogonal A of full rank loses nothing of it."""
    torch.manual_seed(0)
    base = torch.nn.Linear(16, 24, bias=False).requires_grad_(False)
    layer = LoraLinear(base, rank=16, scale=2.0, dropout=0.0)
    torch.nn.init.orthogonal_(layer.lora_A.weight)
    x, target = torch.randn(50, 16), torch.randn(50, 24)
    F.mse_loss(layer(x), target).backward()
    torch.optim.SGD([layer.lora_B.weight], lr=0.1).step()
    whole = base.weight.detach().requires_grad_()
    F.mse_loss(F.linear(x, whole), target).backward()
    expected = base.weight.detach() - 0.1 * 2.0**2 * whole.grad
    torch.testing.assert_close(layer.merged_weight(), expected)
    assert layer.lora_A.weight.grad.abs().max() == 0


def test_a_second_model_with_an_adapter_shares_the_weights_of_the_first():
    base = tiny_gpt()
    before = base(IDS)
    adapted = share_parameters(base)
    add_lora(adapted, PLAIN)
    for p in adapted.tensors().values():
        p.normal_(std=0.3)
    assert not torch.allclose(adapted(IDS), before, atol=0.1)
    assert torch.equal(base(IDS), before)
    own, shared = dict(base.named_parameters()), dict(adapted.named_parameters())
    assert all(shared[name] is parameter for name, parameter in own.items())


# ---------------------------------------------------------------- PEFT as the judge


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_computes_our_logits_from_our_folder(family, bases, tmp_path):
    ours = our_adapter(bases[family], tmp_path / "adapter", PLAIN)
    model = transformers.AutoModelForCausalLM.from_pretrained(bases[family], dtype=torch.float32)
    plain = model(IDS).logits
    model = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    theirs = model(IDS).logits
    torch.testing.assert_close(ours(IDS), theirs, atol=1e-5, rtol=1e-5)
    assert (theirs - plain).abs().max() > 0.1


SETTINGS = {
    "plain": {},
    "query and value": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"use_rslora": True},
    "expression": {"target_modules": r".*\.1\.mlp\.(up|down)_proj"},
    "all-linear": {"target_modules": "all-linear"},
    "some layers": {"layers_to_transform": [1]},
    "patterns": {
        "rank_pattern": {"k_proj": 2, r"layers\.1\.mlp\..*": 6},
        "alpha_pattern": {"0.self_attn.q_proj": 3, "down_proj": 5},
    },
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_we_compute_the_logits_of_peft_from_its_folder(settings, bases, tmp_path):
    family = list(FAMILIES)[list(SETTINGS).index(settings) % 3]
    theirs = peft_adapter(bases[family], tmp_path, **SETTINGS[settings])
    loaded = load_adapted(tmp_path)
    torch.testing.assert_close(loaded.model(IDS), theirs, atol=1e-5, rtol=1e-5)
    assert (loaded.model(IDS) - load_model(bases[family]).model(IDS)).abs().max() > 0.1
    # Written again, it is still the same adapter.
    again = tmp_path / "again"
    again.mkdir()
    write_adapter_folder(again, loaded.adapter, {})
    save_adapter(again, loaded.model, loaded.adapter, {"step": "1"})
    model = transformers.AutoModelForCausalLM.from_pretrained(bases[family], dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, again).eval()
    torch.testing.assert_close(model(IDS).logits, theirs, atol=1e-5, rtol=1e-5)


def test_twenty_steps_of_adamw_have_the_losses_of_peft(base, tmp_path):
    lora = LoraConfig(8, 32, LORA_TARGETS)
    our_adapter(base, tmp_path, lora)
    ours = load_adapted(tmp_path).model.train()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path, is_trainable=True).train()
    batches = torch.randint(0, 9, (20, 4, 17), generator=torch.Generator().manual_seed(5))
    losses = []
    for model, logits_of in ((ours, lambda x: ours(x)), (theirs, lambda x: theirs(x).logits)):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        losses.append([])
        for batch in batches:
            logits = logits_of(batch[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    torch.testing.assert_close(*map(torch.tensor, losses), atol=1e-4, rtol=0)
    assert losses[0][-1] < losses[0][0] - 0.5


def test_our_config_meets_the_conditions_of_vllm(base, tmp_path):
    our_adapter(base, tmp_path, PLAIN)
    config = config_of(tmp_path)
    assert config["peft_type"] == "LORA" and config["r"] <= 16 and config["lora_alpha"] == 10
    assert config["modules_to_save"] is None and not config["use_dora"] and config["bias"] == "none"
    assert config["target_modules"] == list(LORA_TARGETS)  # written out, PEFT's default are two
    assert config["base_model_name_or_path"] == str(base)
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert all(name.startswith("base_model.model.model.layers.") for name in names)


def test_merged_weights_compute_the_same(base, tmp_path):
    model = our_adapter(base, tmp_path, PLAIN)
    before = model(IDS)
    merge_lora(model)
    torch.testing.assert_close(model(IDS), before, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    assert model.tensors().keys() == load_model(base).model.tensors().keys()


# ---------------------------------------------------------------- the base


def test_an_adapter_knows_its_purpose_and_its_base(base, tmp_path):
    our_adapter(base, tmp_path, PLAIN)
    loaded = load_model(tmp_path)
    assert loaded.step == 7 and loaded.purpose.task == "questions"
    assert loaded.adapter.lora == PLAIN and loaded.adapter.base == str(base)


def test_a_base_that_changed_is_refused(base, tmp_path):
    copy, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(base, copy)
    our_adapter(copy, adapter, PLAIN)
    load_model(adapter, base=base)  # the same content elsewhere
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(UserError, match="not, or no longer, the model that the adapter"):
        load_model(adapter)


def test_the_bases_files_are_hashed_once_while_they_stay(base, tmp_path, monkeypatch):
    copy, adapter, hashed = tmp_path / "base", tmp_path / "adapter", []
    shutil.copytree(base, copy)
    our_adapter(copy, adapter, PLAIN)
    monkeypatch.setattr(
        "shuoshu.models.adapters.sha256_of", lambda path: hashed.append(path) or sha256_of(path)
    )
    load_model(adapter)
    load_model(adapter)
    assert not hashed  # it was when the adapter was written
    path = copy / "model.safetensors"
    status, raw = path.stat(), bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)  # of the same size, with the same time
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match="not, or no longer, the model"):
        load_model(adapter)
    assert hashed == [path]


def test_the_message_on_a_lost_base_says_where_it_was_and_how_to_name_it(base, tmp_path):
    copy, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(base, copy)
    our_adapter(copy, adapter, PLAIN)
    copy.rename(tmp_path / "moved")
    with pytest.raises(UserError) as error:
        load_model(adapter)
    assert str(copy) in str(error.value) and "--base=FOLDER" in str(error.value)
    assert load_model(adapter, base=tmp_path / "moved").adapter.base == str(tmp_path / "moved")


def test_a_relative_base_is_sought_here_and_beside_the_adapter(base, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "a" / "base")
    our_adapter(tmp_path / "a" / "base", tmp_path / "a" / "adapter", PLAIN)
    change_json(tmp_path / "a" / "adapter", base_model_name_or_path="../base")
    monkeypatch.chdir(tmp_path)
    assert load_model("a/adapter").adapter.base == str(tmp_path / "a" / "base")
    change_json(tmp_path / "a" / "adapter", base_model_name_or_path="a/base")
    load_model("a/adapter")


def test_an_adapter_is_no_base(base, tmp_path):
    our_adapter(base, tmp_path, PLAIN)
    with pytest.raises(UserError, match="is an adapter itself"):
        load_model(tmp_path, base=tmp_path)
    change_json(tmp_path, base_model_name_or_path=str(tmp_path))
    with pytest.raises(UserError, match="is an adapter itself"):
        load_model(tmp_path)


# ---------------------------------------------------------------- what is refused


UNSUPPORTED = [
    ({"use_dora": True}, "use_dora"),
    ({"lora_bias": True}, "lora_bias"),
    ({"bias": "lora_only"}, "bias=lora_only"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ({"target_parameters": ["x"]}, "target_parameters"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"r": 5}, "has rank 4"),
    ({"r": 10**9}, "has rank 4"),
    ({"r": "4"}, "has rank 4"),
    ({"lora_alpha": None}, "not a number"),
    ({"lora_alpha": float("nan")}, "not a number"),
    ({"lora_alpha": 10**400}, "int too large"),
    ({"lora_dropout": 10**400}, "int too large"),
    ({"base_model_name_or_path": None}, "doesn't say which model it was trained on"),
    ({"lora_dropout": 2}, "out of range"),
    ({"rank_pattern": {"(": 4}}, "can't be used"),
    ({"rank_pattern": [4]}, "can't be used"),
    ({"alpha_pattern": {"q_proj": "x"}}, "not a number"),
    ({"base_model_name_or_path": 5}, "not a path"),
    ({"base_model_name_or_path": "a\0b"}, "not a path"),
    ({"base_model_name_or_path": "Qwen/Qwen3-0.6B"}, "'Qwen/Qwen3-0.6B', which is no folder"),
    ({"base_model_name_or_path": "x" * 5000}, "which is no folder"),
]


@pytest.fixture(scope="module")
def adapter(bases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    our_adapter(bases["llama"], folder, PLAIN)
    return folder


@pytest.mark.parametrize(("change", "message"), UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(change, message, adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    change_json(folder, **change)
    with pytest.raises(UserError, match=message) as error:
        load_model(folder)
    assert len(str(error.value)) < 400


def test_unknown_fields_are_ignored(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    change_json(folder, peft_version="9.9", of_the_future={"a": 1}, target_modules=None)
    load_model(folder)


def test_a_regular_expression_that_takes_forever_is_stopped(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    change_json(folder, target_modules="(.*.*)*" * 20 + "X")  # is not run at all
    load_model(folder)
    change_json(folder, alpha_pattern={"([a-z._0-9]|[a-z._0-9][a-z._0-9])*[0-9]": 4})
    with pytest.raises(UserError, match="takes too long"):
        load_model(folder)


def test_many_slow_regular_expressions_have_one_limit_together(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("shuoshu.models.adapters.PATTERN_SECONDS", 0.1)
    folder, asked = tmp_path / "adapter", []
    shutil.copytree(adapter, folder)
    change_json(folder, alpha_pattern={f"no_layer_{n}": 4 for n in range(2000)})

    class Slow:
        def match(self, layer, timeout):
            asked.append(timeout)
            time.sleep(0.03)  # below the limit of each

    monkeypatch.setattr("shuoshu.models.adapters.regex.compile", lambda _: Slow())
    with pytest.raises(UserError, match="takes too long"):
        load_model(folder)
    assert len(asked) < 10 and max(asked) <= 0.1


A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")
DAMAGES = {
    "a layer that the base lacks": (
        lambda t: {name.replace("layers.1", "layers.7"): x for name, x in t.items()},
        "which is no layer of its base",
    ),
    "no layer matches": (
        lambda t: {name.replace("model.layers", "transformer.h"): x for name, x in t.items()},
        "which is no layer of its base",
    ),
    "another prefix": (
        lambda t: {name.removeprefix("base_model.model."): x for name, x in t.items()},
        "not a low-rank update",
    ),
    "half a pair": (lambda t: {k: v for k, v in t.items() if k != A}, "not pairs"),
    "halves that don't fit": (lambda t: t | {A: torch.zeros(5, 48)}, "doesn't fit its other half"),
    "another width": (lambda t: t | {A: torch.zeros(4, 47)}, "instead of"),
    "not a number": (lambda t: t | {A: torch.full((4, 48), torch.nan)}, "not finite"),
    "an embedding": (
        lambda t: t | {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(4, 512)},
        "lora_embedding_A is not a low-rank update",
    ),
    "the head": (
        lambda t: (
            t
            | {
                "base_model.model.lm_head.lora_A.weight": torch.zeros(4, 48),
                "base_model.model.lm_head.lora_B.weight": torch.zeros(512, 4),
            }
        ),
        "lm_head, which is no layer",
    ),
    "a saved module": (
        lambda t: t | {"base_model.model.lm_head.weight": torch.zeros(512, 48)},
        "lm_head.weight is not a low-rank update",
    ),
    "dora": (
        lambda t: t | {A.replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(48)},
        "lora_magnitude_vector is not a low-rank update",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_tensors_that_do_not_fit_are_refused(damage, adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    change, message = DAMAGES[damage]
    save_file(
        change(load_file(folder / "adapter_model.safetensors")),
        folder / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_a_flipped_bit_and_a_pickled_adapter_are_refused(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_model(folder)
    path.rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors"):
        load_model(folder)


def test_another_tokenizer_is_refused(adapter, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    other = train_bpe(["abcdefg hijk" * 50], 300)
    for file, text in other.files(64, "").items():
        (folder / file).write_text(text, encoding="utf-8")
    load_model(folder)  # it was trained with its base's tokenizer, and says so
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path), path)  # of another program
    with pytest.raises(UserError, match="another tokenizer"):
        load_model(folder)


def test_frozen_weights_cost_no_flops_of_their_own_gradients():
    model = tiny_gpt()
    whole = model.flops_per_token()
    add_lora(model, PLAIN)
    adapter = sum(tensor.numel() for tensor in model.tensors().values())
    matrices = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    matrices -= model.model.embed_tokens.weight.numel()  # looked up, not multiplied
    assert model.flops_per_token() == whole + 6 * adapter - 2 * matrices


@given(data=st.data())
def test_any_damage_to_the_config_is_refused_or_harmless(data, adapter, damage, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged") / "adapter"
    shutil.copytree(adapter, folder)
    document = config_of(folder) | {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"0.x": 3}}
    (folder / "adapter_config.json").write_text(json.dumps(damage(data, document)))
    with suppress(UserError):
        assert load_model(folder).model(IDS).isfinite().all()
