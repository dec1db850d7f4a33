"""Recall: what the model finds probable, and the shortlists that it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from model import GPT, GPTConfig
from shuoshu.answering import recall as recall_module
from shuoshu.answering.confidence import LOOKUP_WEIGHTS
from shuoshu.answering.likelihood import (
    MAX_SCORED_TOKENS,
    answer_log_likelihoods,
    mean_log_probability,
)
from shuoshu.answering.lookups import AnswerLookups
from shuoshu.answering.recall import SHORTLIST, find_candidates, with_likelihoods
from shuoshu.answering.taught import Taught
from shuoshu.generation.answers import render_question
from shuoshu.generation.sampling import TextGenerator
from shuoshu.models.weights import load_model
from shuoshu.text.tokenizer import Tokenizer
from tests.models.families import write_model

SMALL = GPTConfig(vocab_size=600, block_size=20, n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
SMALL = dataclasses.replace(SMALL, head_dim=16, n_hidden=48)


@torch.inference_mode()
def plain(model: GPT, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """The log-likelihood of an answer, by one pass over the prompt and the answer."""
    if not answer:
        return 0.0
    logits = model(torch.tensor([[*prompt, *answer[:-1]]]))[0, len(prompt) - 1 :]
    log_p = logits.float().log_softmax(-1)
    return log_p[torch.arange(len(answer)), torch.tensor(answer)].sum().item()


@pytest.fixture(scope="module")
def small(tokenizer: Tokenizer) -> TextGenerator:
    """A random model that reads 20 tokens."""
    torch.manual_seed(4)
    return TextGenerator(GPT(SMALL).eval(), tokenizer)


# ---------------------------------------------------------------- likelihoods


@pytest.mark.parametrize("prompt_length", [1, 5, 12])
def test_likelihoods_are_those_of_a_pass_over_prompt_and_answer(small, prompt_length) -> None:
    draw = np.random.default_rng(prompt_length)
    prompt = draw.integers(0, 512, prompt_length).tolist()
    answers = [draw.integers(0, 512, n).tolist() for n in (3, 1, 7, 0, 2)]
    expected = [plain(small.model, prompt, answer) for answer in answers]
    found = answer_log_likelihoods(small, prompt, answers)
    assert found == pytest.approx(expected, abs=1e-4) and found[3] == 0
    assert found[:2] != pytest.approx(
        answer_log_likelihoods(small, [*prompt[::-1], 9], answers[:2])
    )
    for answer, alone in zip(answers, expected, strict=True):
        assert answer_log_likelihoods(small, prompt, [answer]) == pytest.approx([alone], abs=1e-4)
        mean = alone / max(1, len(answer))
        assert mean_log_probability(small, prompt, answer) == pytest.approx(mean, abs=1e-4)


def test_answers_of_one_token_are_read_with_the_prompt(small) -> None:
    expected = [plain(small.model, [5, 6], [number]) for number in (1, 2, 3)]
    assert answer_log_likelihoods(small, [5, 6], [[1], [2], [3]]) == pytest.approx(
        expected, abs=1e-4
    )


def test_without_answers_or_tokens_there_is_nothing_to_find_probable(small) -> None:
    assert answer_log_likelihoods(small, [5, 6], [[], []]).tolist() == [0, 0]
    assert answer_log_likelihoods(small, [5, 6], []).shape == (0,)
    assert mean_log_probability(small, [], []) == 0


def test_of_a_prompt_longer_than_the_block_the_end_is_read(small) -> None:
    prompt = np.random.default_rng(0).integers(0, 512, 70).tolist()
    answers = [[7, 8, 9, 10], [11]]
    expected = [plain(small.model, prompt[-16:], answer) for answer in answers]
    assert answer_log_likelihoods(small, prompt, answers) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("length", [19, 20, 21, 200])
def test_of_an_answer_longer_than_the_block_the_beginning_is_read(small, length) -> None:
    answer = np.random.default_rng(1).integers(0, 512, length).tolist()
    expected = plain(small.model, [3], answer[:20])
    assert answer_log_likelihoods(small, [2, 3], [answer]) == pytest.approx([expected], abs=1e-4)
    mean = mean_log_probability(small, [2, 3], answer)
    assert mean == pytest.approx(expected / min(length, 20), abs=1e-4)


def test_an_empty_prompt_is_the_start_of_a_text(small) -> None:
    expected = plain(small.model, [small.tokenizer.start], [4, 5])
    assert answer_log_likelihoods(small, [], [[4, 5]]) == pytest.approx([expected], abs=1e-4)


def test_the_likelihoods_of_a_model_that_others_trained_are_right(tmp_path: Path) -> None:
    model, tokenizer, *_ = load_model(write_model(tmp_path / "model", "llama", head_dim=16))
    generator = TextGenerator(model, tokenizer)
    prompt = render_question(tokenizer, [{"role": "user", "content": "Who lit the lamp?"}])
    texts = ["The man.", "It is dark.", "是", "long " * 40]
    answers = [tokenizer.encode_answer(text) for text in texts]
    assert len(answers[3]) > MAX_SCORED_TOKENS
    expected = [plain(model, prompt, answer[:MAX_SCORED_TOKENS]) for answer in answers]
    found = answer_log_likelihoods(generator, prompt, answers)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-4)


# ---------------------------------------------------------------- shortlists


def test_many_questions_have_the_candidates_of_each_alone(taught, book, monkeypatch) -> None:
    lookups = AnswerLookups(taught, book)
    questions = ["师父？", "撑船的人", "", "药？", "断桥"]
    monkeypatch.setattr(recall_module, "QUESTIONS_AT_ONCE", 2)
    together = find_candidates(lookups, questions, LOOKUP_WEIGHTS)
    for row, question in enumerate(questions):
        alone = find_candidates(lookups, [question], LOOKUP_WEIGHTS)
        assert together.answers[row].tolist() == alone.answers[0].tolist()
        assert together.similarities[row] == pytest.approx(alone.similarities[0], abs=1e-6)
        assert together.contrasts[row] == pytest.approx(alone.contrasts[0], abs=1e-6)


def test_a_shortlist_has_the_most_similar_answers_best_first() -> None:
    pairs = [(f"{'甲乙丙丁戊己庚辛壬癸子丑'[n]}住在哪里？", f"第{n}村。") for n in range(12)]
    lookups = AnswerLookups(Taught.of_pairs(pairs))
    weights = LOOKUP_WEIGHTS[:3]
    candidates = find_candidates(lookups, ["癸住哪里？"], weights)
    totals = lookups.similarities(["癸住哪里？"])[0] @ np.array(weights)
    assert candidates.answers.shape == (1, SHORTLIST) and candidates.answers[0, 0] == 9
    assert totals[candidates.answers[0]] == pytest.approx(np.sort(totals)[::-1][:SHORTLIST])


def test_the_model_reads_the_candidates_of_each_question(taught, small) -> None:
    candidates = find_candidates(AnswerLookups(taught), ["师父？", "桥？"], LOOKUP_WEIGHTS[:3])
    prompts = [[3, 4], [9]]
    read = with_likelihoods(candidates, taught.answers, small, prompts)
    assert not candidates.likelihoods.any()
    for row, prompt in enumerate(prompts):
        for place, number in enumerate(read.answers[row]):
            answer = small.tokenizer.encode_answer(taught.answers[number])
            expected = plain(small.model, prompt, answer)
            assert read.likelihoods[row, place] == pytest.approx(expected, abs=1e-4)
