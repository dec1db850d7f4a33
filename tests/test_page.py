"""The page without a browser: what readers may ask for, models at their service, what it says and shows."""

from __future__ import annotations

import ast
import json
import math
import re
import shutil
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from shuoshu import layout, wishes
from shuoshu.commandline import HOUSE, UserError
from shuoshu.desk import Desk
from shuoshu.page import I18N, Page, Story, Written, messages, note, told
from shuoshu.rows import read_pairs
from shuoshu.settings import AppSettings
from shuoshu.words import SAID, WORDS, said

EVIL = "<script>alert(1)</script> **b** <img src=x onerror=alert(1)> '\"& \x00\x1b\x7f\x85\r"
NAMES = ("temperature", "top_p", "top_k", "max_new_tokens", "repetition_penalty", "seed")


def values(**given) -> list:
    """The settings in the order in which the page hands them over."""
    return [given.get(name) for name in NAMES]


@pytest.fixture(scope="module")
def page(tuned: Path, pretrained: Path) -> Page:
    return Page(Desk([tuned, pretrained], AppSettings(device="cpu", threads=1, max_new_tokens=300)))


@pytest.fixture(scope="module")
def sft_name(page: Page) -> str:
    return page.names[0]


@pytest.fixture(scope="module")
def base_name(page: Page) -> str:
    return page.names[1]


@pytest.fixture(scope="module")
def known(qa: Path) -> dict[str, str]:
    return {pair["messages"][0]["content"]: pair["messages"][1]["content"] for pair in read_pairs(qa, "train")}


# ---------------------------------------------------------------- what a reader may ask for


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["1", [1], {}, True, math.nan, math.inf, -math.inf, b"1"])
def test_a_setting_that_is_no_number_is_named(name, value):
    with pytest.raises(UserError, match=f"{name} wants a number"):
        wishes.settings_of({name: value}, 300)


@pytest.mark.parametrize("name, knob", wishes.knobs(300).items())
def test_a_settings_bounds_hold_and_belong_to_it(name, knob):
    for value in (knob.low, knob.high):
        assert getattr(wishes.settings_of({name: value}, 300), name) in (value, None)
    for value in (knob.low - 0.01, knob.high + 1, 10**400, -1e308):
        with pytest.raises(UserError, match=f"{name} must lie between"):
            wishes.settings_of({name: value}, 300)
    assert knob.low <= knob.default <= knob.high


@pytest.mark.parametrize("name", ["top_k", "max_new_tokens", "seed"])
def test_a_count_with_a_fraction_is_refused(name):
    with pytest.raises(UserError, match=name):
        wishes.settings_of({name: 2.5}, 300)


def test_a_seed_is_kept_and_none_is_another_one_each_time():
    assert wishes.settings_of({"seed": 7}, 300).seed == wishes.settings_of({"seed": 7.0}, 300).seed == 7
    assert len({wishes.settings_of({}, 300).seed for _ in range(20)}) == 20
    for seed in (-1, 1e300):
        with pytest.raises(UserError, match="seed must lie"):
            wishes.settings_of({"seed": seed}, 300)


def test_a_pages_own_limit_is_the_default_where_it_is_short():
    assert wishes.settings_of({}, 50).max_new_tokens == 50 and wishes.settings_of({}, 999).max_new_tokens == 200
    assert wishes.settings_of({"top_k": 0}, 50).top_k is None


def test_a_text_is_bounded_and_what_utf8_can_not_hold_is_replaced():
    assert wishes.text_of("好" * wishes.LONGEST) == "好" * wishes.LONGEST
    assert wishes.text_of("a\ud800b\udfff").encode() == b"a?b?"
    with pytest.raises(UserError, match="20,000 characters at most, there are 100,000"):
        wishes.text_of("好" * 100_000)
    for value in (None, 3, ["a"], {"text": "a"}, b"a"):
        with pytest.raises(UserError, match=f"this is {type(value).__name__}"):
            wishes.text_of(value)


def test_a_history_is_pairs_of_texts():
    assert wishes.history_of(None) == wishes.history_of([]) == []
    talk = wishes.history_of([["问", "答"], ("谁？", "我。")])
    assert [(turn["role"], turn["content"]) for turn in talk] == [("user", "问"), ("assistant", "答"), ("user", "谁？"), ("assistant", "我。")]
    for value in ("问答", 3, {"a": "b"}, [["a"]], ["ab"], [["a", "b", "c"]], [["a", 3]], [["a", "b"]] * 101, [["a", "b" * 100_000]]):
        with pytest.raises(UserError):
            wishes.history_of(value)


