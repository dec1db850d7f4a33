"""What the handlers of Ask, Continue and Compare change on the page, without a browser."""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest

from shuoshu.answering.answerer import Answer
from shuoshu.answering.knowledge import Fit
from shuoshu.answering.passages import Passage
from shuoshu.core.command_settings import AppSettings
from shuoshu.core.errors import UserError
from shuoshu.evaluation.html import escape_html
from shuoshu.models.purpose import Purpose
from shuoshu.web.answer_view import chat_messages, reply_html
from shuoshu.web.ask_tab import (
    EXAMPLES,
    RETRY_TEMPERATURE,
    AskTab,
    example_questions,
    retry_values,
)
from shuoshu.web.compare_tab import CompareTab, default_pair
from shuoshu.web.components import errors_to_gradio
from shuoshu.web.continue_tab import ContinueTab, Story
from shuoshu.web.labels import text_html
from shuoshu.web.model_server import ModelServer, ModelVersion
from shuoshu.web.service import GeneratedText, PageService
from shuoshu.web.validation import SETTING_NAMES

WAIT_SECONDS = 5


@pytest.fixture(scope="module")
def service(tuned: Path, pretrained: Path) -> PageService:
    settings = AppSettings(device="cpu", threads=1, max_new_tokens=300)
    return PageService(ModelServer([tuned, pretrained], settings))


@pytest.fixture(scope="module")
def ask_tab(service: PageService) -> AskTab:
    with gr.Blocks():
        return AskTab(service)


@pytest.fixture(scope="module")
def continue_tab(service: PageService) -> ContinueTab:
    with gr.Blocks():
        return ContinueTab(service)


@pytest.fixture(scope="module")
def compare_tab(service: PageService) -> CompareTab:
    with gr.Blocks():
        return CompareTab(service)


@pytest.fixture(scope="module")
def tuned_name(service: PageService) -> str:
    """The name of the model that answers questions."""
    return service.names[0]


@pytest.fixture(scope="module")
def base_name(service: PageService) -> str:
    """The name of the model that continues text."""
    return service.names[1]


@pytest.fixture
def reader() -> SimpleNamespace:
    """A request of a reader who did nothing before."""
    return SimpleNamespace(session_hash=uuid.uuid4().hex)


def values(**given: object) -> list:
    """The settings in the order in which the page passes them."""
    return [given.get(name) for name in SETTING_NAMES]


def ask_values(answer_by: str = "write", precision: float = 0.9, **given: object) -> list:
    """The same of the tab Ask."""
    return [answer_by, precision, *values(**given)]


def final(updates: Iterable[dict]) -> dict:
    """The components after all updates."""
    components = {}
    for update in updates:
        components |= update
    return components


# ---------------------------------------------------------------- Ask


def test_a_known_question_is_answered_and_the_box_is_cleared(ask_tab, tuned_name, known, reader):
    question, answer = next(iter(known.items()))
    settings = ask_values(temperature=0)
    first, *others = ask_tab.ask(reader, question, [], tuned_name, "", *settings)
    assert first == {ask_tab.question: ""} and len(others) > 2
    assert others[0][ask_tab.chat] == chat_messages([GeneratedText(tuned_name, question)])
    # What the reader types meanwhile stays.
    assert not any(ask_tab.question in update for update in others)
    page = final(others)
    assert [turn.text for turn in page[ask_tab.turns]] == [answer]
    assert f'<div class="reply">{answer}</div>' in page[ask_tab.chat][-1]["content"]
    assert page[ask_tab.status] == text_html("end")

    second = final(ask_tab.ask(reader, question, page[ask_tab.turns], tuned_name, "", *settings))
    assert len(second[ask_tab.chat]) == 4 and len(second[ask_tab.turns]) == 2
    assert second[ask_tab.status] == text_html("single_questions")


def test_a_sure_answer_has_its_probability_and_passages(ask_tab, tuned_name, known, reader):
    question, answer = next(iter(known.items()))
    settings = ask_values("auto", temperature=0)
    [turn] = final(ask_tab.ask(reader, question, [], tuned_name, "", *settings))[ask_tab.turns]
    assert turn.text == answer and turn.answer.way == "recall" and len(turn.sources) == 3
    html = chat_messages([turn])[-1]["content"]
    assert '<span class="sureness sure">99%</span>' in html
    assert html.count("<li>") == 3 and "<details" in html


