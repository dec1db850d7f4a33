"""Question files, pairs and conversations for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from shuoshu.core.command_settings import PrepareSftSettings
from shuoshu.sft.conversations import parse_pairs
from shuoshu.sft.pairs import Pair, RejectedRecords

ROWS = [
    {"question": "谁点起了油灯？", "answer": "沈砚。"},
    {"question": "雨停了吗？", "answer": "没有停。"},
]
REVIEWS = [(f"味道{word}？", label) for word in "甲乙丙丁" for label in ("正面", "负面")]


def write(path: Path, content: object) -> Path:
    """Writes bytes or text unchanged, anything else as JSON."""
    raw = content if isinstance(content, (bytes, str)) else json.dumps(content)
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass"))
    return path


def parse(path: Path, content: object, **settings: str) -> tuple[list[Pair], RejectedRecords]:
    """Writes a file and parses it with these settings."""
    return parse_pairs([write(path, content)], PrepareSftSettings(**settings))


def texts(pairs: list[Pair]) -> list[list[str]]:
    """Each conversation as ["u: …", "a: …"]."""
    return [
        [f"{message['role'][0]}: {message['content']}" for message in pair.messages]
        for pair in pairs
    ]


def make_pair(
    question: str,
    answer: str = "好。",
    split: str | None = None,
    group: str | None = None,
    source: str = "a.json, row 1",
) -> Pair:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Pair(messages, source, split, group)


def conversation(*texts: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]
