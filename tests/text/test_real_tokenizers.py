"""Real tokenizers of Qwen3, Llama 3.1 and SmolLM2: ids and rows as the libraries make them.

Skipped where they are not at hand; tests/models says how to get them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from shuoshu.text.foreign_tokenizer import ForeignTokenizer
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.text.tokenizer_folder import load_tokenizer
from tests.models import real_tokenizers, smollm2
from tests.text.tokenizer_helpers import CHAT, MIXED

ENDS = {  # of documents and of answers
    "qwen3": ("<|endoftext|>", "<|im_end|>"),
    "llama3_1": ("<|end_of_text|>", "<|eot_id|>"),
    "smollm2": ("<|endoftext|>", "<|im_end|>"),
}


@pytest.fixture(scope="module", params=ENDS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(name: str) -> Path:
    try:
        if name == "smollm2":
            return smollm2.cached_folder()
        return real_tokenizers.cached_folder(name)
    except (FileNotFoundError, smollm2.Missing) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def foreign(folder: Path) -> Tokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def test_ids_equal_the_librarys(
    foreign: Tokenizer, theirs: PreTrainedTokenizerBase, text: str
) -> None:
    library = theirs.backend_tokenizer
    for piece in [*MIXED, text]:
        if not any(added in piece for added in foreign.added):
            assert foreign.encode(piece) == library.encode(piece, add_special_tokens=False).ids


def test_the_ends_are_those_of_the_model(foreign: ForeignTokenizer, name: str) -> None:
    end, answer_end = (foreign.added[each] for each in ENDS[name])
    assert (foreign.end, foreign.answer_end) == (end, answer_end)
    assert {end, answer_end} <= foreign.ends
    assert foreign.start == foreign.added.get("<|begin_of_text|>", end)


@pytest.mark.parametrize("first", [0, 1], ids=["system", "no system"])
def test_rows_and_prompts_equal_apply_chat_template(
    foreign: Tokenizer, theirs: PreTrainedTokenizerBase, first: int
) -> None:
    messages = [{**m, "content": m["content"].strip() or "."} for m in CHAT[first:]]
    [*_, (ids, mask)] = foreign.render_rows(messages)
    whole = theirs.apply_chat_template(messages, return_dict=False)
    assert ids == whole[: len(ids)] and mask[-1] == 1
    asked = theirs.apply_chat_template(
        messages[:-1], add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert foreign.render([*messages[:-1], {"role": "assistant", "content": None}])[0] == asked
    assert ids[: len(asked)] == asked, "the answer is trained where it is asked for"
    assert ids[len(asked) :] == foreign.encode_answer(".")
