"""Rows of questions and answers: rendered with their mask, written, and read as batches that are a pure function of (seed, row number)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, read_text, sha256_of
from shuoshu.sft.augment import Paraphraser, QuestionNoise
from shuoshu.sft.pairs import QUESTION_SPLITS, Pair
from shuoshu.sft.rendering import RenderedPair, Row
from shuoshu.text.dataset import (
    IGNORE,
    PREPARE_AGAIN,
    Batch,
    StagingFolder,
    check_length,
    open_array,
    read_meta,
    token_dtype,
)
from shuoshu.text.encodings import MAX_FILE_BYTES
from shuoshu.text.tokenizer import Tokenizer


def answer_batches(
    file: QuestionDataset, rows: int, numbers: Iterable[int] | None = None
) -> Iterator[Batch]:
    """A file's rows, or those with these numbers, like lengths together."""
    order = sorted(
        range(len(file)) if numbers is None else numbers, key=lambda number: file.lengths[number]
    )
    for first in range(0, len(order), rows):
        yield pad_batch([file.row(number) for number in order[first : first + rows]])


PARAPHRASE_TRIALS = 100  # questions that are reworded before a training to see whether they can be
SORTED_STEPS = 64  # steps whose rows are sorted by length together
ROLES = ("system", "user", "assistant")


# ---------------------------------------------------------------- files


def write_rows(
    folder: Path, tokenizer: Tokenizer, rendered: Sequence[RenderedPair], facts: dict
) -> dict:
    """Writes each split's rows, masks and readable pairs, and meta.json; returns its content."""
    dtype, width = token_dtype(tokenizer), max(len(ids) for _, rows in rendered for ids, _ in rows)
    splits: dict[str, dict] = {}
    names: list[str] = []
    before = read_meta(folder)["splits"] if (folder / "meta.json").is_file() else {}
    with StagingFolder(folder) as writer:
        for split in QUESTION_SPLITS:
            chosen = [(pair, rows) for pair, rows in rendered if pair.split == split]
            if not chosen and split not in ("train", "val"):
                continue
            splits[split] = _write_split(writer.aside, split, chosen, dtype, width, tokenizer.pad)
            names += [f"{split}.bin", f"{split}.mask.bin", f"{split}.jsonl"]
        meta = writer.commit(
            names,
            tokenizer,
            {"task": "questions", "dtype": dtype.name, "width": width, "splits": splits, **facts},
        )
    for split in set(before) - set(splits):  # of an earlier preparation
        for name in (f"{split}.bin", f"{split}.mask.bin", f"{split}.jsonl"):
            (folder / name).unlink(missing_ok=True)
    return meta


def _write_split(
    aside: Path,
    split: str,
    chosen: list[tuple[Pair, list[Row]]],
    dtype: np.dtype,
    width: int,
    pad: int,
) -> dict:
    rows = [row for _, rows in chosen for row in rows]
    ids, mask = np.full((len(rows), width), pad, dtype), np.zeros((len(rows), width), np.uint8)
    for number, (row_ids, row_mask) in enumerate(rows):
        ids[number, : len(row_ids)], mask[number, : len(row_mask)] = row_ids, row_mask
    ids.tofile(aside / f"{split}.bin")
    mask.tofile(aside / f"{split}.mask.bin")
    with (aside / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        first = 0
        for pair, own in chosen:
            file.write(
                json.dumps({**record_of(pair), "row": first, "rows": len(own)}, ensure_ascii=False)
                + "\n"
            )
            first += len(own)
    answers = [
        m["content"] for pair, _ in chosen for m in pair.messages if m["role"] == "assistant"
    ]
    facts = {
        "pairs": len(chosen),
        "rows": len(rows),
        "tokens": ids.size,
        "answer_tokens": int(mask.sum()),
    }
    facts |= {
        "characters": sum(map(len, answers)),
        "bytes": sum(len(answer.encode()) for answer in answers),
    }
    for key, name in (
        ("sha256", f"{split}.bin"),
        ("mask_sha256", f"{split}.mask.bin"),
        ("pairs_sha256", f"{split}.jsonl"),
    ):
        facts[key] = sha256_of(aside / name)
    return facts


def record_of(pair: Pair) -> dict:
    """A pair as a line of train.jsonl shows it: question and answer where that is all, else the messages."""
    is_plain = [message["role"] for message in pair.messages] == ["user", "assistant"]
    said = (
        {"question": pair.question, "answer": pair.answer}
        if is_plain
        else {"messages": pair.messages}
    )
    return {**pair.extra, **said, "split": pair.split, "source": pair.source}


def read_pairs(folder: Path, split: str) -> list[dict]:
    """The readable pairs of a split; each has `messages`."""
    facts = read_meta(folder)["splits"].get(split)
    path = folder / f"{split}.jsonl"
    if (
        not isinstance(facts, dict)
        or not path.is_file()
        or sha256_of(path) != facts.get("pairs_sha256")
    ):
        raise UserError(
            f"{path} is missing or not the file that meta.json describes: {PREPARE_AGAIN}"
        )
    try:
        records = [json.loads(line) for line in read_text(path, MAX_FILE_BYTES).split("\n") if line]
        for record in records:
            if not isinstance(record.get("messages"), list):
                record["messages"] = [
                    {"role": "user", "content": record["question"]},
                    {"role": "assistant", "content": record["answer"]},
                ]
            if not all(
                message["role"] in ROLES and isinstance(message["content"], str)
                for message in record["messages"]
            ):
                raise ValueError("a message is no text")
            if (
                not 0 <= record["row"] < record["row"] + record["rows"] <= facts["rows"]
                or len(record["messages"]) < 2
            ):
                raise ValueError("a pair has no rows")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} holds no pairs as prepare_sft.py writes them ({error_reason(error)}): {PREPARE_AGAIN}"
        ) from None
    return records


