"""shuoshu/generation/cpu_decoder.py: its logits are those of the model with its current weights."""

import dataclasses

import pytest
import torch

from model import GPT, GPTConfig, KVCache
from shuoshu.generation import cpu_decoder, sampling
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.cpu_decoder import CpuDecoder
from shuoshu.generation.sampling import SamplingParams, TextGenerator, largest
from shuoshu.models.lora import LoraConfig, add_lora, share_parameters, target_layers
from shuoshu.models.purpose import CONTINUES_TEXT
from shuoshu.models.weights import LoadedModel

SHAPE = GPTConfig(
    vocab_size=96,
    block_size=32,
    n_layer=2,
    n_head=4,
    n_kv_head=2,
    n_embd=48,
    head_dim=16,
    n_hidden=80,
)
FOREIGN = dataclasses.replace(SHAPE, qk_norm=False, qkv_bias=True, tie_embeddings=True)


def make_model(config: GPTConfig = SHAPE) -> GPT:
    """A model in which each weight and eps has an effect: norm weights are not 1, inputs small."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                1 + 0.3 * torch.randn_like(parameter)
                if name.endswith("norm.weight")
                else 0.2 * torch.randn_like(parameter)
            )
        model.model.embed_tokens.weight.mul_(0.02)
    return model


def decode(
    model: GPT, lengths: list[int], steps: int, base: CpuDecoder | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits, ids): the decoder's logits (B, steps, V) after prompts; ids (B, lengths + steps)."""
    ids = torch.randint(
        0, 96, (len(lengths), max(lengths) + steps), generator=torch.Generator().manual_seed(1)
    )
    with torch.inference_mode():
        cache = KVCache(model.config, len(lengths))
        sampling.prefill(
            model, cache, [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)]
        )
        decoder = CpuDecoder(model, base)
        tokens = [
            torch.stack([row[n + step] for row, n in zip(ids, lengths, strict=True)])[:, None]
            for step in range(steps)
        ]
        return torch.stack([decoder(token, cache) for token in tokens], dim=1), ids


