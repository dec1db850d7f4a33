"""shuoshu/generation/sampling.py: valid UTF-8, batches, ends of texts, and the choice of tokens."""

import dataclasses
import math
from functools import cached_property
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from model import GPT, GPTConfig, KVCache
from shuoshu.core.command_settings import SampleSettings
from shuoshu.generation import sampling
from shuoshu.generation.cpu_decoder import CpuDecoder, next_token_fn
from shuoshu.generation.judge import score_answers
from shuoshu.generation.sampling import (
    MAX_COMPLETION,
    Context,
    SamplingParams,
    StopStringStream,
    TextGenerator,
    penalise_repetition,
    pick,
)
from shuoshu.generation.utf8 import WHOLE, Utf8Mask


@pytest.fixture(scope="module")
def wild(tokenizer):
    """A generator whose untrained model often prefers tokens that are parts of characters."""
    torch.manual_seed(0)
    config = GPTConfig(
        vocab_size=math.ceil(tokenizer.n_vocab / 64) * 64 + 64,
        block_size=48,
        n_layer=1,
        n_head=2,
        n_embd=16,
    )
    model = GPT(config).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=1.0)
    return TextGenerator(model, tokenizer)


@pytest.fixture
def trained(pretrained_model):
    return TextGenerator(*pretrained_model)


def strict(tokenizer, completion):
    """The text of the ids; raises unless it is valid UTF-8 with whole characters."""
    return b"".join(tokenizer.token_bytes[i] for i in completion.ids).decode("utf-8")


def test_no_text_of_100_000_tokens_holds_a_broken_character(wild, tokenizer):
    tokens = 0
    for params in (
        SamplingParams(250, 1.5, None),
        SamplingParams(250, 1.5, 1),
        SamplingParams(250, 1.5, 5),
        SamplingParams(250, 1.5, None, 0.9, 0.01, 1.3),
    ):
        for result in wild.complete([[tokenizer.end]] * 140, params, range(140)):
            assert strict(tokenizer, result) == result.text
            assert "�" not in result.text
            assert result.reason in ("end", "length")
            assert len(result.ids) <= params.max_new_tokens + 3  # 3: to complete a character
            tokens += len(result.ids)
    assert tokens > 100_000