class QuestionDataset:
    """One split of questions and answers, memory-mapped where it is large, with batches whose content depends on (seed, row number) alone.

    Each epoch visits every row once, and as many reworded ones as were asked for. Rows of like length go together: of POOL
    steps' rows at a time, drawn at random and sorted by length, each `step_rows` in succession make a step; then the steps are shuffled.
    """

    def __init__(
        self, folder: Path, split: str, step_rows: int = 1, noise: QuestionNoise | None = None
    ) -> None:
        self.folder, self.split, self.meta = folder, split, read_meta(folder)
        try:
            self.width, facts = self.meta["width"], self.meta["splits"][split]
            shape = facts["rows"], self.width
            self.characters, self.bytes, self.sha256 = (
                facts["characters"],
                facts["bytes"],
                facts["sha256"] + facts["mask_sha256"],
            )
            self.ids = open_array(
                folder / f"{split}.bin",
                self.meta["dtype"],
                facts["tokens"],
                facts["sha256"],
                self.meta["vocab_size"],
            ).reshape(shape)
            self.mask = open_array(
                folder / f"{split}.mask.bin", "uint8", facts["tokens"], facts["mask_sha256"], 2
            ).reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / 'meta.json'} does not describe {split} rows ({type(error).__name__}: {error}): {PREPARE_AGAIN}"
            ) from None
        self.step_rows, self.noise = step_rows, noise
        self.trained = self.mask[:, 1:].sum(axis=1, dtype=np.int64)
        self.lengths = self.width - self.mask[:, ::-1].argmax(
            axis=1
        )  # a row ends with a trained token
        self.numbers = np.arange(
            len(self.ids)
        )  # an epoch's rows; those after the file's own are reworded
        self.paraphraser: Paraphraser | None = None
        self._order: tuple[tuple[int, int], np.ndarray] | None = None

    def add_paraphrases(self, tokenizer: Tokenizer, times: int) -> None:
        """Every epoch has `times` as many rows more, made up of the single questions anew each time: one trains the whole answer, the others its beginning."""
        self.paraphraser = Paraphraser(tokenizer, self.row, len(self), self.width)
        sample = self.paraphraser.sources[
            :: max(1, len(self.paraphraser.sources) // PARAPHRASE_TRIALS)
        ].tolist()
        draws = [np.random.default_rng(number) for number in sample]
        asked = (
            self.paraphraser.paraphrases(
                sample, [self.paraphraser.telling[number] for number in sample], draws
            )
            if sample
            else []
        )
        if (
            sum(
                text != self.paraphraser.questions[number]
                for text, number in zip(asked, sample, strict=True)
            )
            <= len(sample) / 4
        ):
            what = (
                "too few rows of {} hold words that tell whose answer is asked for"
                if sample
                else "no row of {} is one question and its whole answer"
            )
            without = "--paraphrases=0, and with it --batch_size=16 --max_epochs=14"
            raise UserError(
                f"paraphrases={times}: {what.format(self.folder)}, and only these can be reworded; for this data {without}"
            )
        telling = [self.paraphraser.telling[number] for number in self.paraphraser.sources.tolist()]
        sources = np.tile(self.paraphraser.sources, times)
        trained = np.append(
            self.trained[self.paraphraser.sources], np.tile(telling, times - 1)
        ).astype(self.trained.dtype)
        self.lengths = np.append(
            self.lengths, self.lengths[sources] - self.trained[sources] + trained
        )  # about
        self.trained, self.numbers = (
            np.append(self.trained, trained),
            np.append(self.numbers, sources),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def rows_per_epoch(self, block_size: int) -> int:
        """Rows in an epoch."""
        return len(self.numbers)

    def count_targets(self, first: int, count: int, block_size: int, seed: int) -> int:
        """How many tokens these rows train."""
        return int(self.trained[self._places(first, count, seed)].sum())

    def rows(
        self, first: int, count: int, block_size: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows first … first + count of the endless sequence of epochs: (ids, targets) of int64, little wider than the longest."""
        for array, name in ((self.ids, "bin"), (self.mask, "mask.bin")):
            check_length(array, self.folder / f"{self.split}.{name}")
        places = self._places(first, count, seed)
        rows = [self.row(number) for number in self.numbers[places]]
        draws = [np.random.default_rng([seed, 1, first + n]) for n in range(count)]
        if self.noise:
            rows = [
                self.noise(*row, draw) if place < len(self) else row
                for row, draw, place in zip(rows, draws, places, strict=True)
            ]
        if made := np.flatnonzero(places >= len(self)).tolist():
            numbers, counts = (
                self.numbers[places[made]].tolist(),
                self.trained[places[made]].tolist(),
            )
            for n, row in zip(
                made, self.paraphraser.rows(numbers, counts, [draws[n] for n in made]), strict=True
            ):
                rows[n] = row
        longest = max(len(ids) for ids, _ in rows)
        step = 1 << max(
            0, (longest - 2).bit_length() - 4
        )  # eight widths a doubling: each new shape costs time and memory
        return pad_batch(rows, min(self.width, longest + (1 - longest) % step))

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, mask) of one row, the padding left out."""
        length = self.lengths[number]
        return self.ids[number, :length].astype(np.int64), self.mask[number, :length]

    def row_ids(self, first: int, count: int, block_size: int, seed: int) -> np.ndarray:
        """Which of the file's rows these are, or are made of."""
        return self.numbers[self._places(first, count, seed)]

    def _places(self, first: int, count: int, seed: int) -> np.ndarray:
        """Which of the epoch's rows these are, the file's own before the reworded ones."""
        epochs, places = np.divmod(np.arange(first, first + count), max(1, len(self.numbers)))
        return np.concatenate(
            [self._epoch(seed, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        )

    def _epoch(self, seed: int, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != (seed, epoch):
            draw, size = np.random.default_rng([seed, epoch]), self.step_rows
            order = draw.permutation(len(self.numbers))
            for start in range(0, len(order), SORTED_STEPS * size):
                pool = order[start : start + SORTED_STEPS * size]
                order[start : start + SORTED_STEPS * size] = pool[
                    np.argsort(self.lengths[pool], kind="stable")
                ]
            whole = len(order) // size * size
            order[:whole] = draw.permutation(order[:whole].reshape(-1, size)).reshape(-1)
            self._order = (seed, epoch), order
        return self._order[1]


def pad_batch(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], width: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask) of several rows → (ids, targets), padded to the longest or to `width`; what is not trained has IGNORE for its target."""
    width = max(width, *(len(ids) for ids, _ in rows))
    ids, targets = (
        np.zeros((len(rows), width), np.int64),
        np.full((len(rows), width), IGNORE, np.int64),
    )
    for number, (row_ids, row_mask) in enumerate(rows):
        ids[number, : len(row_ids)] = row_ids
        targets[number, : len(row_ids)] = np.where(row_mask == 1, row_ids, IGNORE)
    return ids[:, :-1], targets[:, 1:]