def test_a_declined_answer_names_taught_questions_and_is_not_looked_into(
    ask_tab, tuned_name, reader, monkeypatch
):
    monkeypatch.setattr(Fit, "threshold", lambda fit, precision: precision + 0.1)
    settings = ask_values("auto", precision=1, temperature=0)
    update = final(ask_tab.ask(reader, "zebra <b> 42", [], tuned_name, "", *settings))
    [turn] = update[ask_tab.turns]
    assert turn.answer.way == "decline" and turn.text == "I was not taught this."
    html = chat_messages([turn])[-1]["content"]
    assert "sureness sure" not in html and len(turn.answer.nearest) == 3
    assert all(f"<li>{escape_html(question)}</li>" in html for question in turn.answer.nearest)
    with pytest.raises(UserError, match="declined"):
        ask_tab.inspect_last([turn])


@pytest.mark.parametrize("way", ["auto", "recall"])
def test_choosing_among_taught_answers_refuses_a_temperature(ask_tab, tuned_name, reader, way):
    settings = ask_values(way, temperature=0.8)
    with pytest.raises(UserError, match="temperature"):
        final(ask_tab.ask(reader, "谁？", [], tuned_name, "", *settings))


def test_by_default_changed_settings_write_without_a_probability(ask_tab, tuned_name, reader):
    settings = ask_values("", temperature=0.8, seed=1, max_new_tokens=5)
    [turn] = final(ask_tab.ask(reader, "谁？", [], tuned_name, "", *settings))[ask_tab.turns]
    assert turn.answer.way == "write" and turn.answer.probability is None


def test_an_answer_after_reading_has_no_probability(ask_tab, tuned_name, reader):
    settings = ask_values("read", temperature=0, max_new_tokens=5)
    [turn] = final(ask_tab.ask(reader, "谁在渡口？", [], tuned_name, "", *settings))[ask_tab.turns]
    assert turn.answer.way == "write" and turn.answer.probability is None


def test_answers_that_were_made_anew_are_read_anew(service, tuned_name):
    folder = service.models.folders[tuned_name]
    cache = service.models._cache
    before = cache.load_answerer(folder)
    assert cache.load_answerer(folder) is before
    os.utime(folder / "answers.json", ns=(1, time.time_ns()))
    assert cache.load_answerer(folder) is not before
    assert before.knowledge


def test_html_in_a_question_an_answer_or_a_book_is_text():
    answer = Answer("<b>", "decline", 0.2, ["<i>"])
    passages = [Passage("<u>", "<s>", 0, 1.0)]
    turn = GeneratedText("m", "?", text="<b>", answer=answer, sources=passages, quote="<a>")
    html = reply_html(turn)
    assert not any(f"<{tag}>" in html for tag in "abius")
    assert all(f"&lt;{tag}&gt;" in html for tag in "abius")


@pytest.mark.parametrize("system", ["你是老船夫。", ""])
def test_the_system_message_in_its_box_begins_the_prompt(
    ask_tab, service, tuned_name, reader, system
):
    tokenizer = service.models.model(tuned_name).tokenizer
    turn = final(ask_tab.ask(reader, "谁？", [], tuned_name, system, *ask_values()))[ask_tab.turns][
        -1
    ]
    first = [{"role": "system", "content": system}] if system else []
    asked = [*first, {"role": "user", "content": "谁？"}]
    assert turn.prompt_ids == [*tokenizer.render(asked)[0], tokenizer.assistant]


def test_another_model_brings_its_system_message(ask_tab, service, tuned_name, monkeypatch):
    purpose = Purpose("questions", 1, "你是老船夫。")
    monkeypatch.setitem(service.purposes, tuned_name, purpose)
    assert ask_tab.change_model(tuned_name)[ask_tab.system] == "你是老船夫。"


def test_a_question_that_is_too_long_returns_to_the_box(ask_tab, tuned_name, reader):
    turns, question = [GeneratedText(tuned_name, "一？", text="甲")], "好" * 200
    page = {}
    with pytest.raises(UserError, match="too long"):
        for update in ask_tab.ask(reader, question, turns, tuned_name, "", *ask_values()):
            page |= update
    assert page[ask_tab.question] == question and page[ask_tab.turns] == turns
    assert page[ask_tab.chat] == chat_messages(turns)


def test_undo_removes_the_last_turn_and_returns_its_question(ask_tab, tuned_name, reader):
    turns = [
        GeneratedText(tuned_name, "一？", text="甲"),
        GeneratedText(tuned_name, "二？", text="乙"),
    ]
    page = ask_tab.undo(reader, turns)
    assert page[ask_tab.question] == "二？" and page[ask_tab.turns] == turns[:1]
    assert page[ask_tab.chat] == chat_messages(turns[:1])
    assert ask_tab.undo(reader, []) == gr.skip()


