"""The page without a browser: what readers may ask for, models at their service, what it says and shows."""

from __future__ import annotations

import ast
import json
import math
import re
import shutil
import threading
import time
import uuid
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from shuoshu.core.command_settings import AppSettings
from shuoshu.core.errors import REPO_ROOT, UserError
from shuoshu.sft.dataset import read_pairs
from shuoshu.web import tabs, validation
from shuoshu.web.handlers import (
    I18N,
    GeneratedText,
    Page,
    Story,
    errors_to_gradio,
    messages,
    status_html,
)
from shuoshu.web.labels import SAID, WORDS, bilingual_message
from shuoshu.web.model_server import ModelServer

EVIL = "<script>alert(1)</script> **b** <img src=x onerror=alert(1)> '\"& \x00\x1b\x7f\x85\r"
NAMES = ("temperature", "top_p", "top_k", "max_new_tokens", "repetition_penalty", "seed")


def values(**given) -> list:
    """The settings in the order in which the page hands them over."""
    return [given.get(name) for name in NAMES]


@pytest.fixture(scope="module")
def page(tuned: Path, pretrained: Path) -> Page:
    return Page(
        ModelServer([tuned, pretrained], AppSettings(device="cpu", threads=1, max_new_tokens=300))
    )


@pytest.fixture(scope="module")
def sft_name(page: Page) -> str:
    return page.names[0]


@pytest.fixture(scope="module")
def base_name(page: Page) -> str:
    return page.names[1]


@pytest.fixture(scope="module")
def known(qa: Path) -> dict[str, str]:
    return {
        pair["messages"][0]["content"]: pair["messages"][1]["content"]
        for pair in read_pairs(qa, "train")
    }


# ---------------------------------------------------------------- what a reader may ask for


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["one", [1], {}, True, math.nan, math.inf, -math.inf, b"1"])
def test_a_setting_that_is_no_number_is_named(name, value):
    with pytest.raises(UserError, match=f"{name} wants a number"):
        validation.parse_settings({name: value}, 300)


@pytest.mark.parametrize("name, knob", validation.ranges(300).items())
def test_a_settings_bounds_hold_and_belong_to_it(name, knob):
    for value in (knob.low, knob.high):
        assert getattr(validation.parse_settings({name: value}, 300), name) in (value, None)
    for value in (knob.low - 0.01, knob.high + 1, 10**400, -1e308):
        with pytest.raises(UserError, match=f"{name} must lie between"):
            validation.parse_settings({name: value}, 300)
    assert knob.low <= knob.default <= knob.high


@pytest.mark.parametrize("name", ["top_k", "max_new_tokens", "seed"])
def test_a_count_with_a_fraction_is_refused(name):
    with pytest.raises(UserError, match=name):
        validation.parse_settings({name: 2.5}, 300)


def test_a_seed_is_kept_and_none_is_another_one_each_time():
    assert (
        validation.parse_settings({"seed": 7}, 300).seed
        == validation.parse_settings({"seed": 7.0}, 300).seed
        == 7
    )
    assert len({validation.parse_settings({}, 300).seed for _ in range(20)}) == 20
    for seed in (-1, 1e300):
        with pytest.raises(UserError, match="seed must lie"):
            validation.parse_settings({"seed": seed}, 300)


def test_a_pages_own_limit_is_the_default_where_it_is_short():
    assert (
        validation.parse_settings({}, 50).max_new_tokens == 50
        and validation.parse_settings({}, 999).max_new_tokens == 200
    )
    assert validation.parse_settings({"top_k": 0}, 50).top_k is None


def test_a_text_is_bounded_and_what_utf8_can_not_hold_is_replaced():
    assert validation.parse_text("好" * validation.LONGEST) == "好" * validation.LONGEST
    assert validation.parse_text("a\ud800b\udfff").encode() == b"a?b?"
    with pytest.raises(UserError, match="20,000 characters at most, there are 100,000"):
        validation.parse_text("好" * 100_000)
    for value in (None, 3, ["a"], {"text": "a"}, b"a"):
        with pytest.raises(UserError, match=f"this is {type(value).__name__}"):
            validation.parse_text(value)


def test_a_history_is_pairs_of_texts():
    assert validation.parse_history(None) == validation.parse_history([]) == []
    talk = validation.parse_history([["问", "答"], ("谁？", "我。")])
    assert [(turn["role"], turn["content"]) for turn in talk] == [
        ("user", "问"),
        ("assistant", "答"),
        ("user", "谁？"),
        ("assistant", "我。"),
    ]
    for value in (
        "问答",
        3,
        {"a": "b"},
        [["a"]],
        ["ab"],
        [["a", "b", "c"]],
        [["a", 3]],
        [["a", "b"]] * 101,
        [["a", "b" * 100_000]],
    ):
        with pytest.raises(UserError):
            validation.parse_history(value)


