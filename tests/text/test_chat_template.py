"""Others' chat templates: rows and prompts as transformers renders them, exact masks, refusals."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from shuoshu.core.errors import UserError
from shuoshu.text.tokenizer import Tokenizer
from shuoshu.text.tokenizer_folder import load_tokenizer
from tests.text.foreign_helpers import CHATML, FAMILIES, THOUGHTS, write_folder

ASKED = {"role": "assistant", "content": None}
# Some end or begin with what the pre-tokenizer could join to the template's text.
CONTENTS = st.lists(
    st.sampled_from(
        ["沈砚", "在渡口。", "12", "don't", " ", "\n", "é🙂", ":", "…(ok)", "The lamp"]
    ),
    min_size=1,
    max_size=6,
).map("".join)


def conversation(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]
    return [{"role": "system", "content": system}] * (system is not None) + messages


def stripped(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{**message, "content": message["content"].strip()} for message in messages]


@pytest.fixture(scope="session")
def folders(text: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("templates")
    return {family: write_folder(top / family, family, text) for family in FAMILIES}


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def foreign(family: str, folders: dict[str, Path]) -> Tokenizer:
    return load_tokenizer(folders[family])


@pytest.fixture(scope="session")
def theirs(family: str, folders: dict[str, Path]) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folders[family])


@pytest.fixture
def with_template(folders: dict[str, Path], tmp_path: Path):
    """with_template(source) loads a tokenizer like Qwen3's with this template."""

    def load(source: str | None, **config: object) -> Tokenizer:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).write_bytes((folders["qwen"] / name).read_bytes())
        path = tmp_path / "tokenizer_config.json"
        fields = {**json.loads(path.read_text(encoding="utf-8")), **config, "chat_template": source}
        path.write_text(json.dumps(fields), encoding="utf-8")
        return load_tokenizer(tmp_path)

    return load


