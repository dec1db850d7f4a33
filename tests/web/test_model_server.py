"""Models at the service of many readers: growing texts, limits, models that are replaced meanwhile."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from pathlib import Path

import pytest

from shuoshu.core.command_settings import AppSettings
from shuoshu.core.errors import UserError
from shuoshu.generation.sampling import SamplingParams
from shuoshu.web.model_server import ModelServer


@pytest.fixture
def moved(pretrained: Path, tmp_path: Path) -> Path:
    """A copy of the pretrained model that a test may change."""
    return Path(
        shutil.copytree(
            pretrained, tmp_path / "out-copy", ignore=shutil.ignore_patterns("checkpoints")
        )
    )


def writes(desk: ModelServer, name: str, n: int, seeds=(1,), temperature: float = 0.0):
    """A text of n tokens; greedy ones run in circles and don't end before."""
    return desk.write(
        name,
        lambda voice: (
            voice.tokenizer.encode("清晨"),
            SamplingParams(max_new_tokens=n, temperature=temperature),
        ),
        list(seeds),
    )


def desk_of(*folders: Path, **settings) -> ModelServer:
    return ModelServer(folders, AppSettings(device="cpu", threads=1, **settings))


@pytest.fixture(scope="module")
def desk(pretrained: Path) -> ModelServer:
    return desk_of(pretrained)


def test_a_text_grows_and_says_why_it_ended(desk, pretrained):
    states = list(writes(desk, str(pretrained), 300))
    assert (
        len(states) > 2
        and states[-1].reason == "length"
        and not any(state.reason for state in states[:-1])
    )
    for before, after in itertools.pairwise(states):
        assert after.texts[0].startswith(before.texts[0])
    assert len(states[-1].ids[0]) >= 300


def test_three_texts_grow_side_by_side_each_from_its_seed(desk, pretrained):
    *_, last = writes(desk, str(pretrained), 20, (5, 6, 7), temperature=0.8)
    alone = [
        list(writes(desk, str(pretrained), 20, (seed,), temperature=0.8))[-1].texts[0]
        for seed in (5, 6, 7)
    ]
    assert last.texts == alone and len(set(alone)) == 3


def test_a_text_ends_at_the_time_limit(pretrained):
    begun = time.monotonic()
    *_, last = writes(desk_of(pretrained, max_seconds=1.0), str(pretrained), 10**6)
    assert last.reason == "time" and last.texts[0] and time.monotonic() - begun < 20


def test_closing_a_text_frees_the_model_at_once(pretrained):
    desk = desk_of(pretrained, max_seconds=600.0)
    growing = writes(desk, str(pretrained), 10**6)
    assert next(growing).texts
    growing.close()
    begun = time.monotonic()
    assert desk.do(str(pretrained), lambda voice: voice.step) == 150
    assert time.monotonic() - begun < 2


def test_a_text_that_nobody_fetches_ends_with_its_lease(pretrained, monkeypatch):
    monkeypatch.setattr("shuoshu.web.model_server.LEASE", 0.5)
    desk = desk_of(pretrained, max_seconds=600.0)
    growing = writes(desk, str(pretrained), 10**6)
    assert next(growing).texts  # and never again
    freed = threading.Event()
    desk._worker.submit(freed.set)
    assert freed.wait(20)
    growing.close()


def retrained(folder: Path, tuned: Path) -> None:
    """Another model takes the folder's place, as training does it: each file by one rename."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tuned / name, folder / ".aside")
        (folder / ".aside").replace(folder / name)


def test_a_model_that_was_trained_further_is_read_again(moved, tuned):
    desk, name = desk_of(moved), str(moved)
    before = desk.voice(name)
    assert desk.voice(name) is before and before.step == 150
    retrained(moved, tuned)
    assert desk.voice(name).step == 120 and desk.voice(name) is desk.voice(name)


@pytest.mark.parametrize("damage", ["missing", "half", "flipped", "no config", "no folder"])
def test_while_a_model_is_replaced_the_one_before_answers(moved, tuned, damage):
    desk, name, weights = desk_of(moved), str(moved), moved / "model.safetensors"
    before, data = desk.voice(name), bytearray(weights.read_bytes())
    if damage == "no folder":
        moved.rename(moved.with_name("gone"))
    elif damage == "missing":
        weights.unlink()
    else:
        data[-5] ^= 1
        weights.write_bytes(data[: len(data) // 2] if damage == "half" else data)
        if damage == "no config":
            (moved / "config.json").unlink()
    assert desk.voice(name) is before
    assert list(writes(desk, name, 5))[-1].texts[0]
    if damage == "no folder":
        moved.with_name("gone").rename(moved)
    retrained(moved, tuned)
    assert desk.voice(name).step == 120


def test_a_first_model_that_is_damaged_is_an_error_and_later_served(moved, pretrained):
    desk, weights = desk_of(moved), moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert desk.turns(str(moved)) == 0
    with pytest.raises(UserError, match=r"model\.safetensors"):
        desk.voice(str(moved))
    shutil.copy(pretrained / "model.safetensors", weights)
    assert desk.voice(str(moved)).step == 150


def test_two_folders_are_two_models(tuned, pretrained):
    desk = desk_of(tuned, pretrained)
    assert [(desk.voice(name).step, desk.turns(name)) for name in desk.folders] == [
        (120, 1),
        (150, 0),
    ]
