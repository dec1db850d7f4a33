"""The page with the folders of others' models and with adapters, which share their base's weights."""

from __future__ import annotations

import gc
import os
import shutil
import weakref
from pathlib import Path

import pytest
import torch

from shuoshu.core.command_settings import AppSettings
from shuoshu.core.errors import UserError
from shuoshu.generation.sampling import SamplingParams
from shuoshu.models.purpose import CHATS, CONTINUES_TEXT, Purpose
from shuoshu.models.weights import load_model
from shuoshu.web import token_view
from shuoshu.web.compare_tab import default_pair
from shuoshu.web.model_cache import MAX_LOADED_MODELS, ModelCache
from shuoshu.web.model_server import ModelServer
from shuoshu.web.service import GeneratedText, PageService
from shuoshu.web.training_tab import training_html
from tests.models.adapter_folders import write_adapter, write_peft_adapter
from tests.models.families import write_model

ANSWERS = Purpose("questions", 1)
SETTINGS = AppSettings(device="cpu", threads=1, block_size=128)
CPU = torch.device("cpu")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("page")
    base = write_model(root / "base", "qwen2", shard_size="40KB")
    return {
        "base": base,
        "ours": write_adapter(root / "ours", base, ANSWERS, step=7),
        "newer": write_adapter(root / "newer", base, CONTINUES_TEXT, step=9, seed=1),
        "peft": write_peft_adapter(root / "peft", base),
    }


