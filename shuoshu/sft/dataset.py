"""Question datasets: writes rows with their masks and readable pairs, reads them as batches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.core.files import error_reason, read_text, sha256_of
from shuoshu.sft.augment import Paraphraser, QuestionNoise, TrainedRow
from shuoshu.sft.pairs import Pair
from shuoshu.sft.rendering import RenderedPair
from shuoshu.text.data_folder import (
    StagingFolder,
    prepared_files,
    prepared_meta,
    split_files,
    token_dtype,
)
from shuoshu.text.dataset import (
    IGNORE,
    PREPARE_AGAIN,
    QUESTION_SPLITS,
    Batch,
    check_length,
    open_array,
    read_meta,
)
from shuoshu.text.encodings import MAX_FILE_BYTES
from shuoshu.text.tokenizer import RenderedRow, Tokenizer

ROLES = ("system", "user", "assistant")
SORTED_STEPS = 64  # steps whose rows are sorted by length together
WIDTHS_PER_DOUBLING = 8  # different widths of batches between, for example, 64 and 128 tokens
MIN_PARAPHRASED_SHARE = 0.25  # of the questions; with fewer paraphrases, training would repeat rows


# ---------------------------------------------------------------- write


def write_rows(
    folder: Path, tokenizer: Tokenizer, rendered: Sequence[RenderedPair], extra: dict
) -> dict:
    """Writes each split's rows, masks and readable pairs, and meta.json with `extra` fields.

    Returns the content of meta.json. Raises OSError if the files can't be written.
    """
    dtype = token_dtype(tokenizer)
    width = max(len(ids) for _, rows in rendered for ids, _ in rows)
    previous = prepared_files(prepared_meta(folder))
    splits: dict[str, dict] = {}
    with StagingFolder(folder) as writer:
        for split in QUESTION_SPLITS:
            chosen = [(pair, rows) for pair, rows in rendered if pair.split == split]
            if not chosen and split not in ("train", "val"):
                continue
            rows = [row for _, rows in chosen for row in rows]
            ids, mask = _pad_rows(rows, width, dtype, tokenizer.pad)
            ids.tofile(writer.staging / f"{split}.bin")
            mask.tofile(writer.staging / f"{split}.mask.bin")
            _write_pairs(writer.staging / f"{split}.jsonl", chosen)
            splits[split] = _split_entry(writer.staging, split, chosen, mask)
        meta = writer.commit(
            split_files("questions", splits),
            tokenizer,
            {"dtype": dtype.name, "width": width, "splits": splits, **extra},
        )
    gone = [split for split in QUESTION_SPLITS if split not in splits]
    for name in previous.intersection(split_files("questions", gone)):
        (folder / name).unlink(missing_ok=True)
    return meta


def _pad_rows(
    rows: Sequence[RenderedRow], width: int, dtype: np.dtype, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids, mask), each (rows, width)."""
    ids = np.full((len(rows), width), pad, dtype)
    mask = np.zeros((len(rows), width), np.uint8)
    for number, (row_ids, row_mask) in enumerate(rows):
        ids[number, : len(row_ids)] = row_ids
        mask[number, : len(row_mask)] = row_mask
    return ids, mask


def _write_pairs(path: Path, rendered: Sequence[RenderedPair]) -> None:
    first = 0  # row of the split
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for pair, rows in rendered:
            record = {**readable_record(pair), "row": first, "rows": len(rows)}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            first += len(rows)


def readable_record(pair: Pair) -> dict:
    """The pair for a line of train.jsonl: question and answer, or messages if there are more."""
    messages = pair.prompted
    if [message["role"] for message in messages] == ["user", "assistant"]:
        content = {"question": messages[0]["content"], "answer": pair.answer}
    else:
        content = {"messages": messages}
    record = {**pair.extra, **content, "split": pair.split, "source": pair.source}
    uncut = pair.messages[-2]["content"] if pair.reading else pair.uncut
    if uncut is not None:
        record["uncut"] = uncut
    else:
        record.pop("uncut", None)  # a column of the user's table that is called so
    return record


def _split_entry(
    folder: Path, split: str, rendered: Sequence[RenderedPair], mask: np.ndarray
) -> dict:
    """The split's entry in meta.json."""
    answers = [
        message["content"]
        for pair, _ in rendered
        for message in pair.messages
        if message["role"] == "assistant"
    ]
    ids_name, mask_name, pairs_name = split_files("questions", [split])
    return {
        "pairs": len(rendered),
        "rows": len(mask),
        "tokens": mask.size,
        "answer_tokens": int(mask.sum()),
        "characters": sum(map(len, answers)),
        "bytes": sum(len(answer.encode()) for answer in answers),
        "sha256": sha256_of(folder / ids_name),
        "mask_sha256": sha256_of(folder / mask_name),
        "pairs_sha256": sha256_of(folder / pairs_name),
    }


# ---------------------------------------------------------------- read


