"""ModelServer: growing texts, their limits, and models that are replaced meanwhile."""

from __future__ import annotations

import gc
import itertools
import shutil
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from shuoshu.core.command_settings import AppSettings
from shuoshu.core.errors import UserError
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.sampling import SamplingParams
from shuoshu.models.purpose import CONTINUES_TEXT
from shuoshu.web.model_cache import MAX_LOADED_MODELS
from shuoshu.web.model_server import GenerationState, ModelServer

ENDLESS = 10**6  # tokens, more than a test waits for


@pytest.fixture
def folder(pretrained: Path, tmp_path: Path) -> Path:
    """A copy of the pretrained model that a test may change."""
    ignored = shutil.ignore_patterns("checkpoints")
    return Path(shutil.copytree(pretrained, tmp_path / "out-copy", ignore=ignored))


def new_server(*folders: Path, lease_seconds: float = 10, **settings: object) -> ModelServer:
    settings = AppSettings(device="cpu", threads=1, **settings)
    return ModelServer(folders, settings, lease_seconds)


@pytest.fixture(scope="module")
def server(pretrained: Path) -> ModelServer:
    return new_server(pretrained)


def generate(
    server: ModelServer,
    length: int,
    seeds: Sequence[int] = (1,),
    temperature: float = 0.0,
) -> Iterator[GenerationState]:
    """Texts of the first model; greedy ones repeat themselves and don't end before `length`."""
    params = SamplingParams(max_new_tokens=length, temperature=temperature)

    def prepare(model: ChatModel) -> tuple[list[int], SamplingParams]:
        return model.tokenizer.encode("清晨"), params

    return server.generate(next(iter(server.folders)), prepare, list(seeds))


# ---------------------------------------------------------------- texts


def test_a_text_grows_and_ends_with_a_reason(server):
    states = list(generate(server, 300))
    assert len(states) > 2 and states[-1].reason == "length"
    assert not any(state.reason or state.ids for state in states[:-1])
    for before, after in itertools.pairwise(states):
        assert after.texts[0].startswith(before.texts[0])
    assert len(states[-1].ids[0]) >= 300


def test_three_texts_grow_side_by_side_each_from_its_seed(server):
    seeds = (5, 6, 7)
    *_, last = generate(server, 20, seeds, temperature=0.8)
    alone = [list(generate(server, 20, (s,), temperature=0.8))[-1].texts[0] for s in seeds]
    assert last.texts == alone and len(set(alone)) == 3


def test_a_text_ends_at_the_time_limit(pretrained):
    start = time.monotonic()
    *_, last = generate(new_server(pretrained, max_seconds=1.0), ENDLESS)
    assert last.reason == "time" and last.texts[0] and time.monotonic() - start < 20


def test_closing_a_text_frees_the_model_at_once(pretrained):
    server = new_server(pretrained, max_seconds=30.0)
    states = generate(server, ENDLESS)
    assert next(states).texts
    states.close()
    start = time.monotonic()
    assert server.model(str(pretrained)).step == 150
    assert time.monotonic() - start < 2


def test_a_text_that_nobody_fetches_ends_with_its_lease(pretrained):
    server = new_server(pretrained, lease_seconds=0.5, max_seconds=30.0)
    states = generate(server, ENDLESS)
    assert next(states).texts  # the only fetch
    start = time.monotonic()
    assert server.model(str(pretrained)).step == 150  # waits for the model's thread
    assert time.monotonic() - start < 20
    states.close()


# ---------------------------------------------------------------- models


def retrain(folder: Path, tuned: Path) -> None:
    """Replaces a model as training does: file by file, each by a rename."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tuned / name, folder / ".new")
        (folder / ".new").replace(folder / name)


def test_a_retrained_model_is_loaded_again(folder, tuned):
    server, name = new_server(folder), str(folder)
    before = server.model(name)
    assert server.model(name) is before and before.step == 150
    retrain(folder, tuned)
    assert server.model(name).step == 120 and server.model(name) is server.model(name)


@pytest.mark.parametrize("damage", ["missing", "half", "flipped", "no config", "no folder"])
def test_while_a_model_is_replaced_the_old_one_answers(folder, tuned, damage):
    server, name, weights = new_server(folder), str(folder), folder / "model.safetensors"
    before, data = server.model(name), bytearray(weights.read_bytes())
    if damage == "no folder":
        folder.rename(folder.with_name("moved"))
    elif damage == "missing":
        weights.unlink()
    else:
        data[-5] ^= 1
        weights.write_bytes(data[: len(data) // 2] if damage == "half" else data)
        if damage == "no config":
            (folder / "config.json").unlink()
    assert server.model(name) is before
    assert list(generate(server, 5))[-1].texts[0]
    if damage == "no folder":
        folder.with_name("moved").rename(folder)
    retrain(folder, tuned)
    assert server.model(name).step == 120


def test_a_damaged_first_model_is_an_error_until_it_is_replaced(folder, pretrained):
    server, weights = new_server(folder), folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert server.purpose(str(folder)) == CONTINUES_TEXT
    with pytest.raises(UserError, match=r"model\.safetensors"):
        server.model(str(folder))
    shutil.copy(pretrained / "model.safetensors", weights)
    assert server.model(str(folder)).step == 150


def test_two_folders_are_two_models(tuned, pretrained):
    server = new_server(tuned, pretrained)
    models = [(server.model(name).step, *server.purpose(name)) for name in server.folders]
    assert models == [(120, "questions", 1, "", None, 0), (150, "text", 0, "", None, 0)]


def test_only_the_last_used_models_stay_in_memory(pretrained, tmp_path):
    ignored = shutil.ignore_patterns("checkpoints")
    folders = [
        shutil.copytree(pretrained, tmp_path / str(number), ignore=ignored)
        for number in range(MAX_LOADED_MODELS + 1)
    ]
    server = new_server(*folders)
    models = [weakref.ref(server.model(str(folder))) for folder in folders[:-1]]
    assert server.model(str(folders[0])) is models[0]()
    server.model(str(folders[-1]))
    gc.collect()
    assert [number for number, model in enumerate(models) if model() is None] == [1]
    assert server.model(str(folders[1])).step == 150
