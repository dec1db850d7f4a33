"""Others' tokenizers: the same ids as the library, no special token from text, stop tokens, files."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from shuoshu.core.errors import UserError
from shuoshu.generation.utf8 import WHOLE, utf8_transitions
from shuoshu.text.foreign_tokenizer import ForeignTokenizer
from shuoshu.text.tokenizer import Tokenizer, train_bpe
from shuoshu.text.tokenizer_folder import load_tokenizer
from tests.text.foreign_helpers import CHATML, FAMILIES, write_folder
from tests.text.tokenizer_helpers import ANY_TEXT, MIXED


@pytest.fixture(scope="session")
def folders(text: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("foreign")
    return {family: write_folder(top / family, family, text) for family in FAMILIES}


@pytest.fixture(scope="session", params=["qwen", "llama", "smol"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture(scope="session")
def foreign(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def library(folder: Path) -> HFTokenizer:
    return HFTokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path):
    """copied(family) copies a folder, to be changed."""
    return lambda family: Path(shutil.copytree(folders[family], tmp_path / "copy"))


def change(path: Path, **fields: object) -> None:
    """Sets fields of a JSON file, which needn't exist."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | fields), encoding="utf-8")


# ---------------------------------------------------------------- text


@given(drawn=ANY_TEXT)
def test_ids_equal_the_librarys(drawn: str, foreign: Tokenizer, library: HFTokenizer) -> None:
    assert foreign.encode(drawn) == library.encode(drawn, add_special_tokens=False).ids
    assert foreign.encode_to_numpy(drawn).tolist() == foreign.encode(drawn)


def test_ids_of_a_novel_and_odd_texts_equal_the_librarys(
    foreign: Tokenizer, library: HFTokenizer, text: str
) -> None:
    for piece in (*MIXED, text, " xyzzy 1234", "\u0301a", "e\u0301"):
        if not any(name in piece for name in foreign.added):
            assert foreign.encode(piece) == library.encode(piece, add_special_tokens=False).ids


def test_names_of_added_tokens_in_text_are_plain_text(foreign: Tokenizer) -> None:
    added = set(foreign.added.values())
    for name in foreign.added:
        for piece in (name, f"a {name}b", f"{name}{name}", f"\n{name} "):
            ids = foreign.encode(piece)
            assert not added.intersection(ids), piece
            assert foreign.decode(ids) == piece


@given(drawn=ANY_TEXT)
def test_decoding_gives_the_normalized_text_back(drawn: str, folders: dict[str, Path]) -> None:
    qwen, llama = load_small(folders["qwen"]), load_small(folders["llama"])
    assert qwen.decode(qwen.encode(drawn)) == unicodedata.normalize("NFC", drawn)
    assert llama.decode(llama.encode(drawn)) == drawn


LOADED: dict[Path, Tokenizer] = {}


def load_small(folder: Path) -> Tokenizer:
    if folder not in LOADED:
        LOADED[folder] = load_tokenizer(folder)
    return LOADED[folder]


def test_the_bytes_of_each_token_are_the_librarys(foreign: Tokenizer, library: HFTokenizer) -> None:
    assert foreign.n_vocab == max(library.get_vocab().values()) + 1
    for number, token_bytes in enumerate(foreign.token_bytes):
        name = library.id_to_token(number)
        if name in foreign.specials:
            assert token_bytes == b""
        elif name in foreign.added:
            assert token_bytes == name.encode()
        else:
            decoded = library.decode([number], skip_special_tokens=False)
            assert token_bytes.decode("utf-8", errors="replace") == decoded


def test_half_of_a_surrogate_pair_is_replaced(foreign: Tokenizer) -> None:
    assert foreign.decode(foreign.encode("a\ud83d b")) == "a� b"


def test_ids_may_have_gaps(copied) -> None:
    folder = copied("qwen")
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    document["added_tokens"][-1]["id"] = 900
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    foreign = load_tokenizer(folder)
    assert foreign.n_vocab == 901 == len(foreign.token_bytes)
    assert foreign.token_bytes[898:] == [b"", b"", b"</think>"]
    after, _ = utf8_transitions(foreign, 960)
    assert (after[:, 605:900] == -1).all() and (after[:, 901:] == -1).all()


# ---------------------------------------------------------------- ends