# ---------------------------------------------------------------- what the page says


def test_each_label_is_used_and_each_used_label_is_there(page):
    config = json.dumps(tabs.build(page).get_config_file(), default=str)
    used = set(re.findall(r"translation_metadata[^}]*?key\W+(\w+)", config))
    assert used == set(WORDS)


def test_each_message_is_used_and_each_used_message_is_there():
    rooms = [
        ast.parse((REPO_ROOT / "shuoshu" / "web" / f"{room}.py").read_text(encoding="utf-8"))
        for room in ("handlers", "server", "tabs", "validation", "model_server")
    ]
    nodes = [node for room in rooms for node in ast.walk(room)]
    strings = {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    calls = [
        node
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("bilingual_message", "status_html")
    ]
    asked = {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}
    assert asked <= set(SAID) <= strings


def test_every_word_is_there_in_both_languages_with_the_same_blanks():
    for zh, en in [*WORDS.values(), *(pair for pair in SAID.values() if any(pair))]:
        assert (
            zh.strip() and en.strip() and re.findall(r"\{.*?\}", zh) == re.findall(r"\{.*?\}", en)
        )
    assert set(I18N.translations["zh"]) == set(I18N.translations["en"]) == set(WORDS)


def test_a_message_comes_in_both_languages_and_a_note_is_shown_in_one():
    assert "20,000" in bilingual_message("long", 20_000, 5) and "太长" in bilingual_message(
        "long", 1, 5
    )
    assert (
        'lang="zh"' in status_html("length")
        and 'lang="en"' in status_html("length")
        and status_html("stop") == ""
    )


# ---------------------------------------------------------------- what the page does


class Somebody:
    """What Gradio tells of who asks: somebody else each time, whom no earlier stop concerns."""

    @property
    def session_hash(self) -> str:
        return uuid.uuid4().hex


READER = Somebody()


def last(states) -> tuple:
    """What the page shows once all of them came: of each part the last that was not passed over."""
    shown = []
    for state in states:
        shown = [
            old if new == gr.skip() else new for old, new in zip(shown or state, state, strict=True)
        ]
    return tuple(shown)


def passed_over(parts) -> bool:
    return all(part == gr.skip() for part in parts)


def test_a_known_question_is_answered_and_the_box_is_cleared(page, sft_name, known):
    question, answer = next(iter(known.items()))
    states = list(page.ask(READER, question, [], sft_name, *values(temperature=0)))
    assert states[0][:2] == ("", messages([GeneratedText(sft_name, question)])) and len(states) > 2
    assert all(state[0] == gr.skip() for state in states[1:])  # what is typed meanwhile stays
    _, shown, talk, noted, _ = last(states)
    assert noted == status_html("end") and shown[-1] == {"role": "assistant", "content": answer}
    _, shown, talk, noted, _ = last(
        page.ask(READER, question, talk, sft_name, *values(temperature=0))
    )
    assert len(shown) == 4 and len(talk) == 2 and "each is answered by itself" in noted


def test_undo_takes_the_last_pair_away_and_gives_the_question_back(page, sft_name):
    talk = [GeneratedText(sft_name, "一？", text="甲"), GeneratedText(sft_name, "二？", text="乙")]
    assert page.undo(READER, "", talk)[:3] == ("二？", messages(talk[:1]), talk[:1])
    assert passed_over(page.undo(READER, "三", []))


def test_what_waits_is_dropped_and_nothing_else_changes(page, sft_name):
    waiting, talk = (
        SimpleNamespace(session_hash="waiting"),
        [GeneratedText(sft_name, "一？", text="甲")],
    )
    page.wish(waiting)
    assert passed_over(page.undo(waiting, "二？", talk))
    assert list(page.ask(waiting, "二？", talk, sft_name, *values())) == []
    page.wish(waiting)
    assert list(page.ask(waiting, "二？", talk, sft_name, *values(max_new_tokens=3)))
    assert page.undo(waiting, "", talk)[0] == "一？"


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("deed", ["end", "undo", "clear"])
def test_after_a_stop_a_text_says_no_more(page, sft_name, known, deed, is_whole):
    reader = SimpleNamespace(session_hash=f"{deed} {is_whole}")
    page.wish(reader)
    states = page.ask(reader, next(iter(known)), [], sft_name, *values(temperature=0))
    grown = [next(states)[2], next(states)[2]][-1]
    while is_whole and not grown[-1].ids:  # all of it came, but not yet why it ended
        grown = next(states)[2]
    ended = threading.Thread(
        target={
            "end": page.end,
            "clear": page.clear,
            "undo": lambda request: page.undo(request, "", grown),
        }[deed],
        args=(reader,),
    )
    ended.start()
    until = time.monotonic() + 5
    while not page.desk.reader(reader.session_hash).stopped and time.monotonic() < until:
        time.sleep(0.01)
    assert list(states) == []
    ended.join(5)
    assert not ended.is_alive() and page.desk.reader(reader.session_hash).writing == 0


def test_retry_takes_another_seed_and_at_temperature_0_it_says_so(
    page, sft_name, known, monkeypatch
):
    seen, real = [], validation.parse_settings
    monkeypatch.setattr(
        "shuoshu.web.handlers.parse_settings",
        lambda given, longest: seen.append(real(given, longest)) or seen[-1],
    )
    talk = [GeneratedText(sft_name, next(iter(known)), text="甲")]
    for temperature in (0, 1.3):
        _, shown, grown, noted, _ = last(
            page.retry(
                READER,
                "",
                talk,
                sft_name,
                *values(temperature=temperature, seed=7, max_new_tokens=40),
            )
        )
        assert shown[-1]["content"] and len(grown) == 1
        assert ("0.8 was used" in noted) is (temperature == 0)
    assert [wanted.temperature for wanted in seen] == [0.8, 1.3] and 7 not in [
        wanted.seed for wanted in seen
    ]
    with pytest.raises(UserError):
        last(page.retry(READER, "", [], sft_name, *values()))


def test_an_example_is_asked_and_the_box_keeps_what_stood_there(page, sft_name, known):
    question, answer = next(iter(known.items()))
    assert page.example(SimpleNamespace(value={"text": question}), READER) == question
    states = list(page.ask_example(READER, question, [], sft_name, *values(temperature=0)))
    assert all(state[0] == gr.skip() for state in states) and [
        part["content"] for part in last(states)[1]
    ] == [question, answer]


def test_examples_come_from_the_models_own_data(page, sft_name, base_name, known):
    shown = [example["text"] for example in tabs.examples(page, sft_name)]
    assert len(shown) == len(set(shown)) == tabs.EXAMPLES and set(shown) <= set(known)
    assert len({known[question] for question in shown}) > 1
    assert tabs.examples(page, base_name) == []


def test_a_text_goes_on_in_its_box_and_undo_brings_it_back(page, base_name):
    states = list(
        page.go_on(READER, "清晨，", Story(), base_name, *values(max_new_tokens=10, seed=1))
    )
    box, story, *_ = states[-2]
    assert box.startswith("清晨，") and len(box) > 4 and "Cut off" in states[-1][3]
    longer, more, *_ = list(
        page.go_on(READER, box, story, base_name, *values(max_new_tokens=10, seed=1))
    )[-2]
    assert (
        page.take_back(READER, longer, more)[0] == box
        and page.take_back(READER, box, page.take_back(READER, longer, more)[1])[0] == "清晨，"
    )
    assert passed_over(page.take_back(READER, "x", Story()))


def test_of_three_versions_the_second_is_taken(page, base_name):
    states = list(
        page.three(READER, "清晨，", Story(), base_name, *values(max_new_tokens=12, seed=1))
    )
    *versions, story, _, _ = states[-2]
    assert len(set(versions)) == 3
    box, taken, *_ = page.taking(1)(READER, "清晨，改过。", story)
    assert box == "清晨，" + versions[1] and page.take_back(READER, box, taken)[0] == "清晨，改过。"
    with pytest.raises(UserError):
        page.taking(1)(READER, "", Story())


def test_an_edited_text_is_looked_into_as_it_stands(page, base_name):
    box, story, *_ = list(
        page.go_on(READER, "清晨，", Story(), base_name, *values(max_new_tokens=10, seed=1))
    )[-2]
    assert 'class="known">清晨，</span><button' in page.look_at_story(box, story, base_name)
    assert 'class="known"></span><button' in page.look_at_story(box + "！", story, base_name)
    with pytest.raises(UserError, match="no text to look into"):
        page.look_at_story("", Story(), base_name)


def test_both_models_write_beside_each_other(page, sft_name, base_name, known):
    question, answer = next(iter(known.items()))
    one, other, found, noted, *_ = last(
        page.both_write(
            READER, question, sft_name, base_name, *values(temperature=0, max_new_tokens=30)
        )
    )
    assert (
        one == answer
        and other
        and other != one
        and [written.model for written in found] == [sft_name, base_name]
        and "Cut off" in noted
    )
    assert all("<h3>" in shown for shown in page.look_at_both(found))
    with pytest.raises(UserError):
        page.look_at_both([None, None])


def test_a_mistake_is_escaped_and_another_models_name_refused(page, base_name):
    with pytest.raises(gr.Error) as caught:
        errors_to_gradio(page.model_of)("<img src=x>")
    assert "<img" not in caught.value.message
    with pytest.raises(UserError, match="answers no questions"):
        last(page.ask(READER, "谁？", [], base_name, *values()))
    for name in ("nowhere", 3, "", ["a"]):
        with pytest.raises(UserError, match="no such model"):
            page.model_of(name)


def test_before_stands_left_of_after(page, sft_name, base_name):
    assert page.pair() == (base_name, sft_name)


def test_a_model_that_was_trained_further_is_said_to_be(page, base_name):
    _, story, *_ = list(
        page.go_on(READER, "清晨，", Story(), base_name, *values(max_new_tokens=10, seed=1))
    )[-2]
    assert "trained further" not in page.look(story.last)
    tokenizer, step = story.last.maker
    assert "trained further" in page.look(replace(story.last, maker=(tokenizer, step + 1)))
    other = page.look(replace(story.last, maker=("another", step), ids=[0] * 9))
    assert (
        "trained further" in other
        and "".join(re.findall(r'aria-pressed="false">([^<]*)<', other)).replace("↵", "")
        == story.last.text
    )


@pytest.mark.parametrize("text, seed", [(" 7 ", 7), ("007", 7)])
def test_the_pages_own_field_for_a_seed_is_a_text(text, seed):
    assert validation.parse_settings({"seed": text}, 100).seed == seed
    assert (
        len({validation.parse_settings({"seed": empty}, 100).seed for empty in ("", " ", None)})
        == 3
    )
    for wrong in ("-3", "1.5", "1_0", "七", "9" * 30):
        with pytest.raises(UserError, match="seed"):
            validation.parse_settings({"seed": wrong}, 100)


# ---------------------------------------------------------------- how training went


@pytest.fixture
def run_page(tuned: Path, tmp_path: Path) -> tuple[Path, Page]:
    """A page for a copy of the fine-tuned model, whose records a test may change."""
    folder = Path(
        shutil.copytree(tuned, tmp_path / "out-copy", ignore=shutil.ignore_patterns("checkpoints"))
    )
    return folder, Page(ModelServer([folder], AppSettings(device="cpu", threads=1)))


def report_of(page: Page) -> str:
    """The document in the training tab's frame."""
    [document] = re.findall(r'srcdoc="([^"]*)"', tabs.training_html(page, page.names[0]))
    return unescape(document)


def test_training_shows_curves_samples_and_settings_before_any_evaluation(run_page):
    _, page = run_page
    document = report_of(page)
    assert (
        "Not measured yet: python eval_metrics.py" in document
        and document.count('class="curve') >= 3
    )
    assert "Samples through time" in document and "n_layer" in document and "folder" in document
    assert "<details open>" in document


DAMAGED = ["", "{", "[]", "3", "[" * 5000, "\ud800", '{"model": "x"}']
DAMAGED += [f'{{"model": "x", "measures": {measures}}}' for measures in ("3", "[1]", '{"val": 3}')]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_evaluation_is_as_none(run_page, damaged):
    folder, page = run_page
    (folder / "eval.json").write_bytes(damaged.encode("utf-8", "surrogatepass"))
    assert "Not measured yet" in report_of(page) and "Training curves" in report_of(page)


def test_measures_come_from_the_evaluation(run_page):
    folder, page = run_page
    measures = {"val": {"rouge_l": {"value": 0.875, "low": 0.8, "high": 0.9}}}
    (folder / "eval.json").write_text(
        json.dumps({"model": "<b>m</b>", "measures": measures}), encoding="utf-8"
    )
    document = report_of(page)
    assert "0.875" in document and "Not measured yet" not in document and "<b>m</b>" not in document


@pytest.mark.parametrize(
    "tail",
    [
        b'{"kind": "step", "st',
        b"\xff\xfe",
        b"[]\n3\n",
        b'{"kind": "step", "step": "x", "loss": null}\n',
    ],
)
def test_a_log_that_is_being_written_shows_what_is_whole(run_page, tail):
    folder, page = run_page
    with (folder / "log.jsonl").open("ab") as log:
        log.write(tail)
    assert report_of(page).count('class="curve') >= 3


def test_without_a_log_training_says_so_and_stands(run_page):
    folder, page = run_page
    (folder / "log.jsonl").unlink()
    (folder / "settings.json").write_text("{", encoding="utf-8")
    assert "Not measured yet" in report_of(page)
