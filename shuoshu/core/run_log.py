"""A run's log.jsonl and settings.json: write, read, repair."""

from __future__ import annotations

import json
import time
from pathlib import Path

from shuoshu.core.files import read_json, write_atomically, write_synced_text

# Types of the fields that the readers of a log rely on.
FIELD_TYPES = {"kind": str, "step": int, "lr": (int, float)}
FIELD_TYPES |= dict.fromkeys(("title", "prompt", "text", "reference"), str)
FIELD_TYPES |= dict.fromkeys(
    (
        "loss",
        "reading_loss",
        "val_loss",
        "val_rouge_l",
        "val_exact_match",
        "val_accuracy",
        "val_macro_f1",
    ),
    (int, float, type(None)),
)


class RunLog:
    """log.jsonl: one JSON object per line. The curves are drawn from it alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, **values: object) -> None:
        line = json.dumps(
            {"kind": kind, "time": round(time.time(), 3), **values}, ensure_ascii=False
        )
        with self.path.open("a+b") as file:
            if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")  # ends a line that a crash cut off
            file.write((line + "\n").encode())

    def read(self, kind: str | None = None) -> list[dict]:
        """The records in order, without damaged lines; only those of `kind` if it is given."""
        if not self.path.is_file():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_valid(record) and kind in (None, record.get("kind")):
                records.append(record)
        return records

    def rewind(self, step: int, evaluated: int) -> None:
        """Drops the records that a resumed run writes again.

        These are evaluations and samples after step `evaluated`, and other records after `step`.
        """
        records = [
            record
            for record in self.read()
            if record.get("step", 0)
            <= (evaluated if record.get("kind") in ("eval", "sample") else step)
        ]
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_atomically(self.path, lambda path: write_synced_text(path, text))


def _is_valid(record: object) -> bool:
    return isinstance(record, dict) and all(
        isinstance(value, FIELD_TYPES.get(name, object)) for name, value in record.items()
    )


def read_settings(out_dir: Path) -> dict:
    """The content of settings.json; empty if there is none or it is damaged."""
    try:
        saved = read_json(out_dir / "settings.json")
        sections = [saved[name] for name in ("settings", "data", "machine")]
        return saved if all(isinstance(section, dict) for section in sections) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