def test_start_and_ends_come_from_all_files_that_name_them(copied) -> None:
    folder = copied("llama")
    names = HFTokenizer.from_file(str(folder / "tokenizer.json")).token_to_id
    foreign = load_tokenizer(folder)
    assert foreign.start == foreign.bos_token_id == names("<|begin|>")
    assert foreign.end == names("<|end_of_text|>") and foreign.answer_end == names("<|eot|>")
    assert foreign.ends == {foreign.end, foreign.answer_end}
    assert foreign.encode_prompt("a") == [foreign.start, *foreign.encode("a")]
    change(folder / "generation_config.json", eos_token_id=[3, names("<|eot|>")])
    change(folder / "config.json", eos_token_id=5)
    more = load_tokenizer(folder)
    assert more.ends == {foreign.end, foreign.answer_end, 3, 5}
    assert more.eos_token_ids[0] == more.eos_token_id == names("<|eot|>")


def test_without_bos_texts_start_after_the_end_of_another(folders: dict[str, Path]) -> None:
    foreign = load_tokenizer(folders["smol"])
    assert foreign.start == foreign.end == 0 and foreign.answer_end == 2
    assert foreign.encode_prompt("a") == foreign.encode("a")
    assert foreign.pad == 0


def test_only_ends_and_tokens_with_text_may_be_generated(foreign: Tokenizer) -> None:
    after, _ = utf8_transitions(foreign, foreign.n_vocab + 7)
    for number in range(foreign.n_vocab + 7):
        if number in foreign.ends:
            assert after[WHOLE, number] == WHOLE and (after[WHOLE + 1 :, number] == -1).all()
        elif number >= foreign.n_vocab or not foreign.token_bytes[number]:
            assert (after[:, number] == -1).all()


@given(seed=st.integers(0, 2**32 - 1))
def test_what_the_mask_allows_is_valid_utf_8(seed: int, folders: dict[str, Path]) -> None:
    foreign = load_small(folders["qwen"])
    after, _ = utf8_transitions(foreign, foreign.n_vocab)
    draw, state, text = np.random.default_rng(seed), WHOLE, b""
    while len(text) < 60 or state != WHOLE:
        token = int(draw.choice(np.flatnonzero(after[state] >= 0)))
        state = after[state, token]
        text += foreign.token_bytes[token]
    text.decode("utf-8")


# ---------------------------------------------------------------- files


def test_a_data_folder_has_the_files_unchanged_and_loads_as_the_same_tokenizer(
    copied, tmp_path: Path
) -> None:
    folder = copied("llama")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\n \r")
    (folder / "chat_template.jinja").write_bytes(
        CHATML.replace("im_", "").encode() + b"\r\n\xc3\xa9"
    )
    (folder / "special_tokens_map.json").write_text('{"pad_token": "<|eot|>"}')
    change(folder / "config.json", eos_token_id=[7, 5], max_position_embeddings=131_072)
    foreign = load_tokenizer(folder)
    data = tmp_path / "data"
    data.mkdir()
    for name, content in foreign.data_files().items():
        (data / name).write_text(content, encoding="utf-8", newline="\n")
    for name in foreign.files(64):
        assert (data / name).read_bytes() == (folder / name).read_bytes()
    assert len(foreign.files(64)) == 4 and not (data / "config.json").exists()
    again = load_tokenizer(data)
    for name in ("hash", "ends", "end", "start", "pad", "eos_token_id", "n_vocab"):
        assert getattr(again, name) == getattr(foreign, name), name