def test_undo_cancels_a_waiting_request_and_changes_nothing_else(
    ask_tab, service, tuned_name, reader
):
    turns = [GeneratedText(tuned_name, "一？", text="甲")]
    service.note_request(reader)
    assert ask_tab.undo(reader, turns) == gr.skip()
    assert list(ask_tab.ask(reader, "二？", turns, tuned_name, "", *ask_values())) == []
    service.note_request(reader)
    assert list(ask_tab.ask(reader, "二？", turns, tuned_name, "", *ask_values(max_new_tokens=3)))
    assert ask_tab.undo(reader, turns)[ask_tab.question] == "一？"


@pytest.mark.parametrize("is_complete", [False, True])
@pytest.mark.parametrize("action", ["stop", "undo", "clear"])
def test_after_a_stop_no_update_arrives(
    ask_tab, service, tuned_name, known, reader, action, is_complete
):
    service.note_request(reader)
    updates = ask_tab.ask(reader, next(iter(known)), [], tuned_name, "", *ask_values(temperature=0))
    turns = [next(updates), next(updates), next(updates)][-1][ask_tab.turns]
    while is_complete and not turns[-1].ids:
        turns = next(updates)[ask_tab.turns]
    stop = {
        "stop": lambda: service.stop(reader),
        "clear": lambda: ask_tab.clear(reader),
        "undo": lambda: ask_tab.undo(reader, turns),
    }[action]
    stopping = threading.Thread(target=stop)
    stopping.start()
    deadline = time.monotonic() + WAIT_SECONDS
    while not service.reader(reader).stopped and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(updates) == []
    stopping.join(WAIT_SECONDS)
    assert not stopping.is_alive() and service.reader(reader).running == 0


def test_retry_has_a_new_seed_and_a_temperature_above_0():
    given = {"temperature": 0, "top_p": 0.9, "seed": 7, "answer_by": "auto"}
    written = {"temperature": RETRY_TEMPERATURE, "seed": None, "answer_by": "write"}
    assert retry_values(given) == given | written
    assert retry_values(given | {"temperature": 1.3})["temperature"] == 1.3
    assert retry_values(given | {"answer_by": "read"})["answer_by"] == "read"


@pytest.mark.parametrize("temperature", [0, 1.3])
def test_retry_answers_the_last_question_again(ask_tab, tuned_name, known, reader, temperature):
    turns = [GeneratedText(tuned_name, next(iter(known)), text="甲")]
    settings = ask_values(temperature=temperature, seed=7, max_new_tokens=300)
    page = final(ask_tab.retry(reader, turns, tuned_name, "", *settings))
    [turn] = page[ask_tab.turns]
    assert turn.prompt == turns[0].prompt and turn.text and turn.version
    says_raised = page[ask_tab.status] == text_html("raised_temperature")
    assert says_raised is (temperature == 0)


def test_retry_without_a_question_is_an_error(ask_tab, tuned_name, reader):
    with pytest.raises(UserError, match="The question is empty"):
        final(ask_tab.retry(reader, [], tuned_name, "", *ask_values()))


def test_an_example_is_answered_and_the_box_is_unchanged(ask_tab, tuned_name, known, reader):
    question, answer = next(iter(known.items()))
    event = SimpleNamespace(value={"text": question})
    assert ask_tab.choose_example(reader, event) == question
    page = final(
        ask_tab.ask_example(reader, question, [], tuned_name, "", *ask_values(temperature=0))
    )
    assert [(turn.prompt, turn.text) for turn in page[ask_tab.turns]] == [(question, answer)]
    assert ask_tab.question not in page


def test_examples_are_training_questions_of_the_model(service, tuned_name, base_name, known):
    examples = [example["text"] for example in example_questions(service, tuned_name)]
    assert len(examples) == len(set(examples)) == EXAMPLES and set(examples) <= set(known)
    assert len({known[question] for question in examples}) > 1
    assert example_questions(service, base_name) == []


def test_a_chosen_message_is_looked_into(ask_tab, tuned_name):
    turns = [
        GeneratedText(tuned_name, "一？", text="甲"),
        GeneratedText(tuned_name, "二？", text="乙"),
    ]
    for index, question in ((0, "一？"), ((1, 0), "一？"), (3, "二？")):
        html = ask_tab.inspect_chosen(turns, SimpleNamespace(index=index))
        assert f'<p class="soft">{question}</p>' in html and 'class="pieces"' in html
    assert ask_tab.inspect_chosen(turns, SimpleNamespace(index=4)) == ""
    assert "二？" in ask_tab.inspect_last(turns)
    with pytest.raises(UserError, match="no text"):
        ask_tab.inspect_last([])


