"""Noise: which tokens it changes, how many, and that it is repeatable."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from shuoshu.sft.augment import QuestionNoise
from shuoshu.sft.dataset import QuestionDataset
from shuoshu.text.dataset import IGNORE
from shuoshu.text.tokenizer_folder import load_tokenizer
from tests.sft.helpers import conversation


@pytest.fixture(scope="module")
def noisy(tokenizer) -> QuestionNoise:
    return QuestionNoise(tokenizer, 0.3, 0.3)


def rendered(tokenizer, *texts: str, system: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    messages = ([{"role": "system", "content": system}] if system else []) + conversation(*texts)
    ids, mask = tokenizer.render(messages)
    return np.array(ids, dtype=np.int64), np.array(mask, dtype=np.uint8)


def turns_of(
    ids: np.ndarray, mask: np.ndarray, tokenizer
) -> list[tuple[str, list[int], list[int]]]:
    """(role, ids, mask) of each turn."""
    names = {tokenizer.system: "system", tokenizer.user: "user", tokenizer.assistant: "assistant"}
    starts = [n for n, token in enumerate(ids.tolist()) if token in names]
    return [
        (names[int(ids[a])], ids[a:b].tolist(), mask[a:b].tolist())
        for a, b in pairwise([*starts, len(ids)])
    ]


def test_noise_changes_user_messages_only(noisy: QuestionNoise, tokenizer) -> None:
    clean = rendered(
        tokenizer,
        "清晨，沈砚在渡口做了什么？",
        "点起一盏油灯。",
        "后来雨停了没有？",
        "没有停。",
        system="你是书里的老船夫。",
    )
    before, changed = turns_of(*clean, tokenizer), [0, 0]
    for seed in range(60):
        after = turns_of(*noisy(*clean, np.random.default_rng(seed)), tokenizer)
        assert [role for role, *_ in after] == ["system", "user", "assistant", "user", "assistant"]
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            if old[0] != "user":
                assert old == new
            else:
                changed[number == 3] += old != new
                assert not any(new[2]) and not set(new[1][1:]) & set(tokenizer.specials.values())
    assert min(changed) > 40


def test_noise_matches_its_probabilities(tokenizer) -> None:
    ids, mask = rendered(tokenizer, "甲" * 300, "好。")  # three tokens per character, no merges
    replaced, _ = QuestionNoise(tokenizer, 0, 0.25)(ids, mask, np.random.default_rng(0))
    assert len(replaced) == len(ids)
    assert (replaced[1:901] != ids[1:901]).mean() == pytest.approx(0.25, abs=0.05)
    dropped, its_mask = QuestionNoise(tokenizer, 0.25, 0)(ids, mask, np.random.default_rng(0))
    assert (len(ids) - len(dropped)) / 3 / 300 == pytest.approx(0.25, abs=0.08)
    assert tokenizer.decode(dropped[its_mask == 0]).strip("甲") == ""
    assert tokenizer.decode(dropped[its_mask == 1]) == "好。"
    same, same_mask = QuestionNoise(tokenizer, 0, 0)(ids, mask, np.random.default_rng(0))
    assert np.array_equal(same, ids) and np.array_equal(same_mask, mask)


def test_noise_differs_between_epochs_and_is_repeatable(qa: Path) -> None:
    tokenizer = load_tokenizer(qa)
    noisy = QuestionNoise(tokenizer, 0.1, 0.4)
    file = QuestionDataset(qa, "train", 8, noisy)
    questions_of: dict[str, set[tuple[int, ...]]] = {}  # answer → ids of its questions
    for epoch in range(4):
        ids, targets = file.rows(epoch * len(file), len(file), 64, 7)
        for row, target in zip(ids, targets, strict=True):
            question = row[: int((target == IGNORE).argmin())]
            answer = tokenizer.decode(target[target != IGNORE].tolist())
            questions_of.setdefault(answer, set()).add(tuple(question.tolist()))
    # 2 questions per answer and 4 epochs make 8, fewer where noise changed nothing.
    assert np.mean([len(questions) for questions in questions_of.values()]) > 5
    again = QuestionDataset(qa, "train", 8, noisy).rows(3 * len(file), len(file), 64, 7)
    assert np.array_equal(ids, again[0]) and np.array_equal(targets, again[1])
    other = QuestionDataset(qa, "train", 8, noisy).rows(3 * len(file), len(file), 64, 8)
    assert other[0].shape != ids.shape or not np.array_equal(other[0], ids)


def test_noise_never_makes_a_row_longer(tokenizer) -> None:
    # One token of several characters, which need more tokens when one of them is missing.
    whole = max((token for token in tokenizer.ranks if len(token) % 3 == 0), key=len).decode()
    assert len(whole) > 2
    assert len(tokenizer.encode(whole)) == 1 < len(tokenizer.encode(whole[1:]))
    ids, mask = rendered(tokenizer, whole, "好。")
    lengths = set()
    for seed in range(200):
        new, new_mask = QuestionNoise(tokenizer, 0.3, 0)(ids, mask, np.random.default_rng(seed))
        assert len(new) == len(new_mask) and new[new_mask == 1].tolist() == ids[mask == 1].tolist()
        lengths.add(len(new) - len(ids))
    assert max(lengths) == 0


def test_question_emptied_by_noise_leaves_its_role_tokens(tokenizer) -> None:
    ids, mask = rendered(tokenizer, "甲", "好。")
    noisy = QuestionNoise(tokenizer, 0.9, 0)
    rows = [noisy(ids, mask, np.random.default_rng(seed)) for seed in range(20)]
    shortest, its_mask = min(rows, key=lambda row: len(row[0]))
    assert shortest.tolist() == [
        tokenizer.user,
        tokenizer.assistant,
        *tokenizer.encode("好。"),
        tokenizer.end,
    ]
    assert its_mask.tolist() == [0, 0, *[1] * (len(shortest) - 2)]