def test_without_the_mask_such_a_model_does_break_characters(wild, tokenizer):
    ids = torch.randint(
        0, len(tokenizer.ranks), (2000,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    assert "�" in tokenizer.decode(ids)


def test_a_length_limit_lets_the_character_finish(wild, tokenizer):
    seen = set()
    params = SamplingParams(1, 1.5, None)
    for result in wild.complete([[tokenizer.end]] * 200, params, range(200)):
        assert strict(tokenizer, result) == result.text
        seen.add(len(result.ids))
    assert max(seen) > 1  # at least one text was extended


def test_same_seed_same_text_alone_or_in_a_batch(trained, tokenizer):
    prompts = [
        tokenizer.encode(text) for text in ("清晨，沈砚在渡口", "赵", "第二天", "黄昏时分，柳青禾")
    ]
    params = SamplingParams(90, 1.0, 50)  # rows reach the block of 64 at different steps
    together = trained.complete(prompts, params, [1, 2, 3, 4])
    alone = [
        trained.complete([prompt], params, [seed])[0]
        for prompt, seed in zip(prompts, [1, 2, 3, 4], strict=True)
    ]
    assert [r.ids for r in together] == [r.ids for r in alone]
    others = trained.complete([prompts[0]] * 4, params, [1, 2, 3, 4])
    assert len({r.text for r in others}) == 4


def test_greedy_text_follows_uncached_logits_up_to_the_block(trained, tokenizer):
    prompt = tokenizer.encode("清晨，沈砚在渡口")
    [completion] = trained.complete([prompt], SamplingParams(40, 0.0), [0])
    context = list(prompt)
    for token in completion.ids:
        logits = trained.model(torch.tensor([context]))[0, -1, : tokenizer.n_vocab - 5]
        assert token == logits.argmax().item()
        context.append(token)


def test_a_prompt_longer_than_the_block_is_cut_to_its_last_half_block(trained, tokenizer):
    prompt = tokenizer.encode("清晨，沈砚在渡口望着河面出神。" * 10)
    [whole] = trained.complete([prompt], SamplingParams(8, 0.0), [0])
    [tail] = trained.complete([prompt[-(trained.block // 2) :]], SamplingParams(8, 0.0), [0])
    assert whole.ids == tail.ids


def test_the_events_of_a_stream_join_to_the_text(trained, tokenizer):
    prompts = [tokenizer.encode("沈砚"), tokenizer.encode("赵铁匠说：")]
    texts = ["", ""]
    for events in trained.stream(prompts, SamplingParams(60), [5, 6]):
        texts = [text + event.new_text for text, event in zip(texts, events, strict=True)]
        for text, event in zip(texts, events, strict=True):
            assert event.finished is None or event.finished.text == text
    assert all(event.finished for event in events)


def test_a_stop_string_ends_the_text_before_it_and_is_never_shown(trained, tokenizer):
    prompt = tokenizer.encode("清晨，沈砚在渡口")
    [free] = trained.complete([prompt], SamplingParams(60, 0.0), [0])
    stop = free.text[10:13]
    shown = ""
    for [event] in trained.stream([prompt], SamplingParams(60, 0.0, stop=(stop,)), [0]):
        shown += event.new_text
    assert event.finished.reason == "stop"
    assert event.finished.text == shown == free.text[: free.text.index(stop)]


@given(
    pieces=st.lists(st.text("ab", max_size=3), max_size=20),
    stop=st.text("ab", min_size=1, max_size=4),
)
def test_a_stop_string_stream_emits_the_text_before_the_first_stop_string(pieces, stop, tokenizer):
    stream = StopStringStream(tokenizer, (stop,))
    shown = ""
    for token in [tokenizer.ranks[c.encode()] for c in "".join(pieces)]:
        shown += stream.push(token)
        assert stop not in shown
        if stream.is_stopped:
            break
    shown += stream.flush()
    assert shown == "".join(pieces).partition(stop)[0]


def test_the_end_token_ends_the_text_and_is_no_part_of_it(pretrained_model):
    model, tokenizer = pretrained_model
    uniform = GPT(dataclasses.replace(model.config)).eval()  # all tokens are equally likely
    head = torch.zeros_like(model.lm_head.weight)
    uniform.load_tensors({**model.tensors(), "lm_head.weight": head})
    generator = TextGenerator(uniform, tokenizer)
    prompts = [[tokenizer.end]] * 64
    results = generator.complete(prompts, SamplingParams(600, 1.0, None), range(64))
    ended = [r for r in results if r.reason == "end"]
    assert ended and all(tokenizer.end not in r.ids for r in ended)


def test_an_interruption_ends_on_a_whole_character(wild, tokenizer):
    calls = iter(range(1000))
    params = SamplingParams(500, 1.5, None)
    [result] = wild.complete([[tokenizer.end]], params, [3], lambda: next(calls) >= 20)
    assert result.reason in ("interrupted", "end")
    assert strict(tokenizer, result) == result.text
    assert len(result.ids) <= 24


class CountCopies(TorchFunctionMode):
    """Counts the calls with which a GPU would copy results to the host, or a list from it."""

    def __init__(self):
        super().__init__()
        self.to_host = self.to_device = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.to_host += function in (torch.Tensor.tolist, torch.Tensor.item)
        self.to_device += function in (torch.tensor, torch.as_tensor) and isinstance(args[0], list)
        return function(*args, **(kwargs or {}))


def test_a_step_on_a_gpu_reads_from_it_once_and_sends_it_no_lists(wild):
    weight = SimpleNamespace(device=torch.device("cuda"))
    on_gpu = SimpleNamespace(lm_head=SimpleNamespace(weight=weight))
    on_gpu.next_logits = wild.model.next_logits
    generator = TextGenerator(wild.model, wild.tokenizer)
    generator.next_token = next_token_fn(on_gpu)
    stream = generator.stream([[5], [6]], SamplingParams(40, 1.5, None), [0, 0])
    next(stream)
    with CountCopies() as copies:
        for _ in range(20):
            next(stream)
    assert (copies.to_host, copies.to_device) == (20, 0)


# ---------------------------------------------------------------- choosing a token


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -torch.inf]])


def share(params: SamplingParams, draws: int = 4000) -> list[float]:
    """The relative frequency of each token, over evenly spread draws."""
    u = (torch.arange(draws) + 0.5) / draws
    counts = torch.bincount(pick(LOGITS.expand(draws, -1), params, u), minlength=5)
    return (counts / draws).tolist()


def test_tokens_are_drawn_with_their_probabilities():
    assert share(SamplingParams(temperature=1.0, top_k=None)) == pytest.approx(
        LOGITS.softmax(-1)[0].tolist(), abs=1e-3
    )
    assert share(SamplingParams(temperature=0.5, top_k=None)) == pytest.approx(
        (LOGITS / 0.5).softmax(-1)[0].tolist(), abs=1e-3
    )
    assert share(SamplingParams(temperature=1.0, top_k=2)) == pytest.approx(
        [*LOGITS[0, :2].softmax(-1).tolist(), 0, 0, 0], abs=1e-3
    )


def test_top_p_and_min_p_keep_the_likeliest():
    def with_(**limits):
        return share(SamplingParams(temperature=1.0, top_k=None, **limits))

    first = LOGITS.softmax(-1)[0, 0].item()
    assert with_(top_p=first - 0.01) == [1, 0, 0, 0, 0]
    assert with_(top_p=first + 0.01)[2:] == [0, 0, 0]
    assert with_(min_p=0.2)[2:] == [0, 0, 0]  # e^-2 < 0.2 < e^-1
    assert with_(top_p=0.0) == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0.0, 1e-46, 1e-30, 1e-3])
def test_a_vanishing_temperature_is_greedy(temperature):
    assert share(SamplingParams(temperature=temperature, top_k=None)) == [1, 0, 0, 0, 0]


def legal(name: str) -> st.SearchStrategy[float]:
    """Every value that sample.py allows for a setting."""
    [field] = [field for field in dataclasses.fields(SampleSettings) if field.name == name]
    return st.floats(field.metadata["low"], field.metadata["high"])


@given(
    logits=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=4, max_size=4),
    seen=st.lists(st.booleans(), min_size=5, max_size=5),
    u=st.floats(0, 1, exclude_max=True, width=32),
    temperature=legal("temperature"),
    top_k=st.none() | st.integers(1, 6),
    top_p=legal("top_p"),
    min_p=legal("min_p"),
    penalty=legal("repetition_penalty"),
)
@example([2.0, 1.0, 0.0, -1.0], [False] * 5, 0.5, 1e-46, None, 1.0, 0.0, 1.0)
def test_with_any_legal_settings_an_allowed_token_is_drawn(
    logits, seen, u, temperature, top_k, top_p, min_p, penalty
):
    params = SamplingParams(1, temperature, top_k, top_p, min_p, penalty)
    logits = torch.tensor([[*logits, -torch.inf]])
    logits = penalise_repetition(logits, torch.tensor([seen]), penalty)
    assert 0 <= pick(logits, params, torch.tensor([u])).item() < 4