# ---------------------------------------------------------------- what the page says


def test_each_label_is_used_and_each_used_label_is_there(page):
    config = json.dumps(layout.build(page).get_config_file(), default=str)
    used = set(re.findall(r"translation_metadata[^}]*?key\W+(\w+)", config))
    assert used == set(WORDS)


def test_each_message_is_used_and_each_used_message_is_there():
    rooms = [ast.parse((HOUSE / "shuoshu" / f"{room}.py").read_text(encoding="utf-8")) for room in ("page", "layout", "wishes", "desk")]
    nodes = [node for room in rooms for node in ast.walk(room)]
    strings = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("said", "note")]
    asked = {call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)}
    assert asked <= set(SAID) <= strings


def test_every_word_is_there_in_both_languages_with_the_same_blanks():
    for zh, en in [*WORDS.values(), *(pair for pair in SAID.values() if any(pair))]:
        assert zh.strip() and en.strip() and re.findall(r"\{.*?\}", zh) == re.findall(r"\{.*?\}", en)
    assert set(I18N.translations["zh"]) == set(I18N.translations["en"]) == set(WORDS)


def test_a_message_comes_in_both_languages_and_a_note_is_shown_in_one():
    assert "20,000" in said("long", 20_000, 5) and "太长" in said("long", 1, 5)
    assert 'lang="zh"' in note("length") and 'lang="en"' in note("length") and note("end") == ""


# ---------------------------------------------------------------- what the page does


def last(states) -> tuple:
    *_, final = states
    return final


def test_a_known_question_is_answered_and_the_box_is_cleared(page, sft_name, known):
    question, answer = next(iter(known.items()))
    states = list(page.ask(question, [], sft_name, *values(temperature=0)))
    assert states[0][:2] == ("", messages([Written(sft_name, question)])) and len(states) > 2
    box, shown, talk, noted, _ = states[-1]
    assert (box, noted) == ("", "") and shown[-1] == {"role": "assistant", "content": answer}
    _, shown, talk, noted, _ = last(page.ask(question, talk, sft_name, *values(temperature=0)))
    assert len(shown) == 4 and len(talk) == 2 and "each is answered by itself" in noted


def test_undo_takes_the_last_pair_away_and_gives_the_question_back(page, sft_name):
    talk = [Written(sft_name, "一？", text="甲"), Written(sft_name, "二？", text="乙")]
    assert page.undo(talk)[:3] == ("二？", messages(talk[:1]), talk[:1])
    assert page.undo([])[:3] == ("", [], [])


def test_retry_takes_another_seed_and_at_temperature_0_it_says_so(page, sft_name, known, monkeypatch):
    seen, real = [], wishes.settings_of
    monkeypatch.setattr("shuoshu.page.settings_of", lambda given, longest: seen.append(real(given, longest)) or seen[-1])
    talk = [Written(sft_name, next(iter(known)), text="甲")]
    for temperature in (0, 1.3):
        _, shown, grown, noted, _ = last(page.retry("", talk, sft_name, *values(temperature=temperature, seed=7, max_new_tokens=40)))
        assert shown[-1]["content"] and len(grown) == 1
        assert ("0.8 was used" in noted) is (temperature == 0)
    assert [wanted.temperature for wanted in seen] == [0.8, 1.3] and 7 not in [wanted.seed for wanted in seen]
    with pytest.raises(UserError):
        last(page.retry("", [], sft_name, *values()))


def test_an_example_is_asked_and_the_box_keeps_what_stood_there(page, sft_name, known):
    question, answer = next(iter(known.items()))
    box, shown, *_ = last(page.ask_example(SimpleNamespace(value={"text": question}), "half a thou", [], sft_name, *values(temperature=0)))
    assert box == "half a thou" and [part["content"] for part in shown] == [question, answer]


def test_examples_come_from_the_models_own_data(page, sft_name, base_name, known):
    shown = [example["text"] for example in layout.examples(page, sft_name)]
    assert len(shown) == len(set(shown)) == layout.EXAMPLES and set(shown) <= set(known)
    assert len({known[question] for question in shown}) > 1
    assert layout.examples(page, base_name) == []