def read_pairs(folder: Path, split: str) -> list[dict]:
    """The readable pairs of a split; each has `messages`, and `uncut`: its last question, which is
    whole and without passages.

    Raises UserError if the file is missing or isn't the one that meta.json describes.
    """
    entry = read_meta(folder)["splits"].get(split)
    path = folder / f"{split}.jsonl"
    if (
        not isinstance(entry, dict)
        or not path.is_file()
        or sha256_of(path) != entry.get("pairs_sha256")
    ):
        raise UserError(
            f"{path} is missing or not the file that meta.json describes: {PREPARE_AGAIN}"
        )
    try:
        lines = read_text(path, MAX_FILE_BYTES).split("\n")
        return [_checked_record(json.loads(line), entry["rows"]) for line in lines if line]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} has no pairs in the format of prepare_sft.py ({error_reason(error)}):"
            f" {PREPARE_AGAIN}"
        ) from None


def _checked_record(record: dict, n_rows: int) -> dict:
    """The record with `messages` and `uncut`.

    Raises ValueError, or KeyError and the like, if it is damaged.
    """
    if not isinstance(record.get("messages"), list):
        record["messages"] = [
            {"role": "user", "content": record["question"]},
            {"role": "assistant", "content": record["answer"]},
        ]
    messages = record["messages"]
    if len(messages) < 2:
        raise ValueError("a pair has no answer")
    uncut = record.setdefault("uncut", messages[-2]["content"])
    texts = [uncut, *(message["content"] for message in messages)]
    if not all(m["role"] in ROLES for m in messages) or not all(isinstance(t, str) for t in texts):
        raise ValueError("a message is not text")
    if not 0 <= record["row"] < record["row"] + record["rows"] <= n_rows:
        raise ValueError("a pair has no rows")
    return record