def test_the_repetition_penalty_lowers_every_seen_logit_whatever_its_sign():
    seen = torch.tensor([[True, False, False, True, False]])
    assert penalise_repetition(LOGITS, seen, 2.0)[0].tolist() == [1.0, 1.0, 0.0, -2.0, -torch.inf]


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_the_end_tokens_of_earlier_turns_are_not_penalised(tokenizer, turns):
    """Without a prompt, the text begins after an end token, too."""

    class EndingModel(GPT):
        def next_logits(self, ids, *arguments):
            logits = torch.zeros(len(ids), self.config.vocab_size)
            logits[:, tokenizer.end], logits[:, tokenizer.ranks[b"a"]] = 1.0, 0.9
            return logits

    shape = GPTConfig(tokenizer.n_vocab, block_size=64, n_layer=1, n_head=1, n_embd=8)
    turn = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    prompt = tokenizer.render(turn * turns)[0]
    params = SamplingParams(1, temperature=0.0, repetition_penalty=2.0)
    generator = TextGenerator(EndingModel(shape), tokenizer)
    assert generator.complete([prompt], params, [0])[0].reason == "end"


# ---------------------------------------------------------------- a full block


@pytest.fixture(scope="module")
def attentive(tokenizer):
    """An untrained model whose every token depends on all of its context."""
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(
            vocab_size=math.ceil(tokenizer.n_vocab / 64) * 64,
            block_size=64,
            n_layer=2,
            n_head=2,
            n_embd=32,
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("length", [1, 10, 33, 48, 50])
def test_when_the_block_is_full_the_prompt_is_prefilled_again_before_the_latest_tokens(
    attentive, tokenizer, text, length
):
    """The ids equal those of a model without a cache that reads exactly this context each step."""
    model, block = attentive, attentive.config.block_size
    prompt = tokenizer.encode(text[500:700])[:length]
    mask, state = Utf8Mask(tokenizer, model.config.vocab_size, torch.device("cpu")), WHOLE
    expected, context, refills = [], list(prompt), []
    kept = prompt if length <= 48 else []  # three quarters of the block
    for _ in range(130):
        logits = model(torch.tensor([context]))[0, -1].masked_fill(
            mask.forbidden[state], -torch.inf
        )
        logits[tokenizer.end] = -torch.inf
        token = int(logits.argmax())
        state = int(mask.after[state, token])
        expected.append(token)
        if len(context) == block:
            following = expected if kept else [*prompt, *expected]
            context = [*kept, *following[-((block - len(kept)) // 2) :]]
            refills.append(len(expected))
        else:
            context.append(token)
    assert len(refills) >= 3
    generator = endless(model, tokenizer)
    [result] = generator.complete([prompt], SamplingParams(130, 0.0, keeps_prompt=True), [0])
    assert result.ids[:130] == expected
    [slid] = generator.complete([prompt], SamplingParams(130, 0.0), [0])
    assert slid.ids[: refills[0]] == expected[: refills[0]]
    assert (slid.ids[:130] == expected) == (not kept)


def endless(model, tokenizer):
    """A generator for the model that never draws the end token."""

    class EndlessModel(GPT):
        def next_logits(self, *arguments):
            return without_end(super().next_logits(*arguments))

    class EndlessGenerator(TextGenerator):
        @cached_property
        def next_token(self):
            decoder = CpuDecoder(self.model)
            return lambda ids, cache: without_end(decoder(ids, cache))

    def without_end(logits):
        logits[:, tokenizer.end] = -torch.inf
        return logits

    copy = EndlessModel(model.config).eval()
    copy.load_tensors(model.tensors())
    return EndlessGenerator(copy, tokenizer)


def test_a_text_needs_a_cache_for_its_own_positions_not_for_the_block(
    pretrained_model, monkeypatch
):
    """In a model with a context of 40,960, a cache for the whole block takes gigabytes."""
    model, tokenizer = pretrained_model
    long = GPT(dataclasses.replace(model.config, block_size=40_960)).eval()
    long.load_tensors(model.tensors())
    rooms, real = [], KVCache
    monkeypatch.setattr(
        sampling, "KVCache", lambda *args: rooms.append(real(*args).k.shape[3]) or real(*args)
    )
    prompts = [tokenizer.encode(text) for text in ("清晨，沈砚在渡口", "赵")]
    params = SamplingParams(30, 0.0)
    texts = [TextGenerator(m, tokenizer).complete(prompts, params, [0, 0]) for m in (long, model)]
    assert texts[0] == texts[1]
    longest = max(map(len, prompts))
    assert rooms == [longest + 30 + MAX_COMPLETION] * 2
    score_answers(TextGenerator(long, tokenizer), prompts[:1], ["没有人写。", "好"])
    label = len(tokenizer.encode("没有人写。"))
    assert rooms[2:] == [longest + label]


def test_a_text_that_reaches_the_end_of_its_cache_is_finished(wild, tokenizer):
    """With the most tokens that complete a character, the last one read is at the last place."""
    for seed in range(40):
        prompts = [[tokenizer.end], [tokenizer.end] * 5]
        for result in wild.complete(prompts, SamplingParams(2, 1.5, None), [seed, seed + 100]):
            assert strict(tokenizer, result) == result.text


@pytest.mark.parametrize(
    "kept, length, expected",
    [
        (10, 47, [*range(47)]),
        (10, 48, [*range(10), *range(29, 48)]),
        (10, 200, [*range(10), *range(181, 200)]),
    ],
)
def test_a_full_context_is_cut_to_the_prompt_and_half_of_the_remaining_block(
    kept, length, expected
):
    assert Context(list(range(length)), kept).fitting(48) == expected


@pytest.mark.parametrize("kept", [0, 37, 60, 100])
def test_a_prompt_too_long_to_be_kept_shrinks_to_the_last_half_block(kept):
    assert Context(list(range(120)), kept).fitting(48) == [*range(96, 120)]


def test_complete_many_keeps_the_order_of_the_prompts(trained, tokenizer):
    prompts = [
        tokenizer.encode("清晨，沈砚在渡口望着河面出神。"[:n]) for n in (9, 1, 5, 12, 3, 7, 2)
    ]
    alone = [
        trained.complete([prompt], SamplingParams(12), [seed])[0].ids
        for seed, prompt in enumerate(prompts)
    ]
    done = []
    results = trained.complete_many(prompts, SamplingParams(12), range(7), 3, progress=done.append)
    assert [result.ids for result in results] == alone and done == [3, 6, 7]
    assert trained.complete_many([], SamplingParams(12), [], 3) == []


def test_after_a_stop_the_unfinished_prompts_have_no_text(trained, tokenizer):
    prompts = [
        tokenizer.encode(text) for text in ("清", "清晨，", "清晨，沈砚", "清晨，沈砚在渡口")
    ]
    done = []
    params = SamplingParams(6)
    results = trained.complete_many(prompts, params, range(4), 2, lambda: bool(done), done.append)
    assert [bool(result) for result in results] == [True, True, False, False]
