"""A run's log.jsonl and settings.json: written, read, repaired."""

from __future__ import annotations

import json
import time
from pathlib import Path

from shuoshu.core.errors import UserError
from shuoshu.core.files import read_json, write_atomically, write_synced_text


def newest_out_dir() -> Path:
    """The model that was trained last, where none is named."""
    found = [
        path
        for name in ("out-sft", "out-pretrain")
        if (path := Path(name) / "model.safetensors").is_file()
    ]
    if not found:
        raise UserError(
            "there is no model in out-sft or out-pretrain: train one with\n  python train.py\nor name its folder"
        )
    return max(found, key=lambda path: path.stat().st_mtime).parent


FIELD_TYPES = {
    "kind": str,
    "step": int,
    "lr": (int, float),
    **dict.fromkeys(("title", "prompt", "text", "reference"), str),
}
FIELD_TYPES |= dict.fromkeys(
    ("loss", "val_loss", "val_rouge_l", "val_exact_match"), (int, float, type(None))
)


class RunLog:
    """log.jsonl: one object a line, flushed as it is written; the single source of the curves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, kind: str, **values: object) -> None:
        line = json.dumps(
            {"kind": kind, "time": round(time.time(), 3), **values}, ensure_ascii=False
        )
        with self.path.open("a+b") as file:
            if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                file.write(b"\n")  # a crash tore the line before
            file.write((line + "\n").encode())

    def read(self, kind: str | None = None) -> list[dict]:
        """Its records in order; a line torn by a crash, or damaged, is left out."""
        if not self.path.is_file():
            return []
        records = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if _is_sound(record) and kind in (None, record.get("kind")):
                records.append(record)
        return records

    def rewind(self, step: int, evaluated: int) -> None:
        """Drops what lies after `step`, of evaluations what lies after `evaluated`, so that a resumed run doesn't tell of it twice."""
        kept = [
            r
            for r in self.read()
            if r.get("step", 0) <= (evaluated if r.get("kind") in ("eval", "sample") else step)
        ]
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
        write_atomically(self.path, lambda aside: write_synced_text(aside, text))


def _is_sound(record: object) -> bool:
    return isinstance(record, dict) and all(
        isinstance(value, FIELD_TYPES.get(name, object)) for name, value in record.items()
    )


def read_settings(out_dir: Path) -> dict:
    """What settings.json says of the run; empty for a folder without one."""
    try:
        saved = read_json(out_dir / "settings.json")
        return (
            saved
            if all(isinstance(saved[part], dict) for part in ("settings", "data", "machine"))
            else {}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return {}