def test_a_model_that_answers_no_questions_is_refused(ask_tab, base_name, reader):
    with pytest.raises(UserError, match="answers no questions"):
        final(ask_tab.ask(reader, "谁？", [], base_name, "", *ask_values()))


# ---------------------------------------------------------------- Continue


@pytest.fixture
def short(continue_tab: ContinueTab, base_name: str, reader: SimpleNamespace):
    """short(box, story): the page after a continuation by ten tokens."""

    def write(box: str, story: Story) -> dict:
        settings = values(max_new_tokens=10, seed=1)
        return final(continue_tab.continue_story(reader, box, story, base_name, *settings))

    return write


def test_a_text_grows_in_its_box_and_undo_brings_it_back(continue_tab, reader, short):
    tab = continue_tab
    first = short("清晨，", Story())
    assert first[tab.box].startswith("清晨，") and len(first[tab.box]) > 4
    assert first[tab.status] == text_html("length")
    second = short(first[tab.box], first[tab.story])
    undone = tab.undo(reader, second[tab.story])
    assert undone[tab.box] == first[tab.box]
    assert tab.undo(reader, undone[tab.story])[tab.box] == "清晨，"
    assert tab.undo(reader, Story()) == gr.skip()


def test_the_second_of_three_versions_is_used(continue_tab, base_name, reader):
    tab, settings = continue_tab, values(max_new_tokens=12, seed=1)
    page = final(tab.write_three(reader, "清晨，", Story(), base_name, *settings))
    versions = [page[box] for box in tab.version_boxes]
    assert len(set(versions)) == 3
    use_second = tab.version_handler(1)
    used = use_second(reader, "清晨，改过。", page[tab.story])
    assert used[tab.box] == "清晨，" + versions[1]
    assert tab.undo(reader, used[tab.story])[tab.box] == "清晨，改过。"
    with pytest.raises(UserError, match="no text"):
        use_second(reader, "", Story())


def test_an_edited_text_is_looked_into_from_its_beginning(continue_tab, base_name, short):
    tab = continue_tab
    page = short("清晨，", Story())
    box, story = page[tab.box], page[tab.story]
    assert 'class="context">清晨，</span><button' in tab.inspect(box, story, base_name)
    assert 'class="context"></span><button' in tab.inspect(box + "！", story, base_name)
    with pytest.raises(UserError, match="no text"):
        tab.inspect("", Story(), base_name)


def test_a_text_of_an_older_model_says_so(continue_tab, service, short):
    written = short("清晨，", Story())[continue_tab.story].last
    assert "trained further" not in service.inspect(written)
    tokenizer_hash, step = written.version
    newer = replace(written, version=ModelVersion(tokenizer_hash, step + 1))
    assert "trained further" in service.inspect(newer)
    other = replace(written, version=ModelVersion("another", step), ids=[0] * 9)
    html = service.inspect(other)
    pieces = "".join(re.findall(r'aria-pressed="false">([^<]*)<', html)).replace("↵", "")
    assert "trained further" in html and pieces == written.text


# ---------------------------------------------------------------- Compare


def test_both_models_write_side_by_side(compare_tab, tuned_name, base_name, known, reader):
    tab, (question, answer) = compare_tab, next(iter(known.items()))
    settings = values(temperature=0, max_new_tokens=30)
    page = final(tab.compare(reader, question, tuned_name, base_name, *settings))
    left, right = (page[output] for output in tab.outputs)
    assert left == answer and right and right != left
    assert [written.model for written in page[tab.generated]] == [tuned_name, base_name]
    assert page[tab.status] == text_html("length")
    assert all("<h3>" in html for html in tab.inspect(page[tab.generated]))
    with pytest.raises(UserError, match="no text"):
        tab.inspect([None, None])


def test_the_fine_tuned_model_is_on_the_right_of_its_base(service, tuned_name, base_name):
    assert default_pair(service) == (base_name, tuned_name)


# ---------------------------------------------------------------- all


@pytest.mark.parametrize("name", ["nowhere", 3, "", ["a"]])
def test_an_unknown_model_is_refused(service, name):
    with pytest.raises(UserError, match="Unknown model"):
        service.find_model(name)


def test_an_error_message_is_escaped():
    def fail() -> None:
        raise UserError("<img src=x>")

    with pytest.raises(gr.Error) as caught:
        errors_to_gradio(fail)()
    assert "&lt;img" in caught.value.message and "<img" not in caught.value.message
