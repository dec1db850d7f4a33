"""shuoshu/generate.py: valid text whatever the model says, the same alone and in a batch, stopping where it should."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import GPT, GPTConfig
from shuoshu.generation.cpu_decoder import CpuDecoder
from shuoshu.generation.sampling import (
    Context,
    SamplingParams,
    StopStringStream,
    complete,
    complete_many,
    penalise,
    pick,
    stream,
)
from shuoshu.generation.utf8 import WHOLE, Utf8Mask


@pytest.fixture(scope="module")
def wild(tokenizer):
    """An untrained model with large logits: it proposes anything, bytes in the middle of characters included."""
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
    return model


def strict(tokenizer, finished):
    return b"".join(tokenizer.token_bytes[i] for i in finished.ids).decode(
        "utf-8"
    )  # raises unless it is valid and whole


def test_no_text_of_100_000_tokens_holds_a_broken_character(wild, tokenizer):
    tokens = 0
    for sampling in (
        SamplingParams(250, 1.5, None),
        SamplingParams(250, 1.5, 1),
        SamplingParams(250, 1.5, 5),
        SamplingParams(250, 1.5, None, 0.9, 0.01, 1.3),
    ):
        for result in complete(wild, tokenizer, [[tokenizer.end]] * 130, sampling, range(130)):
            assert strict(tokenizer, result) == result.text
            assert "�" not in result.text
            assert result.reason in ("end", "length")
            assert len(result.ids) <= sampling.max_new_tokens + 3  # a character may finish
            tokens += len(result.ids)
    assert tokens > 100_000


def test_without_the_mask_such_a_model_does_break_characters(wild, tokenizer):
    ids = torch.randint(
        0, len(tokenizer.ranks), (2000,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    assert "�" in tokenizer.decode(ids)


def test_a_length_limit_lets_the_character_finish(wild, tokenizer):
    seen = set()
    for result in complete(
        wild, tokenizer, [[tokenizer.end]] * 200, SamplingParams(1, 1.5, None), range(200)
    ):
        assert strict(tokenizer, result) == result.text
        seen.add(len(result.ids))
    assert max(seen) > 1  # it happened


def test_same_seed_same_text_alone_or_in_a_batch(pretrained_model):
    model, tokenizer = pretrained_model
    prompts = [
        tokenizer.encode(text) for text in ("清晨，沈砚在渡口", "赵", "第二天", "黄昏时分，柳青禾")
    ]
    sampling = SamplingParams(90, 1.0, 50)  # past the block of 64: rows slide each at its own time
    together = complete(model, tokenizer, prompts, sampling, [1, 2, 3, 4])
    alone = [
        complete(model, tokenizer, [prompt], sampling, [seed])[0]
        for prompt, seed in zip(prompts, [1, 2, 3, 4], strict=True)
    ]
    assert [r.ids for r in together] == [r.ids for r in alone]
    assert (
        len({r.text for r in complete(model, tokenizer, [prompts[0]] * 4, sampling, [1, 2, 3, 4])})
        == 4
    )


def test_greedy_text_is_what_uncached_logits_say_up_to_the_block(pretrained_model):
    model, tokenizer = pretrained_model
    prompt = tokenizer.encode("清晨，沈砚在渡口")
    ids = complete(model, tokenizer, [prompt], SamplingParams(40, 0.0), [0])[0].ids
    state = list(prompt)
    for token in ids:
        assert token == model(torch.tensor([state]))[0, -1, : tokenizer.n_vocab - 5].argmax().item()
        state.append(token)


def test_past_the_block_the_last_half_is_read_again(pretrained_model):
    model, tokenizer = pretrained_model
    block = model.config.block_size
    history = tokenizer.encode("清晨，沈砚在渡口望着河面出神。" * 10)
    whole = complete(model, tokenizer, [history], SamplingParams(8, 0.0), [0])[0].ids
    tail = complete(model, tokenizer, [history[-(block // 2) :]], SamplingParams(8, 0.0), [0])[
        0
    ].ids
    assert whole == tail


def test_the_pieces_of_a_stream_join_to_the_text(pretrained_model):
    model, tokenizer = pretrained_model
    prompts = [tokenizer.encode("沈砚"), tokenizer.encode("赵铁匠说：")]
    pieces = ["", ""]
    for news in stream(model, tokenizer, prompts, SamplingParams(60), [5, 6]):
        if isinstance(news[0], str):
            pieces = [a + b for a, b in zip(pieces, news, strict=True)]
        else:
            assert [r.text for r in news] == pieces


def test_a_stop_string_ends_the_text_before_it_and_is_never_shown(pretrained_model):
    model, tokenizer = pretrained_model
    prompt = tokenizer.encode("清晨，沈砚在渡口")
    free = complete(model, tokenizer, [prompt], SamplingParams(60, 0.0), [0])[0].text
    stop = free[10:13]
    shown = ""
    for news in stream(model, tokenizer, [prompt], SamplingParams(60, 0.0, stop=(stop,)), [0]):
        if isinstance(news[0], str):
            shown += news[0]
        else:
            assert news[0].reason == "stop" and news[0].text == shown == free[: free.index(stop)]


@given(
    pieces=st.lists(st.text("ab", max_size=3), max_size=20),
    stop=st.text("ab", min_size=1, max_size=4),
)
def test_a_writer_shows_just_what_stands_before_the_first_stop_string(pieces, stop, tokenizer):
    writer = StopStringStream(tokenizer, (stop,))
    shown = ""
    for token in [tokenizer.ranks[c.encode()] for c in "".join(pieces)]:
        shown += writer.push(token)
        assert stop not in shown
        if writer.reason:
            break
    shown += writer.finish("length")
    assert shown == "".join(pieces).partition(stop)[0]


def test_end_of_text_ends_it(pretrained_model):
    model, tokenizer = pretrained_model
    eager = GPT(dataclasses.replace(model.config)).eval()
    eager.load_tensors(
        {**model.tensors(), "lm_head.weight": torch.zeros_like(model.lm_head.weight)}
    )  # all alike: the end token's turn comes
    results = complete(
        eager, tokenizer, [[tokenizer.end]] * 64, SamplingParams(600, 1.0, None), range(64)
    )
    ended = [r for r in results if r.reason == "end"]
    assert ended and all(tokenizer.end not in r.ids for r in ended)


def test_an_interruption_ends_on_a_whole_character(wild, tokenizer):
    calls = iter(range(1000))
    result = complete(
        wild,
        tokenizer,
        [[tokenizer.end]],
        SamplingParams(500, 1.5, None),
        [3],
        should_stop=lambda: next(calls) >= 20,
    )[0]
    assert (
        result.reason in ("interrupted", "end")
        and strict(tokenizer, result) == result.text
        and len(result.ids) <= 24
    )


# ---------------------------------------------------------------- choosing a token


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0, -torch.inf]])


def share(sampling: SamplingParams, draws: int = 4000) -> list[float]:
    """How often each token comes, over evenly spread draws."""
    u = (torch.arange(draws) + 0.5) / draws
    return [
        float(x)
        for x in torch.bincount(pick(LOGITS.expand(draws, -1), sampling, u), minlength=5) / draws
    ]


def test_tokens_come_as_often_as_their_probabilities_say():
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
    p = LOGITS.softmax(-1)[0]
    assert share(SamplingParams(temperature=1.0, top_k=None, top_p=float(p[0]) - 0.01)) == [
        1,
        0,
        0,
        0,
        0,
    ]
    assert share(SamplingParams(temperature=1.0, top_k=None, top_p=float(p[0]) + 0.01))[2:] == [
        0,
        0,
        0,
    ]
    assert share(SamplingParams(temperature=1.0, top_k=None, min_p=0.2))[2:] == [
        0,
        0,
        0,
    ]  # e^-2 < 0.2 < e^-1
    assert share(SamplingParams(temperature=1.0, top_k=None, top_p=0.0)) == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-3])
def test_a_vanishing_temperature_is_greedy(temperature):
    assert share(SamplingParams(temperature=temperature, top_k=None)) == [1, 0, 0, 0, 0]


@given(
    st.floats(0, 1, exclude_max=True, width=32),
    st.floats(0.01, 100),
    st.integers(1, 6),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_forbidden_token_never_comes(u, temperature, top_k, top_p, min_p):
    token = pick(
        LOGITS,
        SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p),
        torch.tensor([u]),
    )
    assert 0 <= token.item() < 4


def test_the_repetition_penalty_lowers_every_seen_logit_whatever_its_sign():
    seen = torch.tensor([[True, False, False, True, False]])
    assert penalise(LOGITS, seen, 2.0)[0].tolist() == [1.0, 1.0, 0.0, -2.0, -torch.inf]


# ---------------------------------------------------------------- a prompt that stays


@pytest.fixture(scope="module")
def attentive(tokenizer):
    """An untrained model whose every word hangs on all of its context."""
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
def test_when_the_block_is_full_the_prompt_is_read_again_before_what_was_last_said(
    attentive, tokenizer, text, length
):
    """The ids are those that a model without a cache, given just that context, says step by step."""
    model, block = attentive, attentive.config.block_size
    prompt = tokenizer.encode(text[500:700])[:length]
    mask, state = Utf8Mask(tokenizer, model.config.vocab_size, torch.device("cpu")), WHOLE
    said, context, refills = [], list(prompt), []
    kept = prompt if length <= 48 else []  # three quarters of the block
    for _ in range(130):
        logits = model(torch.tensor([context]))[0, -1].masked_fill(
            mask.forbidden[state], -torch.inf
        )
        logits[tokenizer.end] = -torch.inf
        token = int(logits.argmax())
        state = int(mask.after[state, token])
        said.append(token)
        if len(context) == block:
            context = [*kept, *(said if kept else [*prompt, *said])[-((block - len(kept)) // 2) :]]
            refills.append(len(said))
        else:
            context.append(token)
    assert len(refills) >= 3
    model, reader = endless(model, tokenizer)
    found = complete(
        model, tokenizer, [prompt], SamplingParams(130, 0.0, keeps_prompt=True), [0], reader=reader
    )[0]
    assert found.ids[:130] == said
    slid = complete(model, tokenizer, [prompt], SamplingParams(130, 0.0), [0], reader=reader)[0]
    assert slid.ids[: refills[0]] == said[: refills[0]] and (slid.ids[:130] == said) == (not kept)


def endless(model, tokenizer):
    """The model, and what reads its single tokens, which never end a text."""

    class Endless(GPT):
        def next_logits(self, *arguments):
            return without_end(super().next_logits(*arguments))

    def without_end(logits):
        logits[:, tokenizer.end] = -torch.inf
        return logits

    made = Endless(model.config).eval()
    made.load_tensors(model.tensors())
    decoder = CpuDecoder(made)
    return made, lambda ids, cache: without_end(decoder(ids, cache))


@pytest.mark.parametrize(
    "kept, length, expected",
    [
        (10, 47, [*range(47)]),
        (10, 48, [*range(10), *range(29, 48)]),
        (10, 200, [*range(10), *range(181, 200)]),
    ],
)
def test_a_history_that_fits_is_read_whole_else_the_kept_part_and_the_last_half_beside_it(
    kept, length, expected
):
    assert Context(list(range(length)), kept).fitting(48) == expected


@pytest.mark.parametrize("kept", [0, 37, 60, 100])
def test_of_a_prompt_too_long_to_be_kept_the_last_half_block_is_read(kept):
    assert Context(list(range(120)), kept).fitting(48) == [*range(96, 120)]


def test_many_prompts_come_back_in_their_order_whatever_the_batches(pretrained_model):
    model, tokenizer = pretrained_model
    prompts = [
        tokenizer.encode("清晨，沈砚在渡口望着河面出神。"[:n]) for n in (9, 1, 5, 12, 3, 7, 2)
    ]
    alone = [
        complete(model, tokenizer, [prompt], SamplingParams(12), [seed])[0].ids
        for seed, prompt in enumerate(prompts)
    ]
    told = []
    found = complete_many(
        model, tokenizer, prompts, SamplingParams(12), range(7), 3, tell=told.append
    )
    assert [result.ids for result in found] == alone and told == [3, 6, 7]
    assert complete_many(model, tokenizer, [], SamplingParams(12), [], 3) == []


def test_a_stop_leaves_undone_what_was_not_finished(pretrained_model):
    model, tokenizer = pretrained_model
    prompts = [
        tokenizer.encode(text) for text in ("清", "清晨，", "清晨，沈砚", "清晨，沈砚在渡口")
    ]
    done = []
    found = complete_many(
        model, tokenizer, prompts, SamplingParams(6), range(4), 2, lambda: bool(done), done.append
    )
    assert [bool(result) for result in found] == [True, True, False, False]