class QuestionDataset:
    """One split of questions and answers. Implements Dataset, with rows of different lengths.

    An epoch consists of entries: each row of the file once, then its paraphrases, which are new in
    each epoch. `block_size` is ignored by all methods: the longest row decides the width.
    """

    def __init__(
        self, folder: Path, split: str, step_rows: int = 1, noise: QuestionNoise | None = None
    ) -> None:
        self.folder, self.split, self.meta = folder, split, read_meta(folder)
        self.step_rows, self.noise = step_rows, noise
        try:
            self.width, entry = self.meta["width"], self.meta["splits"][split]
            shape = entry["rows"], self.width
            self.characters, self.bytes = entry["characters"], entry["bytes"]
            self.sha256 = entry["sha256"] + entry["mask_sha256"]
            self.ids = open_array(
                folder / f"{split}.bin",
                self.meta["dtype"],
                entry["tokens"],
                entry["sha256"],
                self.meta["vocab_size"],
            ).reshape(shape)
            self.mask = open_array(
                folder / f"{split}.mask.bin", "uint8", entry["tokens"], entry["mask_sha256"], 2
            ).reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / 'meta.json'} does not describe {split} rows"
                f" ({type(error).__name__}: {error}): {PREPARE_AGAIN}"
            ) from None
        # For each entry of an epoch: the row that it is or paraphrases, its length, and the number
        # of its trained tokens. A row ends with a trained token; padding follows.
        self.sources = np.arange(len(self.ids))
        self.lengths = self.width - self.mask[:, ::-1].argmax(axis=1)
        self.trained = self.mask[:, 1:].sum(axis=1, dtype=np.int64)
        self.paraphraser: Paraphraser | None = None
        # ((seed, epoch), order of the entries) of the epoch read last
        self._order: tuple[tuple[int, int], np.ndarray] | None = None

    def add_paraphrases(self, tokenizer: Tokenizer, times: int) -> None:
        """Adds `times` paraphrases of each single question to every epoch.

        The first one trains the whole answer, the others its distinguishing beginning. Raises
        UserError if the data has too few questions that can be paraphrased.
        """
        paraphraser = Paraphraser(tokenizer, self.row, len(self), self.width)
        problem = None
        if not len(paraphraser.sources):
            problem = f"no row of {self.folder} is one question with its whole answer"
        elif paraphraser.success_rate() <= MIN_PARAPHRASED_SHARE:
            problem = f"too few rows of {self.folder} have words that point to their answer"
        if problem:
            raise UserError(
                f"paraphrases={times}: {problem}, and others can't be paraphrased;"
                " use --paraphrases=0, together with --batch_size=16 --max_epochs=14"
            )
        self.paraphraser = paraphraser
        rows = paraphraser.sources
        beginnings = [paraphraser.distinguishing[number] for number in rows.tolist()]
        sources = np.tile(rows, times)
        trained = np.append(self.trained[rows], np.tile(beginnings, times - 1))
        trained = trained.astype(self.trained.dtype)
        # An estimate: a paraphrase is at most as long as its question.
        lengths = self.lengths[sources] - self.trained[sources] + trained
        self.sources = np.append(self.sources, sources)
        self.lengths = np.append(self.lengths, lengths)
        self.trained = np.append(self.trained, trained)

    def __len__(self) -> int:
        """Number of rows in the file."""
        return len(self.ids)

    def row(self, number: int) -> TrainedRow:
        """(ids, mask) of a row of the file, without padding."""
        length = self.lengths[number]
        return self.ids[number, :length].astype(np.int64), self.mask[number, :length]

    def rows_per_epoch(self, block_size: int) -> int:
        """Number of entries in an epoch."""
        return len(self.sources)

    def count_targets(self, first: int, count: int, block_size: int, seed: int) -> int:
        """Number of trained tokens in these rows."""
        return int(self.trained[self.entries(first, count, seed)].sum())

    def row_ids(self, first: int, count: int, block_size: int, seed: int) -> np.ndarray:
        """For each of these rows, the number of the file's row that it is or paraphrases."""
        return self.sources[self.entries(first, count, seed)]

    def rows(self, first: int, count: int, block_size: int, seed: int) -> Batch:
        """`count` rows from row `first` on: (ids, targets) of int64, padded to a common width.

        Rows are numbered through all epochs. A row depends on (seed, its number) alone.
        """
        self.check_files()
        entries = self.entries(first, count, seed)
        # A seed of three numbers never equals an epoch's, which has two.
        draws = [np.random.default_rng([seed, 1, first + n]) for n in range(count)]
        rows = [self.row(number) for number in self.sources[entries]]
        for n, entry in enumerate(entries):
            if self.noise and entry < len(self):
                rows[n] = self.noise(*rows[n], draws[n])
        places = np.flatnonzero(entries >= len(self)).tolist()  # of paraphrases
        if places:
            paraphrases = self.paraphraser.paraphrase_rows(
                self.sources[entries[places]].tolist(),
                self.trained[entries[places]].tolist(),
                [draws[n] for n in places],
            )
            for n, row in zip(places, paraphrases, strict=True):
                rows[n] = row
        return pad_batch(rows, self.padded_width(max(len(ids) for ids, _ in rows)))

    def check_files(self) -> None:
        """UserError if a file was cut while it was in use."""
        for array, name in ((self.ids, "bin"), (self.mask, "mask.bin")):
            check_length(array, self.folder / f"{self.split}.{name}")

    def padded_width(self, longest: int) -> int:
        """Rounds up to one of a few widths: each new shape costs the kernels time and memory."""
        inputs = longest - 1  # the last token is a target only
        next_power_of_two = 1 << (inputs - 1).bit_length()
        step = max(1, next_power_of_two // (2 * WIDTHS_PER_DOUBLING))
        return min(self.width, -(-inputs // step) * step + 1)

    def entries(self, first: int, count: int, seed: int) -> np.ndarray:
        """Each row's entry in its epoch; entries from len(self) on are paraphrases."""
        epochs, places = np.divmod(np.arange(first, first + count), max(1, len(self.sources)))
        parts = [
            self._epoch(seed, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)
        ]
        return np.concatenate(parts)

    def _epoch(self, seed: int, epoch: int) -> np.ndarray:
        """The order of the entries in an epoch.

        Rows of similar length go together, so that batches need little padding: the rows of
        SORTED_STEPS steps, drawn at random, are sorted by length and cut into steps. Then the steps
        of the whole epoch are shuffled.
        """
        if self._order is None or self._order[0] != (seed, epoch):
            draw, size = np.random.default_rng([seed, epoch]), self.step_rows
            order = draw.permutation(len(self.sources))
            for start in range(0, len(order), SORTED_STEPS * size):
                pool = order[start : start + SORTED_STEPS * size]
                by_length = np.argsort(self.lengths[pool], kind="stable")
                order[start : start + SORTED_STEPS * size] = pool[by_length]
            whole = len(order) // size * size  # without the last, incomplete step
            order[:whole] = draw.permutation(order[:whole].reshape(-1, size)).reshape(-1)
            self._order = (seed, epoch), order
        return self._order[1]


# ---------------------------------------------------------------- batches


def pad_batch(rows: Sequence[TrainedRow], width: int = 0) -> Batch:
    """(ids, targets), padded to the longest row or to `width`, whichever is larger.

    Targets are shifted by one token; those that aren't trained are IGNORE.
    """
    width = max(width, *(len(ids) for ids, _ in rows))
    ids = np.zeros((len(rows), width), np.int64)
    targets = np.full((len(rows), width), IGNORE, np.int64)
    for number, (row_ids, row_mask) in enumerate(rows):
        ids[number, : len(row_ids)] = row_ids
        targets[number, : len(row_ids)] = np.where(row_mask == 1, row_ids, IGNORE)
    return ids[:, :-1], targets[:, 1:]


def answer_batches(
    dataset: QuestionDataset, rows: int, numbers: Iterable[int] | None = None
) -> Iterator[Batch]:
    """Yields the rows with these numbers, or all, in batches of up to `rows`, sorted by length."""
    numbers = range(len(dataset)) if numbers is None else numbers
    order = sorted(numbers, key=lambda number: dataset.lengths[number])
    for first in range(0, len(order), rows):
        yield pad_batch([dataset.row(number) for number in order[first : first + rows]])