@pytest.fixture
def copies(folders: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """A base and its adapter that a test may change."""
    base = Path(shutil.copytree(folders["base"], tmp_path / "base"))
    return {"base": base, "ours": write_adapter(tmp_path / "ours", base, ANSWERS)}


def replace_file(source: Path, target: Path) -> None:
    shutil.copy(source, target.with_name(".new"))
    target.with_name(".new").replace(target)


def greedy(model, text: str = "the lamp") -> str:
    params = SamplingParams(max_new_tokens=8, temperature=0.0)
    [completion] = model.complete([model.question_ids(text)], params, [0])
    return completion.text


# ---------------------------------------------------------------- one copy of the weights


def test_adapters_share_the_weights_of_their_base(folders):
    cache = ModelCache(SETTINGS, CPU)
    ours, newer, base = (cache.load(folders[name]) for name in ("ours", "newer", "base"))
    for model in (ours, newer):
        assert model.base is base
        shared = dict(model.model.named_parameters())
        assert all(shared[name] is own for name, own in base.model.named_parameters())
        assert model.next_token.head is base.next_token.head
        for layer, own in zip(model.next_token.layers, base.next_token.layers, strict=True):
            assert layer.products is own.products


def test_each_of_them_answers_as_if_it_were_alone(folders):
    cache = ModelCache(SETTINGS, CPU)
    texts = {name: greedy(cache.load(folders[name])) for name in ("ours", "base", "peft", "base")}
    assert texts["ours"] != texts["base"]
    ids = torch.randint(3, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    for name in ("ours", "newer", "peft", "base"):
        expected = load_model(folders[name]).model(ids)
        torch.testing.assert_close(cache.load(folders[name]).model(ids), expected)


def test_in_bfloat16_the_adapter_is_converted_too(folders):
    settings = AppSettings(device="cpu", dtype="bfloat16")
    model = ModelCache(settings, CPU).load(folders["ours"])
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}
    assert isinstance(greedy(model), str)


def test_a_base_stays_in_memory_with_its_adapter_and_goes_with_it(folders, tmp_path):
    others = [shutil.copytree(folders["base"], tmp_path / str(n)) for n in range(MAX_LOADED_MODELS)]
    cache = ModelCache(SETTINGS, CPU)
    base = weakref.ref(cache.load(folders["base"]))
    adapter = weakref.ref(cache.load(folders["ours"]))
    for other in others[:-1]:
        cache.load(other)
    assert cache.load(folders["ours"]) is adapter()  # it makes its base the last one used, too
    cache.load(others[-1])
    assert cache.load(folders["ours"]) is adapter() and cache.load(folders["base"]) is base()
    for other in others:
        cache.load(other)
    gc.collect()
    assert base() is None and adapter() is None


# ---------------------------------------------------------------- files that change


def test_a_retrained_adapter_is_loaded_again_without_its_base(folders, copies):
    cache = ModelCache(SETTINGS, CPU)
    base, before = cache.load(copies["base"]), cache.load(copies["ours"])
    assert cache.load(copies["ours"]) is before and before.step == 7
    path = copies["ours"] / WEIGHTS
    newer = write_adapter(copies["ours"].with_name("newer"), copies["base"], ANSWERS, 9, seed=1)
    path.write_bytes(path.read_bytes()[:-50])  # half written
    assert cache.load(copies["ours"]) is before
    replace_file(newer / WEIGHTS, path)
    assert cache.load(copies["ours"]).step == 9 and cache.load(copies["base"]) is base


def test_an_adapter_is_refused_as_soon_as_its_base_changed(copies, tmp_path):
    cache = ModelCache(SETTINGS, CPU)
    before, base = cache.load(copies["ours"]), cache.load(copies["base"])
    shard = next(copies["base"].glob("model-00002*"))
    other = write_model(tmp_path / "other", "qwen2", shard_size="40KB", initializer_range=0.2)
    kept = shutil.copy(shard, tmp_path / "kept")
    replace_file(other / shard.name, shard)
    assert cache.load(copies["base"]) is not base
    with pytest.raises(UserError, match="no longer, the model"):
        cache.load(copies["ours"])
    replace_file(kept, shard)
    assert cache.load(copies["ours"]) is not before


def test_the_base_may_be_named(copies, tmp_path):
    copies["base"].rename(tmp_path / "moved")
    with pytest.raises(UserError, match="--base=FOLDER"):
        ModelCache(SETTINGS, CPU).load(copies["ours"])
    settings = AppSettings(device="cpu", base=str(tmp_path / "moved"))
    server = ModelServer([copies["ours"]], settings)
    assert server.model(str(copies["ours"])).step == 7
    assert server.base_folder(str(copies["ours"])) == tmp_path / "moved"


# ---------------------------------------------------------------- the page


def service_of(*folders: Path) -> PageService:
    return PageService(ModelServer(folders, SETTINGS))


def test_before_and_after_are_the_first_pair_to_compare(folders, tuned, pretrained):
    for name in ("ours", "newer", "peft"):
        chosen = [tuned, folders[name], folders["base"]]
        assert default_pair(service_of(*chosen)) == (str(folders["base"]), str(folders[name]))
    assert default_pair(service_of(folders["ours"], tuned)) == (str(folders["ours"]), str(tuned))


def test_the_page_knows_what_each_model_is_for(folders):
    service = service_of(*folders.values())
    expected = {"base": CHATS, "ours": ANSWERS, "newer": CONTINUES_TEXT, "peft": CHATS}
    assert service.purposes == {str(folders[name]): each for name, each in expected.items()}


def test_a_long_conversation_is_read_as_far_as_the_page_allows(folders):
    service = service_of(folders["base"])
    history = [{"role": role, "content": "the lamp is lit"} for role in ("user", "assistant") * 20]
    name = str(folders["base"])
    *_, last = service.generate(service.question(name, "the lamp", {"max_new_tokens": 4}, history))
    assert 32 < len(last.texts[0].prompt_ids) <= SETTINGS.block_size // 2
    with pytest.raises(UserError, match=str(SETTINGS.block_size)):
        list(service.generate(service.question(name, "lamp " * 200, {"max_new_tokens": 4})))


def test_a_look_inside_shows_every_token_of_another_vocabulary(folders):
    service, text = service_of(folders["base"]), "the lamp 雨\U0001f319<|im_end|>"
    name = str(folders["base"])
    pieces = service.inspect_pieces(name, text, "")
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[0].text == "the" and 0 < pieces[0].probability < 1
    alternatives = [other for piece in pieces for other, _ in piece.others]
    assert any(other and other.startswith("<") for other in alternatives)  # parts of characters
    html = service.inspect(GeneratedText(name, prompt_ids=[3], text=text))
    assert "The training text is not here" in html


def test_special_tokens_are_shown_by_their_names(folders):
    tokenizer = load_model(folders["base"]).tokenizer
    assert token_view.token_text(tokenizer, tokenizer.specials["<|im_start|>"]) == "<|im_start|>"
    assert token_view.token_text(tokenizer, tokenizer.answer_end) is None


def test_the_training_tab_shows_a_model_that_was_not_trained_here(folders):
    service = service_of(folders["base"])
    assert "Not measured yet" in training_html(service, os.fspath(folders["base"]))
