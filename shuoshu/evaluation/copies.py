"""What an evaluation is made of: figures with their intervals, and the text that a model may have copied from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np

from shuoshu.core.cli import UserError
from shuoshu.core.files import read_json
from shuoshu.evaluation import metrics
from shuoshu.evaluation.loss import Score
from shuoshu.text import dataset
from shuoshu.text.tokenizer import Tokenizer

COPIED = 20  # characters in succession that count as copied from the training text
MARKED = 8  # characters in succession that the report marks
Measures = dict[str, dict[str, float]]


def saved_run(out_dir: Path) -> dict:
    """What settings.json says of the run; empty for a folder without one."""
    try:
        saved = read_json(out_dir / "settings.json")
        return saved if all(isinstance(saved[part], dict) for part in ("settings", "data", "machine")) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


class TrainingText:
    """What a model was pretrained on, as text: where its answers may be copied from."""

    def __init__(self, folder: Path) -> None:
        file, tokenizer = dataset.TokenFile(folder, "train"), Tokenizer.load(folder)
        books = [f"《{book['title']}》" for book in file.meta["books"]]
        titles = {c["token"]: books[c["book"]] + c["title"] for c in file.meta["chapters"] if c["split"] == "train"}
        edges, pieces, self.places, length = sorted({0, *titles, len(file)}), [], [], 0
        for start, end in pairwise(edges):
            self.places.append((length, titles.get(start)))
            pieces.append(tokenizer.decode(file.tokens[start:end].tolist()))
            length += len(pieces[-1])
        self.folder, self.copies = folder, metrics.Copies("".join(pieces))

    @classmethod
    def find(cls, out_dir: Path) -> TrainingText | None:
        """The text behind a model, back through the models that it was fine-tuned from; none where it is no longer there."""
        with suppress(UserError):  # the folder holds something else by now
            for _ in range(8):
                saved = saved_run(out_dir)
                folder, before = Path(str(saved.get("data", {}).get("folder"))), saved.get("settings", {}).get("init_from", "scratch")
                if (folder / "meta.json").is_file() and "width" not in (meta := dataset.read_meta(folder)):
                    return cls(folder) if meta["splits"]["train"]["sha256"] == saved["data"].get("train") else None
                if before == "scratch":
                    return None
                out_dir = Path(str(before))
        return None

    def spans(self, text: str) -> list[tuple[int, int, str | None]]:
        """(start, end, book and chapter) of what stands verbatim in it, MARKED characters or more."""
        return [(start, end, self.places[bisect_right(self.places, at, key=lambda p: p[0]) - 1][1]) for start, end, at in self.copies.spans(text, MARKED)]


# ---------------------------------------------------------------- figures with intervals


class Figures:
    """The measures of one model on one split; values by row are kept, so that models can be compared row by row."""

    def __init__(self, seed: int) -> None:
        self.seed, self.measures, self.by_row, self.together = seed, {}, {}, {}

    def mean(self, name: str, values: Sequence[float]) -> None:
        self.by_row[name] = np.asarray(values, dtype=np.float64)
        self.put(name, metrics.bootstrap(self.by_row[name], self.seed))

    def of_all(self, name: str, rows: np.ndarray, statistic: Callable[[np.ndarray], float], rounds: int = 2000) -> None:
        """A figure of rows taken together, statistic(their numbers); what `rows` holds tells whether another model's are the same."""
        self.together[name] = rows, statistic, rounds
        self.put(name, metrics.bootstrap_of(statistic, len(rows), self.seed, rounds))

    def put(self, name: str, interval: tuple[float, float, float]) -> None:
        self.measures[name] = dict(zip(("value", "low", "high"), map(float, interval), strict=True))

    def perplexities(self, scored: Score, characters: int, n_bytes: int, suffix: str = "") -> None:
        """Of all tokens, without end tokens, and per character and byte of the text."""
        rows = scored.rows[scored.rows[:, 1] > 0]
        tokens = rows[:, 1]

        def ratio(over: Callable[[float], float], nats: int) -> Callable[[np.ndarray], float]:
            return lambda chosen: float(over(rows[chosen, nats].sum() / max(1.0, rows[chosen, nats + 1].sum())))

        self.of_all("perplexity" + suffix, tokens, ratio(np.exp, 0))
        if not suffix:
            self.of_all("perplexity_without_end", tokens, ratio(np.exp, 2))
        for name, count in (("bits_per_char", characters), ("bits_per_byte", n_bytes)):
            scale = scored.bits_per(count) / scored.text_nats * rows[:, 3].sum() if count and scored.text_nats else 0.0
            self.of_all(name + suffix, tokens, ratio(scale.__mul__, 2))  # the same nats, over another count

    def texts(self, prefix: str, texts: Sequence[str], sources: TrainingText | None) -> None:
        """What can be said of texts by themselves."""
        self.mean(f"{prefix}length" if prefix else "mean_length", [len(text) for text in texts])
        for n in (1, 2):
            self.measures[f"{prefix}distinct_{n}"] = {"value": metrics.distinct(texts, n)}
        self.mean(f"{prefix}repetition", [metrics.repetition(text) for text in texts])
        if sources:
            longest = [sources.copies.longest(text) for text in texts]
            self.mean(f"{prefix}copy_longest", longest)
            self.mean(f"{prefix}copy_rate", [length >= COPIED for length in longest])

    def minus(self, other: Figures) -> Measures:
        """The paired differences of what both have of the same rows."""
        both = [name for name in self.by_row if name in other.by_row and not name.startswith(("lookup_", "reference_"))]
        pairs = {name: metrics.paired(self.by_row[name], other.by_row[name], self.seed) for name in both}
        for name, (rows, mine, rounds) in self.together.items():
            same, theirs, _ = other.together.get(name, (None, None, 0))
            if np.array_equal(rows, same):
                pairs[name] = metrics.bootstrap_of(lambda chosen, a=mine, b=theirs: a(chosen) - b(chosen), len(rows), self.seed, rounds)
        return {name: dict(zip(("value", "low", "high"), interval, strict=True)) for name, interval in pairs.items()}