def trained(row: tuple[list[int], list[int]]) -> list[list[int]]:
    """The runs of trained ids of a row."""
    ids, mask = row
    edges = [n for n, (a, b) in enumerate(pairwise([0, *mask, 0])) if a != b]
    return [ids[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


# ---------------------------------------------------------------- as transformers renders


@given(texts=st.lists(CONTENTS, min_size=2, max_size=6), system=st.none() | CONTENTS)
def test_rows_and_prompts_equal_apply_chat_template(texts, system, foreign, theirs) -> None:
    messages = conversation(*texts[: len(texts) // 2 * 2], system=system)
    *before, _ = messages
    [*_, (ids, _)] = foreign.render_rows(messages)
    whole = theirs.apply_chat_template(stripped(messages), return_dict=False)
    assert ids == whole[: len(ids)]
    assert not set(whole[len(ids) :]) & foreign.ends, "the row is cut after the last end"
    asked = theirs.apply_chat_template(
        stripped(before), add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert foreign.render([*before, ASKED]) == (asked, [0] * len(asked))
    assert foreign.render(messages) == foreign.render_rows(messages)[-1]


@given(texts=st.lists(CONTENTS, min_size=2, max_size=8), system=st.none() | CONTENTS)
def test_each_answer_is_trained_once_just_where_it_is_asked_for(texts, system, foreign) -> None:
    messages = conversation(*texts[: len(texts) // 2 * 2], system=system)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    rows = foreign.render_rows(messages)
    runs = [run for row in rows for run in trained(row)]
    assert runs == [foreign.encode_answer(answer) for answer in answers]
    assert all(run[-1] == foreign.answer_end for run in runs)
    assert all(mask[-1] == 1 for _, mask in rows)
    for n, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt, _ = foreign.render([*messages[:n], ASKED])
            answer = foreign.encode_answer(message["content"])
            exact = [
                ids[: len(prompt)] == prompt
                and ids[len(prompt) :][: len(answer)] == answer
                and mask[len(prompt) :][: len(answer)] == [1] * len(answer)
                for ids, mask in rows
            ]
            assert any(exact), message


def test_earlier_answers_have_rows_of_their_own_where_only_the_last_gets_a_thought(
    folders: dict[str, Path],
) -> None:
    foreign = load_tokenizer(folders["qwen"])
    first, second, third = foreign.render_rows(conversation("a", "b", "c", "d", "e", "f"))
    thought = [foreign.added["<think>"], foreign.added["</think>"]]
    for (ids, mask), before in ((first, "b"), (second, "bd"), (third, "bdf")):
        assert [i for i in ids if i in thought] == thought
        assert trained((ids, mask)) == [foreign.encode_answer(before[-1])]
        assert ids.count(foreign.answer_end) == 2 * len(before)


def test_one_row_trains_all_answers_of_a_template_that_writes_them_alike(
    folders: dict[str, Path],
) -> None:
    foreign = load_tokenizer(folders["llama"])
    [row] = foreign.render_rows(conversation("a", "b", "c", "d"))
    assert trained(row) == [foreign.encode_answer("b"), foreign.encode_answer("d")]


def test_text_never_becomes_a_special_token(foreign: Tokenizer, family: str) -> None:
    names = "".join(foreign.added)
    plain = foreign.render_rows(conversation("a", "b", "c", "d", system="s"))
    messages = conversation(names, f"x{names}", f"{names}y", names, system=names)
    for (ids, _), (plain_ids, _) in zip(foreign.render_rows(messages), plain, strict=True):
        added = set(foreign.added.values())
        assert [i for i in ids if i in added] == [i for i in plain_ids if i in added]
        assert foreign.decode(ids).count("<think>") >= 3 or family in ("smol", "llama")


def test_a_line_end_before_the_end_token_is_trained_with_the_answer(
    folders: dict[str, Path],
) -> None:
    foreign = load_tokenizer(folders["turns"])
    [row] = foreign.render_rows(conversation("a", "b."))
    assert trained(row) == [[*foreign.encode("b.\n"), foreign.end]]


# ---------------------------------------------------------------- where the template comes from


def test_the_default_of_several_templates_is_used_and_a_file_of_its_own_wins(
    with_template, tmp_path: Path
) -> None:
    named = [{"name": "tool_use", "template": "?"}, {"name": "default", "template": CHATML}]
    messages = conversation("a", "b")
    chatml = with_template(CHATML).render(messages)
    assert with_template(named).render(messages) == chatml
    (tmp_path / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    assert with_template("{{ 'x' }}").render(messages) == chatml


def test_a_folder_without_a_template_continues_text_only(with_template) -> None:
    foreign = with_template(None)
    assert not foreign.has_template
    assert foreign.encode("a") and foreign.ends == {foreign.end, foreign.eos_token_id}
    with pytest.raises(UserError, match=r"has no chat template.*copy chat_template\.jinja"):
        foreign.render(conversation("a", "b"))


def test_templates_may_use_what_transformers_gives_them(with_template) -> None:
    source = (
        "{%- for m in messages %}\n  {%- if loop.index > 99 %}{% break %}{% endif %}\n"
        "{{- eos_token + m.role + ({'a': '<é>'} | tojson) + m.content + '<|im_end|>' }}"
        "{%- endfor %}{% if add_generation_prompt and not tools and enable_thinking is false %}"
        "{{- eos_token + 'assistant' + ({'a': '<é>'} | tojson) }}{% endif %}"
    )
    ids, _ = with_template(source).render(conversation("a", "b"))
    names = with_template(source)
    assert names.decode(ids) == 'user{"a": "<é>"}aassistant{"a": "<é>"}b'


# ---------------------------------------------------------------- refused

LOOP = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + CONTENT + '<|im_end|>' }}{% endfor %}"
ASKING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def loop(content: str = "m.content") -> str:
    return LOOP.replace("CONTENT", content) + ASKING


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (loop().replace("messages", "messages[1:]"), r"message 1 \(system\) not at all"),
        (loop("(m.content if loop.last else '')"), r"message 1 \(system\) not at all"),
        (loop("m.content | upper"), r"message 1 \(system\) changed"),
        (loop("m.content[:10]"), r"message 1 \(system\) changed"),
        (loop("m.content + m.content"), r"message 1 \(system\) more than once"),
        (loop().replace("messages", "messages[::-1]"), "it changes the messages' order"),
        (loop().replace("<|im_end|>", "\n"), "it writes no special token after an answer"),
        (loop() + "{% if not add_generation_prompt %}x{% endif %}", None),
        (LOOP.replace("CONTENT", "m.content"), "before an answer it writes .*im_start.*asks for"),
        (THOUGHTS.replace("is false", "is true"), "before an answer it writes .*think"),
        ("{{ raise_exception('No system messages!') }}", "No system messages!"),
        ("{% for", "it can't be read: TemplateSyntaxError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ 'x' * 10 ** 12 }}", "writes too much or needs too much memory"),
        ("{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "writes too much"),
        ("{{ ''.__class__.__mro__ }}", "reaches for what a template may not use.*__class__"),
        ("{{ cycler.__init__.__globals__.os.system('id') }}", "may not use"),
        ("{{ messages.append(1) }}", "may not use"),
        ("{% include '/etc/passwd' %}", "Error"),
    ],
)
def test_a_template_that_cant_be_used_says_why(with_template, source, message) -> None:
    foreign = with_template(source)
    messages = conversation("a", "b", system="s")
    if message is None:
        assert len(foreign.render_rows(messages)) == 1
        return
    with pytest.raises(UserError, match=f"(?s)the chat template in .*{message}") as caught:
        foreign.render_rows(messages)
    assert "\n" not in str(caught.value)


def test_an_endless_template_is_stopped(with_template) -> None:
    many = "range(100000)"
    foreign = with_template(
        f"{{% for i in {many} %}}{{% for j in {many} %}}{{% endfor %}}{{% endfor %}}" + loop()
    )
    with pytest.raises(UserError, match="it doesn't come to an end"):
        foreign.render(conversation("a", "b"))
    assert foreign.ends == {foreign.end, foreign.eos_token_id}, "text can still be continued"


def test_a_template_may_refuse_some_conversations_only(with_template) -> None:
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('No!') }}{% endif %}"
    foreign = with_template(no_system + loop())
    assert len(foreign.render_rows(conversation("a", "b"))) == 1
    with pytest.raises(UserError, match=r"conversation of system, user, assistant: .*No!"):
        foreign.render_rows(conversation("a", "b", system="s"))


def test_a_token_that_swallows_spaces_is_refused_where_the_template_writes_it(
    with_template, tmp_path: Path
) -> None:
    with_template(CHATML)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for token in document["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_start|>"
    path.write_text(json.dumps(document), encoding="utf-8")
    foreign = load_tokenizer(tmp_path)
    assert foreign.encode("a")
    with pytest.raises(UserError, match=r"writes <\|im_start\|>.*rstrip .*not supported"):
        foreign.render(conversation("a", "b"))
