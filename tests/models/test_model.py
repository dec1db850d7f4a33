"""model.py equals Qwen3; the cache, causality, initialisation and config.json."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from transformers import Qwen3ForCausalLM

from model import GPT, GPTConfig, KVCache, rotate
from shuoshu.core.cli import parse
from shuoshu.core.errors import REPO_ROOT
from shuoshu.core.settings import ModelSettings, TrainSettings
from shuoshu.models import weights
from shuoshu.models.families import config_from_hf, config_to_hf
from shuoshu.models.tensor_files import folder_tensors
from shuoshu.models.weights import convert_weights
from shuoshu.text.dataset import IGNORE

ODD = GPTConfig(
    vocab_size=96,
    block_size=32,
    n_layer=2,
    n_head=4,
    n_kv_head=2,
    n_embd=48,
    head_dim=16,
    n_hidden=80,
)  # head_dim is not n_embd / n_head
TIED = dataclasses.replace(ODD, tie_embeddings=True)


def random_ids(config: GPTConfig, rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed)
    )


def model_of(config: GPTConfig, steps: int = 20) -> GPT:
    """A model after a few steps. Its norm weights differ: equal ones would hide swapped tensors."""
    torch.manual_seed(1)
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        ids = random_ids(config, 4, 17, seed=step)
        model(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("config", [ODD, TIED], ids=["untied", "tied"])
def test_transformers_gives_the_same_logits_from_the_folder(config, tokenizer, tmp_path):
    config = dataclasses.replace(config, vocab_size=math.ceil(tokenizer.n_vocab / 64) * 64)
    model = model_of(config)
    weights.write_model_folder(tmp_path, config, tokenizer)
    weights.save_weights(tmp_path, model, tokenizer, 20)
    theirs, info = Qwen3ForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), (
        info
    )
    assert theirs.config.eos_token_id == tokenizer.end
    ids = random_ids(config, 3, 32)
    with torch.no_grad():
        difference = (model(ids) - theirs(ids).logits).abs().max()
    assert difference < 1e-4


@pytest.mark.parametrize("config", [ODD, TIED], ids=["untied", "tied"])
def test_a_folder_that_transformers_writes_is_read(config, tmp_path):
    model = model_of(config)
    theirs = Qwen3ForCausalLM(_hf_config(config))
    theirs.load_state_dict(
        model.tensors()
        | ({"lm_head.weight": model.lm_head.weight} if config.tie_embeddings else {})
    )
    theirs.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    again = weights.model_from_tensors(
        config_from_hf(content), folder_tensors(tmp_path), torch.float32
    ).eval()
    ids = random_ids(config, 2, 20)
    torch.testing.assert_close(again(ids), model(ids))


def _hf_config(config):
    from transformers import Qwen3Config

    return Qwen3Config(
        **{
            k: v
            for k, v in config_to_hf(config).items()
            if k not in ("architectures", "model_type", "rope_theta", "dtype", "torch_dtype")
        }
    )


def test_cached_logits_equal_uncached_up_to_the_block():
    model = model_of(ODD)
    ids = random_ids(ODD, 2, ODD.block_size)
    whole = model(ids)
    cache = KVCache(ODD, rows=2)
    # A prompt, a second chunk, then one token at a time.
    chunks = [ids[:, :7], ids[:, 7:12], *ids[:, 12:].split(1, dim=1)]
    cached = torch.cat([model.lm_head(model.hidden(chunk, cache)) for chunk in chunks], dim=1)
    torch.testing.assert_close(cached, whole, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="holds 32 positions"):
        model.hidden(ids[:, :1], cache)


def test_prompts_of_different_lengths_get_the_same_logits_together_as_alone():
    model = model_of(ODD)
    lengths, steps = [3, 11, 6], 9
    ids = random_ids(ODD, 3, max(lengths) + steps)
    cache = KVCache(ODD, rows=3)
    together = [model.next_logits(ids[:, : max(lengths)], [n - 1 for n in lengths], cache)]
    cache.lengths = list(lengths)
    for step in range(steps):
        nexts = torch.stack([ids[row, n + step] for row, n in enumerate(lengths)])[:, None]
        together.append(model.next_logits(nexts, [0, 0, 0], cache))
    for row, n in enumerate(lengths):
        alone = model(ids[row : row + 1, : n + steps])[0]
        torch.testing.assert_close(
            torch.stack([logits[row] for logits in together]), alone[n - 1 :], atol=1e-5, rtol=0
        )


def test_a_token_changes_no_logit_before_it():
    model = model_of(ODD)
    ids = random_ids(ODD, 1, 20)
    changed = ids.clone()
    changed[0, 12] = (changed[0, 12] + 1) % ODD.vocab_size
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_the_loss_is_float32_over_the_targets_that_are_not_ignored():
    model = model_of(ODD).bfloat16()
    ids = random_ids(ODD, 2, 10)
    targets = ids.roll(-1, 1)
    targets[:, :6] = IGNORE
    loss = model(ids, targets)
    assert loss.dtype == torch.float32
    expected = nn.functional.cross_entropy(
        model(ids)[:, 6:].float().flatten(0, 1), targets[:, 6:].flatten()
    )
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(model(ids, targets, reduction="sum"), expected * 8)


def test_conversion_to_bf16_rounds_weights_but_no_positions():
    exact = model_of(ODD)
    rounded = convert_weights(model_of(ODD), torch.bfloat16)
    assert {parameter.dtype for parameter in rounded.parameters()} == {torch.bfloat16}
    assert torch.equal(rounded.cos, exact.cos) and torch.equal(rounded.sin, exact.sin)
    q = torch.randn(1, 4, ODD.block_size, ODD.head_dim).bfloat16()
    rotated = rotate(q, rounded.cos, rounded.sin)
    assert torch.equal(rotated, rotate(q.float(), exact.cos, exact.sin).bfloat16())
    ids = random_ids(ODD, 2, 20)
    logits, expected = rounded(ids).float(), exact(ids)
    assert 0 < (logits - expected).norm() < 0.03 * expected.norm()


# config/lora.py has no shape: it trains a model that exists.
SHAPES = sorted(path for path in REPO_ROOT.glob("config/*.py") if path.stem != "lora")


@pytest.mark.parametrize("path", SHAPES, ids=lambda path: path.stem)
def test_each_bundled_config_starts_near_the_loss_of_uniform_guessing(path):
    settings = parse(TrainSettings, [str(path)], "")
    shape = {
        field.name: getattr(settings, field.name) for field in dataclasses.fields(ModelSettings)
    }
    torch.manual_seed(0)
    config = GPTConfig(vocab_size=50304 if settings.tie_embeddings else 8192, **shape)
    model = GPT(config).eval()
    ids = random_ids(config, 2, 65)
    with torch.no_grad():
        loss = model(ids[:, :-1], ids[:, 1:]).item()
    assert abs(loss / math.log(config.vocab_size) - 1) < 0.05


def test_dropout_acts_in_training_only():
    model = GPT(dataclasses.replace(ODD, dropout=0.5))
    ids = random_ids(ODD, 1, 16)
    model.train()
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_a_longer_block_keeps_the_logits_of_shorter_rows(tmp_path, tokenizer):
    config = dataclasses.replace(ODD, vocab_size=576)
    model = model_of(config)
    weights.write_model_folder(tmp_path, config, tokenizer)
    weights.save_weights(tmp_path, model, tokenizer, 0)
    longer = weights.load_model(tmp_path, block_size=64).model
    ids = random_ids(config, 1, 32)
    assert torch.equal(longer(ids), model(ids))
    assert longer(random_ids(config, 1, 64)).shape == (1, 64, 576)


def test_weights_that_do_not_fit_are_named():
    model = GPT(ODD)
    tensors = dict(model.tensors())
    tensors["model.norm.weight"] = torch.ones(3)
    tensors["extra"] = tensors.pop("lm_head.weight")
    with pytest.raises(
        ValueError,
        match=r"extra is not part.*lm_head.weight is missing.*model.norm.weight has shape \(3,\)",
    ):
        model.load_tensors(tensors)


@pytest.mark.parametrize(
    "change",
    [{"model_type": "mamba"}, {"rope_scaling": {"type": "yarn"}}, {"attention_bias": True}],
)
def test_another_architecture_is_refused(change):
    with pytest.raises(ValueError, match=r"model_type|only .llama3.|can't be read"):
        config_from_hf(config_to_hf(ODD) | change)


def test_parameters_and_flops_are_counted():
    total, inner = GPT(ODD).count_parameters()
    assert total == inner + 2 * 96 * 48 == sum(p.numel() for p in GPT(ODD).parameters())
    assert GPT(TIED).count_parameters() == (inner + 96 * 48, inner)
    assert GPT(ODD).flops_per_token() == 6 * (inner + 96 * 48) + 12 * 2 * 4 * 16 * 32
