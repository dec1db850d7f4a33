"""shuoshu/rows.py: the mask, long answers over several rows, files that are checked, batches that are a pure function."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shuoshu.core.errors import UserError
from shuoshu.sft.augment import QuestionNoise
from shuoshu.sft.dataset import (
    QuestionDataset,
    cut_question,
    pad_batch,
    read_pairs,
    split_long_answer,
    write_rows,
)
from shuoshu.sft.pairs import Pair
from shuoshu.text.dataset import IGNORE
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.training.step import micro_batches

MARKED = st.lists(
    st.sampled_from(
        [
            "？",
            "<|endoftext|>",
            "<|assistant|>",
            "<|user|>",
            "<|pad|>",
            "沈砚",
            "在渡口",
            "\n",
            "é🙂",
            "a1",
        ]
    ),
    min_size=1,
    max_size=8,
)
SPELT = MARKED.map("".join)


def conversation(*said: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]


def runs(mask: list[int]) -> list[tuple[int, int]]:
    """(begin, end) of each run of ones."""
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    return [(a, b) for a, b in pairwise(edges) if mask[a]]


# ---------------------------------------------------------------- the mask


@given(turns=st.lists(st.tuples(SPELT, SPELT), min_size=1, max_size=4), system=st.none() | SPELT)
def test_each_answer_is_trained_with_its_end_and_nothing_else_whatever_the_text_spells(
    turns, system, tokenizer
) -> None:
    messages = ([{"role": "system", "content": system}] if system else []) + conversation(
        *(text for turn in turns for text in turn)
    )
    ids, mask = tokenizer.render(messages)
    assert len(ids) == len(mask)
    trained = [ids[a:b] for a, b in runs(mask)]
    assert [tokenizer.decode(part) for part in trained] == [answer for _, answer in turns]
    assert [
        part == [*tokenizer.encode(answer), tokenizer.end]
        for part, (_, answer) in zip(trained, turns, strict=True)
    ] == [True] * len(turns)
    assert all(ids[a - 1] == tokenizer.assistant for a, _ in runs(mask))
    specials = [token for token in ids if token in tokenizer.specials.values()]
    roles = [tokenizer.system] * bool(system) + [
        tokenizer.user,
        tokenizer.assistant,
        tokenizer.end,
    ] * len(turns)
    assert specials == roles  # what is spelt in a text is text


@given(rows=st.lists(st.tuples(SPELT, SPELT), min_size=1, max_size=5))
def test_the_first_target_is_the_first_answer_token_the_last_is_the_end_and_padding_is_never_one(
    rows, tokenizer
) -> None:
    rendered = [tuple(map(np.array, tokenizer.render(conversation(*row)))) for row in rows]
    ids, targets = pad_batch(rendered)
    assert ids.shape == targets.shape == (len(rows), max(len(made) for made, _ in rendered) - 1)
    for (question, answer), row_ids, row_targets in zip(rows, ids, targets, strict=True):
        places = np.flatnonzero(row_targets != IGNORE)
        wanted = [*tokenizer.encode(answer), tokenizer.end]
        assert row_targets[places].tolist() == wanted
        begin = len(tokenizer.encode(question)) + 1
        assert places.tolist() == list(
            range(begin, begin + len(wanted))
        )  # right after the assistant's mark, without a gap
        assert (
            row_ids[places[0]] == tokenizer.assistant
            and row_ids[places[1:]].tolist() == wanted[:-1]
        )


def test_what_is_written_decodes_to_exactly_the_answers(qa: Path) -> None:
    tokenizer = Tokenizer.load(qa)
    for split in ("train", "val", "test"):
        file, records = QuestionDataset(qa, split), read_pairs(qa, split)
        assert [record["row"] for record in records] == list(range(len(file)))
        raw = np.fromfile(qa / f"{split}.bin", "<u2").reshape(-1, file.width)
        for record in records:
            ids, mask = file.row(record["row"])
            assert (
                tokenizer.decode(ids[mask == 1])
                == record["answer"]
                == record["messages"][-1]["content"]
            )
            assert ids[0] == tokenizer.user and ids[-1] == tokenizer.end and mask[-1] == 1
            assert tokenizer.decode(ids[mask == 0]) == record["question"]
            padding = raw[record["row"], len(ids) :]
            assert (padding == tokenizer.pad).all() and not file.mask[
                record["row"], len(ids) :
            ].any()
    assert any("<|endoftext|>" in record["question"] for record in read_pairs(qa, "train"))


# ---------------------------------------------------------------- an answer over several rows


@given(
    before=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), max_size=2),
    question=st.integers(1, 20),
    answer=st.integers(1, 400),
    width=st.integers(20, 90),
)
def test_over_several_rows_every_answer_token_is_trained_once_and_only_the_last_row_ends(
    before, question, answer, width
) -> None:
    count = iter(range(1000, 10_000))
    ids, mask = [], []
    for asked, said in [*before, (question, answer)]:
        ids += [next(count) for _ in range(asked + 2)] + [next(count) for _ in range(said + 1)]
        mask += [0] * (asked + 2) + [1] * (said + 1)
    end, start = ids[-1], len(ids) - answer - 1
    if len(ids) <= width:
        return
    made = split_long_answer(ids, mask, width)
    if made is None:
        assert width - start < max(16, width // 8)
        return
    assert all(len(row) == len(row_mask) <= width for row, row_mask in made)
    trained = [
        token
        for row, row_mask in made
        for token, is_trained in zip(row, row_mask, strict=True)
        if is_trained
    ]
    assert trained == [
        token for token, is_trained in zip(ids, mask, strict=True) if is_trained
    ]  # each once, in order
    assert [row[-1] == end for row, _ in made] == [False] * (len(made) - 1) + [True]
    for row, row_mask in made:
        assert row[:start] == ids[:start]  # each row has the whole question
        new = len(row_mask) - row_mask[::-1].index(1) - 1 - sum(row_mask[start:]) + 1
        assert (
            row[start:] == ids[ids.index(row[start]) :][: len(row) - start]
        )  # and then the answer without a gap
        assert row_mask[start:new] == [0] * (new - start) and row_mask[-1] == 1
    for _, row_mask in made[1:]:
        assert row_mask[start] == 0, "a later row has some of the answer so far for its context"


# ---------------------------------------------------------------- a question cut


@given(
    begin=st.text("甲乙丙", min_size=20, max_size=200),
    end=st.text("丁戊己", min_size=20, max_size=200),
    width=st.integers(100, 160),
)
def test_a_cut_question_keeps_its_beginning_and_its_end_and_fits(
    begin, end, width, tokenizer
) -> None:
    messages = conversation("短问？", "短答。", begin + end, "油灯。")
    if len(tokenizer.render(messages)[0]) <= width:
        return
    cut = cut_question(tokenizer, messages, width)
    assert cut is not None
    assert len(tokenizer.render(cut)[0]) <= width
    assert [*cut[:2], cut[3]] == [*messages[:2], messages[3]]  # nothing else is touched
    head, _, tail = cut[2]["content"].partition("…")
    assert (
        (begin + end).startswith(head)
        and (begin + end).endswith(tail)
        and 0 <= len(head) - len(tail) <= 1
    )
    assert len(tokenizer.render(cut)[0]) > width - 16, "as much as fits is kept"


def test_a_question_is_not_cut_down_to_nothing(tokenizer) -> None:
    assert cut_question(tokenizer, conversation("问" * 100, "答" * 19), 64) is None
    assert cut_question(tokenizer, conversation("问" * 100, "答" * 100), 64) is None


# ---------------------------------------------------------------- files


@pytest.fixture(scope="module")
def mixed(tokenizer, tmp_path_factory) -> Path:
    """150 rows of very different lengths, each with an answer of its own."""
    draw = random.Random(5)
    folder = tmp_path_factory.mktemp("mixed") / "rows"
    rendered = []
    for number in range(150):
        pair = Pair(
            conversation(
                "问" * draw.randint(1, 15) + "？", f"{number}" + "答" * draw.choice([0, 1, 2, 9])
            ),
            f"x, row {number}",
            "train" if number else "val",
        )
        rendered.append((pair, [tokenizer.render(pair.messages)]))
    write_rows(folder, tokenizer, rendered, {"turns": 1})
    return folder


def answers_in(rows: tuple[np.ndarray, np.ndarray], tokenizer) -> list[str]:
    return [tokenizer.decode(row[row != IGNORE].tolist()) for row in rows[1]]


@pytest.mark.parametrize("step_rows", [1, 4, 7, 200])
def test_an_epoch_visits_each_row_once_and_the_next_in_another_order(
    mixed: Path, tokenizer, step_rows: int
) -> None:
    file = QuestionDataset(mixed, "train", step_rows)
    first, second = (
        answers_in(file.rows(epoch * len(file), len(file), 64, 1), tokenizer) for epoch in (0, 1)
    )
    assert (
        sorted(first)
        == sorted(second)
        == sorted(record["answer"] for record in read_pairs(mixed, "train"))
    )
    assert first != second != answers_in(file.rows(len(file), len(file), 64, 2), tokenizer)


def test_the_count_of_targets_is_that_of_the_rows_also_from_one_epoch_into_the_next(
    mixed: Path,
) -> None:
    file = QuestionDataset(mixed, "train", 8)
    for first in (0, 7, len(file) - 3, 2 * len(file) - 1):
        assert (
            file.count_targets(first, 8, 64, 3) == (file.rows(first, 8, 64, 3)[1] != IGNORE).sum()
        )


def test_rows_of_like_length_go_together(mixed: Path) -> None:
    file = QuestionDataset(mixed, "train", 8)
    steps = len(file) // 8

    def padding(widths: list[int]) -> int:
        return sum(8 * width for width in widths) - sum(int(length) - 1 for length in file.lengths)

    together = padding([file.rows(8 * step, 8, 64, 1)[0].shape[1] for step in range(steps)])
    order = np.random.default_rng(0).permutation(len(file))
    at_random = padding(
        [int(file.lengths[order[8 * step : 8 * step + 8]].max()) - 1 for step in range(steps)]
    )
    assert together < at_random / 4
    widths = [file.rows(8 * step, 8, 64, 1)[0].shape[1] for step in range(steps)]
    assert widths not in (sorted(widths), sorted(widths, reverse=True)), (
        "the steps themselves come in no order"
    )


def test_a_training_has_few_widths_and_none_is_much_wider_than_its_longest_row(
    tmp_path: Path, tokenizer
) -> None:
    pairs = [
        Pair(conversation("问" * n, "答"), "x, row 1", "train" if n else "val") for n in range(300)
    ]
    write_rows(
        tmp_path / "rows",
        tokenizer,
        [(pair, [tokenizer.render(pair.messages)]) for pair in pairs],
        {"turns": 1},
    )
    file = QuestionDataset(tmp_path / "rows", "train")
    widths = set()
    for first in range(len(file)):
        ids, targets = file.rows(first, 1, 64, 0)
        (number,) = file.row_ids(first, 1, 64, 0)
        longest, (row, mask) = ids.shape[1], file.row(number)
        assert len(row) - 1 <= longest <= min(file.width - 1, (len(row) - 1) * 9 / 8)
        assert (
            ids[0, : len(row) - 1].tolist() == row[:-1].tolist()
            and targets[0][targets[0] != IGNORE].tolist() == row[mask == 1].tolist()
        )
        widths.add(longest)
    together = file.rows(0, 8, 64, 0)[0].shape[1]
    assert together == max(file.rows(first, 1, 64, 0)[0].shape[1] for first in range(8))
    assert (
        len(widths)
        <= 16 + 8 * (file.width.bit_length() - 4)
        < 150
        < len(set(file.lengths.tolist()))
    )


def fed(
    mixed: Path, rank: int, world: int, batch_size: int, noise: QuestionNoise | None
) -> list[list[list[int]]]:
    """What one of `world` processes trains in the first 40 steps of 8 rows, row by row."""
    settings = SimpleNamespace(seed=3)
    data = SimpleNamespace(train=QuestionDataset(mixed, "train", 8, noise), rows_per_step=8)
    trainer = SimpleNamespace(
        settings=settings,
        processes=SimpleNamespace(rank=rank, world_size=world),
        micro_rows=batch_size,
        block_size=64,
        device=torch.device("cpu"),
    )
    steps = []
    for step in range(40):
        rows: list[list[int]] = []
        for ids, targets, count, _ in micro_batches(trainer, data, step):
            for row_ids, row in zip(ids.numpy(), targets.numpy(), strict=True):
                length = np.flatnonzero(row != IGNORE)[-1] + 1  # what follows is padding
                rows.append([count, *row_ids[:length].tolist(), *row[:length].tolist()])
        steps.append(rows)
    return steps


@pytest.mark.parametrize("is_noisy", [False, True])
def test_the_data_is_the_same_for_one_process_and_for_two(
    mixed: Path, tokenizer, is_noisy: bool
) -> None:
    noise = QuestionNoise(tokenizer, 0.2, 0.2) if is_noisy else None
    one = fed(mixed, 0, 1, 8, noise)
    halves = [fed(mixed, rank, 2, size, noise) for rank, size in ((0, 4), (1, 2))]
    assert one == [first + second for first, second in zip(*halves, strict=True)]
    assert one == fed(mixed, 0, 1, 4, noise)


def test_any_row_is_had_without_those_before_it(mixed: Path, tokenizer) -> None:
    noise = QuestionNoise(tokenizer, 0.2, 0.2)
    file = QuestionDataset(mixed, "train", 8, noise)
    for first in (1000, 3, 160, 0):  # any order, epochs to and fro
        for here, fresh in zip(
            file.rows(first, 5, 64, 1),
            QuestionDataset(mixed, "train", 8, noise).rows(first, 5, 64, 1),
            strict=True,
        ):
            assert np.array_equal(here, fresh)


@pytest.mark.parametrize("name", ["train.bin", "train.mask.bin", "train.jsonl", "val.mask.bin"])
@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
def test_a_damaged_file_is_refused_by_name(
    mixed: Path, tmp_path: Path, name: str, damage: str
) -> None:
    for file in mixed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(
        {"flip": whole[:-1] + bytes([whole[-1] ^ 1]), "cut": whole[:-2], "lose": b""}[damage]
    )
    if damage == "lose":
        (tmp_path / name).unlink()
    split = name.partition(".")[0]
    with pytest.raises(UserError, match=f"{name}.*prepare the data again"):
        read_pairs(tmp_path, split) if name.endswith(".jsonl") else QuestionDataset(tmp_path, split)


@given(data=st.data())
def test_a_damaged_meta_is_one_message(mixed: Path, tmp_path_factory, damage, data) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    for file in mixed.iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "meta.json").unlink()
    meta = json.loads((mixed / "meta.json").read_text(encoding="utf-8"))
    (folder / "meta.json").write_text(json.dumps(damage(data, meta)), encoding="utf-8")
    try:
        file = QuestionDataset(folder, "train")
        assert len(file.rows(0, 3, 64, 0)[0]) == 3
        assert len(read_pairs(folder, "train")) == 149
    except UserError as error:
        assert "prepare the data again" in str(error)


# ---------------------------------------------------------------- noise


@pytest.fixture(scope="module")
def noisy(tokenizer) -> QuestionNoise:
    return QuestionNoise(tokenizer, 0.3, 0.3)


def rendered(tokenizer, *said: str, system: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    messages = ([{"role": "system", "content": system}] if system else []) + conversation(*said)
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


def test_noise_changes_the_users_words_alone(noisy: QuestionNoise, tokenizer) -> None:
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


def test_noise_is_as_strong_as_it_is_asked_to_be(tokenizer) -> None:
    ids, mask = rendered(
        tokenizer, "甲" * 300, "好。"
    )  # three bytes each, no merges: every token is kept or swapped by itself
    clean = ids[1:901]
    swapped, _ = QuestionNoise(tokenizer, 0, 0.25)(ids, mask, np.random.default_rng(0))
    assert (swapped[1:901] != clean).mean() == pytest.approx(0.25, abs=0.05) and len(
        swapped
    ) == len(ids)
    dropped, its_mask = QuestionNoise(tokenizer, 0.25, 0)(ids, mask, np.random.default_rng(0))
    assert (len(ids) - len(dropped)) / 3 / 300 == pytest.approx(0.25, abs=0.08)
    assert (
        tokenizer.decode(dropped[its_mask == 0]).strip("甲") == ""
        and tokenizer.decode(dropped[its_mask == 1]) == "好。"
    )
    same, same_mask = QuestionNoise(tokenizer, 0, 0)(ids, mask, np.random.default_rng(0))
    assert np.array_equal(same, ids) and np.array_equal(same_mask, mask)


def test_noise_is_fresh_in_each_epoch_and_repeatable(qa: Path) -> None:
    tokenizer = Tokenizer.load(qa)
    noisy = QuestionNoise(tokenizer, 0.1, 0.4)
    file = QuestionDataset(qa, "train", 8, noisy)
    seen: dict[str, set[tuple[int, ...]]] = {}
    for epoch in range(4):
        ids, targets = file.rows(epoch * len(file), len(file), 64, 7)
        for row, target in zip(ids, targets, strict=True):
            question = row[: int((target == IGNORE).argmin())]
            seen.setdefault(tokenizer.decode(target[target != IGNORE].tolist()), set()).add(
                tuple(question.tolist())
            )
    assert (
        np.mean([len(questions) for questions in seen.values()]) > 5
    )  # 2 phrasings x 4 epochs, but for the odd ones
    again = QuestionDataset(qa, "train", 8, noisy).rows(3 * len(file), len(file), 64, 7)
    assert np.array_equal(ids, again[0]) and np.array_equal(targets, again[1])
    other = QuestionDataset(qa, "train", 8, noisy).rows(3 * len(file), len(file), 64, 8)
    assert other[0].shape != ids.shape or not np.array_equal(other[0], ids)


def test_noise_never_makes_a_row_longer(tokenizer) -> None:
    whole = max(
        (token for token in tokenizer.ranks if len(token) % 3 == 0), key=len
    ).decode()  # one token of several characters
    assert (
        len(tokenizer.encode(whole)) == 1
        and len(whole) > 2
        and len(tokenizer.encode(whole[1:])) > 1
    )
    ids, mask = rendered(tokenizer, whole, "好。")
    lengths = set()
    for seed in range(200):
        new, new_mask = QuestionNoise(tokenizer, 0.3, 0)(ids, mask, np.random.default_rng(seed))
        assert len(new) == len(new_mask) and new[new_mask == 1].tolist() == ids[mask == 1].tolist()
        lengths.add(len(new) - len(ids))
    assert max(lengths) == 0


def test_a_question_that_noise_empties_still_stands_before_its_answer(tokenizer) -> None:
    ids, mask = rendered(tokenizer, "甲", "好。")
    made = [
        QuestionNoise(tokenizer, 0.9, 0)(ids, mask, np.random.default_rng(seed))
        for seed in range(20)
    ]
    shortest, its_mask = min(made, key=lambda row: len(row[0]))
    assert shortest.tolist() == [
        tokenizer.user,
        tokenizer.assistant,
        *tokenizer.encode("好。"),
        tokenizer.end,
    ]
    assert its_mask.tolist() == [0, 0, *[1] * (len(shortest) - 2)]