@pytest.mark.parametrize("lengths", [[5], [7, 7, 7], [3, 11, 6]], ids=["alone", "even", "ragged"])
@pytest.mark.parametrize(
    "config",
    [SHAPE, dataclasses.replace(SHAPE, tie_embeddings=True, n_kv_head=4), FOREIGN],
    ids=["grouped", "tied", "foreign"],
)
@pytest.mark.parametrize("packed", ["right", "missing", "wrong", "wrong in batches"])
def test_decoded_tokens_get_the_logits_of_whole_rows(lengths, config, packed, monkeypatch):
    real = torch.ops.mkldnn._linear_pointwise

    def wrong(x, **others):
        """The product of another layout: its columns are in another order."""
        return real(x, **others).roll(int(len(x) > 1 or packed == "wrong"), dims=1)

    if packed != "right":
        operator = None if packed == "missing" else wrong
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator)
    model = make_model(config)
    logits, ids = decode(model, lengths, 9)
    for row, n in enumerate(lengths):
        torch.testing.assert_close(
            logits[row], model(ids[row : row + 1, : n + 9])[0, n:], atol=2e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    "config, name",
    [(config, name) for config in (SHAPE, FOREIGN) for name, _ in GPT(config).named_parameters()],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_decoder_reads_every_parameter_of_the_model(config, name):
    model = make_model(config)
    before, ids = decode(model, [5], 4)
    with torch.no_grad():
        model.get_parameter(name).add_(0.3 * torch.randn_like(model.get_parameter(name)))
    after, _ = decode(model, [5], 4)
    assert not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(after[0], model(ids)[0, 5:], atol=5e-5, rtol=1e-4)


def adapt(model: GPT, targets: tuple[str, ...]) -> GPT:
    """A model that shares the weights, with adapters for these layers; ranks differ."""
    adapted = share_parameters(model)
    ranks = {name: 2 + n % 4 for n, name in enumerate(target_layers(model, targets))}
    add_lora(adapted, LoraConfig(3, 5.0, targets, ranks=ranks))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted.eval()


ALL_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("names", [ALL_LAYERS, ("k_proj", "up_proj"), ("v_proj", "down_proj")])
@pytest.mark.parametrize("shares", [False, True])
def test_a_decoder_adds_what_adapters_add(names, shares):
    model = make_model(FOREIGN)
    torch.manual_seed(1)
    adapted = adapt(model, names)
    base = CpuDecoder(model) if shares else None
    before, ids = decode(model, [5, 9], 6)
    logits, _ = decode(adapted, [5, 9], 6, base)
    assert not torch.allclose(logits, before, atol=1e-2)
    for row, n in enumerate((5, 9)):
        whole = adapted(ids[row : row + 1, : n + 6])[0, n:]
        torch.testing.assert_close(logits[row], whole, atol=2e-5, rtol=1e-5)
    assert torch.equal(decode(model, [5, 9], 6, base)[0], before)  # the base is as it was


def test_a_model_and_its_adapters_share_one_packed_copy_of_the_weights(monkeypatch):
    model = make_model(FOREIGN)
    base = CpuDecoder(model)
    packed, real = [], cpu_decoder.fused_linear
    monkeypatch.setattr(
        cpu_decoder, "fused_linear", lambda *args: packed.append(args) or real(*args)
    )
    decoder = CpuDecoder(adapt(model, ALL_LAYERS), base)
    assert not packed and decoder.head is base.head and decoder.embedding is base.embedding
    assert len(CpuDecoder(model).layers) == 2 and len(packed) == 1 + 4 * 2


@pytest.mark.parametrize("biases", [(False, False), (True, True), (True, False)])
def test_fused_layers_give_their_outputs_side_by_side(biases):
    layers = [torch.nn.Linear(32, 16, bias=bias) for bias in biases]
    x = torch.randn(3, 32)
    with torch.no_grad():
        expected = torch.cat([layer(x) for layer in layers], dim=1)
        assert torch.allclose(
            cpu_decoder.fused_linear(torch.float32, *layers)(x), expected, atol=1e-6
        )


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")
@pytest.mark.parametrize("dtype, packed", [(torch.float32, [2, 8]), (torch.bfloat16, [1, 2, 8])])
def test_products_use_packed_weights_except_for_one_row_in_float32(dtype, packed, monkeypatch):
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        packed = []  # oneDNN refuses to pack bf16 weights on this processor
    real, rows = torch.ops.mkldnn._linear_pointwise, []
    monkeypatch.setattr(
        torch.ops.mkldnn,
        "_linear_pointwise",
        lambda x, **others: rows.append(len(x)) or real(x, **others),
    )
    with torch.inference_mode():
        product = cpu_decoder.fused_linear(dtype, torch.nn.Linear(32, 32, bias=False))
        rows.clear()
        for count in (1, 2, 8):
            product(torch.ones(count, 32, dtype=dtype))
    assert rows == packed


@pytest.mark.parametrize("is_autocast", [True, False])
def test_the_decoder_in_bf16_is_as_accurate_as_the_model(is_autocast):
    exact, model = make_model(), make_model() if is_autocast else make_model().bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        logits, ids = decode(model, [5, 9], 9)
        assert CpuDecoder(model).dtype == torch.bfloat16
        whole = torch.stack(
            [model(ids[row : row + 1, : n + 9])[0, n:].float() for row, n in enumerate((5, 9))]
        )
    accurate = torch.stack(
        [exact(ids[row : row + 1, : n + 9])[0, n:] for row, n in enumerate((5, 9))]
    )
    assert 0 < (logits - accurate).norm() < 1.3 * (whole - accurate).norm()


def test_a_decoder_does_not_depend_on_autocast_once_it_is_made():
    ids, outputs = torch.arange(8)[:, None, None], []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        decoder = CpuDecoder(make_model())
        for is_autocast in (True, False):
            cache = KVCache(SHAPE, 1)
            with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
                outputs.append(torch.stack([decoder(token, cache) for token in ids]))
    assert torch.equal(*outputs)


def test_a_model_in_training_decodes_with_the_weights_of_its_last_step(tokenizer):
    model = GPT(
        GPTConfig(
            vocab_size=-(-tokenizer.n_vocab // 64) * 64,
            block_size=64,
            n_layer=2,
            n_head=2,
            n_embd=32,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    prompt = tokenizer.encode("清晨，沈砚在渡口")
    outputs = []
    for _ in range(3):
        generator = TextGenerator(model.eval(), tokenizer)
        outputs.append(generator.complete([prompt], SamplingParams(20, 0.0), [0])[0].ids)
        fresh = GPT(model.config).eval()
        fresh.load_tensors(model.tensors())
        generator = TextGenerator(fresh, tokenizer)
        assert outputs[-1] == generator.complete([prompt], SamplingParams(20, 0.0), [0])[0].ids
        ids = torch.randint(
            0, tokenizer.n_vocab, (4, 33), generator=torch.Generator().manual_seed(len(outputs))
        )
        model.train()(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert outputs[0] != outputs[1] != outputs[2]


def test_a_chat_model_packs_its_weights_once(pretrained_model, monkeypatch):
    model, tokenizer = pretrained_model
    calls = []
    monkeypatch.setattr(
        CpuDecoder,
        "__call__",
        lambda self, *arguments, real=CpuDecoder.__call__: (
            calls.append(self) or real(self, *arguments)
        ),
    )
    chat_model = ChatModel(LoadedModel(model, tokenizer, 0, CONTINUES_TEXT))
    prompts = [[tokenizer.end]]
    expected = TextGenerator(model, tokenizer).complete(prompts, SamplingParams(20), [1])
    calls.clear()
    for _ in range(2):
        [completion] = chat_model.complete(prompts, SamplingParams(20), [1])
        assert [completion] == expected
        assert calls == [chat_model.next_token] * (len(completion.ids) - 1)
        calls.clear()


@pytest.mark.parametrize("rows, count", [(1, 1), (3, 200), (2, 4095)])
def test_largest_agrees_with_topk(rows, count):
    logits = torch.randn(rows, 4096, generator=torch.Generator().manual_seed(0))
    logits[:, ::5] = -torch.inf
    values, at = largest(logits, count)
    assert torch.equal(values, logits.topk(count)[0]) and torch.equal(values, logits.gather(1, at))
    assert all(len(set(row)) == count for row in at.tolist())


def test_the_repetition_penalty_covers_the_prompt_and_the_answer(pretrained_model):
    model, tokenizer = pretrained_model
    prompts = [tokenizer.encode("清晨，沈砚在渡口"), tokenizer.encode("赵铁匠说：")]
    params = SamplingParams(12, 0.0, repetition_penalty=1e6)
    results = TextGenerator(model, tokenizer).complete(prompts, params, [0, 0])
    for prompt, result in zip(prompts, results, strict=True):
        assert (
            len(result.ids) >= 10
            and len({*result.ids}) == len(result.ids)
            and not {*result.ids} & {*prompt}
        )