def test_other_tokenizers_have_other_hashes(copied) -> None:
    folder = copied("qwen")
    hashes = [load_tokenizer(folder).hash]
    change(folder / "tokenizer_config.json", chat_template=CHATML)
    hashes.append(load_tokenizer(folder).hash)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for harm in (
        lambda: document["model"]["merges"].pop(),
        lambda: document.update(normalizer=None),
        lambda: document["added_tokens"].pop(),
    ):
        harm()
        (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
        hashes.append(load_tokenizer(folder).hash)
    assert len(set(hashes)) == 5


def test_a_folder_that_transformers_saved_again_has_the_same_hash(
    folder: Path, foreign: Tokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.hash, again.ends) == (foreign.hash, foreign.ends)


def test_shuoshus_own_folders_keep_their_tokenizer(tmp_path: Path) -> None:
    own = train_bpe(["雨夜雨夜ab" * 20], 270)
    for name, content in own.files(64).items():
        (tmp_path / name).write_text(content, encoding="utf-8", newline="\n")
    loaded = load_tokenizer(tmp_path)
    assert not isinstance(loaded, ForeignTokenizer)
    assert (loaded.start, loaded.answer_end, loaded.ends) == (own.end, own.end, {own.end})
    assert loaded.data_files() == {"tokenizer.json": own.to_json()}
    assert loaded.encode_answer("雨") == [*own.encode("雨"), own.end]


# ---------------------------------------------------------------- refused


def library_tokenizer(model, pre_tokenizer, decoder, trainer) -> HFTokenizer:
    tokenizer = HFTokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoder
    tokenizer.train_from_iterator(["hello world hello"], trainer)
    return tokenizer


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "SentencePiece", "add_prefix_space"])
def test_other_kinds_of_tokenizers_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    quiet = {"vocab_size": 60, "show_progress": False}
    bpe = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **quiet)
    byte_level, whitespace = decoders.ByteLevel(), pre_tokenizers.Whitespace()
    tokenizer = {
        "WordPiece": lambda: library_tokenizer(
            models.WordPiece(unk_token="[UNK]"),
            whitespace,
            decoders.WordPiece(),
            trainers.WordPieceTrainer(special_tokens=["[UNK]"], **quiet),
        ),
        "Unigram": lambda: library_tokenizer(
            models.Unigram(), whitespace, byte_level, trainers.UnigramTrainer(**quiet)
        ),
        "SentencePiece": lambda: library_tokenizer(
            models.BPE(byte_fallback=True), pre_tokenizers.Metaspace(), byte_level, bpe
        ),
        "add_prefix_space": lambda: library_tokenizer(
            models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=True), byte_level, bpe
        ),
    }[kind]()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=f"{kind}.*supported is byte-level BPE, as in Qwen"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_a_folder_with_another_format_only_is_told_what_is_missing(name, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(UserError, match=rf"it has {name} but no tokenizer.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", '{"eos_token_id": 99999}', "99,999 is not in its vocabulary"),
        ("generation_config.json", '{"eos_token_id": [1, "2"]}', "eos_token_id .* is not a token"),
        ("config.json", '{"eos_token_id": true}', "eos_token_id True is not a token's number"),
        ("config.json", "[]", "config.json is damaged"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is damaged"),
        ("tokenizer_config.json", '{"chat_template": 7}', "chat_template is not a text"),
        ("tokenizer_config.json", '{"chat_template": [7]}', "tokenizer_config.json is damaged"),
        ("special_tokens_map.json", "[" * 10**5, "special_tokens_map.json is damaged"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is damaged"),
    ],
)
def test_damaged_files_beside_the_tokenizer_are_refused_by_name(
    copied, name: str, content: str | bytes, message: str
) -> None:
    folder = copied("qwen")
    raw = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(raw)
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


def nested(depth: int) -> dict:
    part: dict = {"type": "ByteLevel"}
    for _ in range(depth):
        part = {"type": "Sequence", "pretokenizers": [part]}
    return part


GROWTH = {"type": "Replace", "pattern": {"String": "t"}, "content": "t" * 10}  # 11 of them: 40 GB
SLOW = {"type": "Split", "pattern": {"Regex": r"([\s\S]|[\s\S])*Q|[\s\S]"}, "behavior": "Isolated"}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda d: d.update(normalizer={"type": "Sequence", "normalizers": [GROWTH] * 11}),
            "its normalizer is Replace",
        ),
        (lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(SLOW), "retry-limit-in-match"),
        (lambda d: d.update(pre_tokenizer=nested(450)), "can't be used"),
        (lambda d: d["added_tokens"][0].update(id=1 << 40), "whole numbers below"),
        (lambda d: d["model"]["vocab"].pop("a"), "no token for the byte 0x61"),
        (lambda d: d["model"]["merges"].append(["zzz", "zzz"]), "the tokenizers library refuses"),
        (lambda d: d.update(normalizer={"type": "Lowercase"}), None),
        (lambda d: d.update(pre_tokenizer=None), "is not ByteLevel"),
        (lambda d: d["added_tokens"].clear(), "names its eos_token"),
    ],
)
def test_a_tokenizer_that_cant_be_trusted_is_refused(copied, harm, message: str | None) -> None:
    folder = copied("qwen")
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    harm(document)
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    if message is None:  # a normalizer that changes text is honoured
        assert load_tokenizer(folder).decode(load_tokenizer(folder).encode("Abc")) == "abc"
        return
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


def test_a_post_processor_without_bos_starts_texts_at_the_end(copied) -> None:
    folder = copied("llama")
    tokenizer = HFTokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    foreign = load_tokenizer(folder)
    assert foreign.bos_token_id is None and foreign.start == foreign.end