def test_a_text_goes_on_in_its_box_and_undo_brings_it_back(page, base_name):
    states = list(page.go_on("清晨，", Story(), base_name, *values(max_new_tokens=10, seed=1)))
    box, story, *_ = states[-2]
    assert box.startswith("清晨，") and len(box) > 4 and "Cut off" in states[-1][3]
    longer, more, *_ = list(page.go_on(box, story, base_name, *values(max_new_tokens=10, seed=1)))[-2]
    assert page.take_back(longer, more)[0] == box and page.take_back(box, page.take_back(longer, more)[1])[0] == "清晨，"
    assert page.take_back("x", Story())[0] == "x"


def test_of_three_versions_the_second_is_taken(page, base_name):
    states = list(page.three("清晨，", Story(), base_name, *values(max_new_tokens=12, seed=1)))
    *versions, story, _, _ = states[-2]
    assert len(set(versions)) == 3
    box, taken, *_ = page.take(1, story)
    assert box == "清晨，" + versions[1] and page.take_back(box, taken)[0] == "清晨，"
    with pytest.raises(UserError):
        page.take(1, Story())


def test_an_edited_text_is_looked_into_as_it_stands(page, base_name):
    box, story, *_ = list(page.go_on("清晨，", Story(), base_name, *values(max_new_tokens=10, seed=1)))[-2]
    assert 'role="group">清晨，<button' in page.look_at_story(box, story, base_name)
    assert 'role="group"><button' in page.look_at_story(box + "！", story, base_name)
    with pytest.raises(UserError, match="no text to look into"):
        page.look_at_story("", Story(), base_name)


def test_both_models_write_beside_each_other(page, sft_name, base_name, known):
    question, answer = next(iter(known.items()))
    one, other, found, noted, *_ = last(page.both_write(question, sft_name, base_name, *values(temperature=0, max_new_tokens=30)))
    assert one == answer and other and other != one and [written.model for written in found] == [sft_name, base_name] and "Cut off" in noted
    assert all("<h3>" in shown for shown in page.look_at_both(found))
    with pytest.raises(UserError):
        page.look_at_both([None, None])


def test_a_mistake_is_escaped_and_another_models_name_refused(page, base_name):
    with pytest.raises(gr.Error) as caught:
        told(page.model_of)("<img src=x>")
    assert "<img" not in caught.value.message
    with pytest.raises(UserError, match="answers no questions"):
        last(page.ask("谁？", [], base_name, *values()))
    for name in ("nowhere", 3, "", ["a"]):
        with pytest.raises(UserError, match="no such model"):
            page.model_of(name)


# ---------------------------------------------------------------- how training went


@pytest.fixture
def run_page(tuned: Path, tmp_path: Path) -> tuple[Path, Page]:
    """A page for a copy of the fine-tuned model, whose records a test may change."""
    folder = Path(shutil.copytree(tuned, tmp_path / "out-copy", ignore=shutil.ignore_patterns("checkpoints")))
    return folder, Page(Desk([folder], AppSettings(device="cpu", threads=1)))


def report_of(page: Page) -> str:
    """The document in the training tab's frame."""
    [document] = re.findall(r'srcdoc="([^"]*)"', layout.training_html(page, page.names[0]))
    return unescape(document)


def test_training_shows_curves_samples_and_settings_before_any_evaluation(run_page):
    _, page = run_page
    document = report_of(page)
    assert "Not measured yet: python eval_metrics.py" in document and document.count('class="curve') >= 3
    assert "Samples through time" in document and "n_layer" in document and "folder" in document
    assert "<details open>" in document


@pytest.mark.parametrize("damaged", ["", "{", "[]", "3", '{"model": "x"}', '{"model": "x", "measures": 3}', '{"model": "x", "measures": {"val": 3}}', "\ud800"])
def test_a_damaged_evaluation_is_as_none(run_page, damaged):
    folder, page = run_page
    (folder / "eval.json").write_bytes(damaged.encode("utf-8", "surrogatepass"))
    assert "Not measured yet" in report_of(page) and "Training curves" in report_of(page)


def test_measures_come_from_the_evaluation(run_page):
    folder, page = run_page
    measures = {"val": {"rouge_l": {"value": 0.875, "low": 0.8, "high": 0.9}}}
    (folder / "eval.json").write_text(json.dumps({"model": "<b>m</b>", "measures": measures}), encoding="utf-8")
    document = report_of(page)
    assert "0.875" in document and "Not measured yet" not in document and "<b>m</b>" not in document


@pytest.mark.parametrize("tail", [b'{"kind": "step", "st', b"\xff\xfe", b"[]\n3\n", b'{"kind": "step", "step": "x", "loss": null}\n'])
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
