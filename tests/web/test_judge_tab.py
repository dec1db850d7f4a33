"""The tab Judge: labels, the pieces that decide them, tables, examples; hostile texts."""

from __future__ import annotations

import csv
import io
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from shuoshu.core.command_settings import AppSettings
from shuoshu.core.errors import UserError
from shuoshu.generation.judge import Judge
from shuoshu.models.purpose import Labelling, Purpose
from shuoshu.models.weights import load_model
from shuoshu.sft.dataset import read_pairs
from shuoshu.web import linear_rival
from shuoshu.web.judge_tab import JudgeTab, about_html, example_texts
from shuoshu.web.judge_view import MAX_BARS, csv_text, judgement_html, table_html
from shuoshu.web.judging import JudgedTexts, Judgement, judge_text, judge_texts, label_log_odds
from shuoshu.web.labels import text_html
from shuoshu.web.model_server import ModelServer
from shuoshu.web.page import build_page
from shuoshu.web.service import PageService
from shuoshu.web.validation import MAX_JUDGED_CHARS, MAX_JUDGED_TEXTS, MAX_TEXT_CHARS

GOOD, BAD = "房间很好，早餐干净。", "房间很差，早餐肮脏。"
MARKUP = "<script>1</script>，<img src=x>，"
SETTINGS = AppSettings(device="cpu", threads=1)


def service_of(*folders: Path) -> PageService:
    return PageService(ModelServer(folders, SETTINGS))


@pytest.fixture(scope="module")
def service(label_model: Path, tuned: Path, pretrained: Path) -> PageService:
    return service_of(label_model, tuned, pretrained)


@pytest.fixture(scope="module")
def tab(service: PageService) -> JudgeTab:
    with gr.Blocks():
        return JudgeTab(service)


@pytest.fixture(scope="module")
def judge(label_model: Path) -> Judge:
    return Judge(load_model(label_model))


@pytest.fixture
def reader() -> SimpleNamespace:
    """A request of a reader who did nothing before."""
    return SimpleNamespace(session_hash=uuid.uuid4().hex)


def final(updates: Iterable[dict]) -> dict:
    """The components after all updates."""
    components = {}
    for update in updates:
        components |= update
    return components


def judged(service: PageService, text: str) -> Judgement:
    *_, last = service.judge(None, text)
    return last


def probabilities_of(judge: Judge, text: str) -> np.ndarray:
    [values] = judge.probabilities([judge.prompt_ids(judge.prompt_of(text))], rows=1)
    return values


# ---------------------------------------------------------------- one text


@pytest.mark.parametrize("review, label", [(GOOD, "好评"), (BAD, "差评")])
def test_a_text_gets_the_probabilities_of_the_model_that_labels_it(service, judge, review, label):
    judgement = judged(service, f"\n {review} ")
    assert judgement.labels[judgement.winner] == label and judgement.prompt == f"评论：{review}"
    expected = probabilities_of(judge, review)
    np.testing.assert_allclose(np.exp(judgement.scores), expected, atol=1e-5, rtol=0)


def test_a_piece_speaks_for_the_label_by_what_its_log_odds_lose_without_it(service):
    pieces = ["房间很差，", "早餐很好，", "服务肮脏。"]
    whole = judged(service, "".join(pieces))
    assert whole.pieces == pieces and whole.is_complete
    for number, evidence in enumerate(whole.evidence):
        rest = judged(service, "".join(pieces[:number] + pieces[number + 1 :]))
        now, then = (label_log_odds(each.scores, whole.winner) for each in (whole, rest))
        lost = now - then
        assert evidence == pytest.approx(lost, abs=1e-3)


def test_log_odds_of_a_certain_label_are_exact():
    scores = np.array([[-1e-30, -70.0, -80.0], [-80.0, -1e-30, -70.0]])
    others = -70 + np.log1p(np.exp(-10))
    np.testing.assert_allclose(label_log_odds(scores, 0), [-others, -80], rtol=1e-12)


def test_of_a_long_text_the_beginning_and_the_end_are_judged(service, judge):
    judgement = judged(service, GOOD * 200)
    assert judgement.is_cut and "…" in judgement.prompt
    assert judgement.prompt.startswith("评论：房间很好") and judgement.prompt.endswith("早餐干净。")
    assert f"评论：{''.join(judgement.pieces)}" == judgement.prompt and judgement.is_complete
    assert len(judge.prompt_ids(judgement.prompt)) <= judge.block
    assert text_html("text_cut") in judgement_html(judgement)


def test_the_bars_come_first_then_the_pieces_then_the_linear_model(tab, reader):
    first, *others = [update[tab.result] for update in tab.judge(reader, GOOD, None)]
    assert first.count("<li>") == 2 and "evidence" not in first
    page = others[-1]
    assert re.findall(r"<b>([^<]+)</b><small>([\d.]+)%", page)[0][0] == "好评"
    assert page.count('class="bars"') == 2 and text_html("linear_model") in page
    pieces = re.search('<p class="pieces">(.*?)</p>', page).group(1)
    assert re.sub("<[^>]+>", "", pieces) == GOOD
    assert re.findall("evidence (?:for|against)", pieces)


def test_a_text_of_one_character_has_no_pieces(service):
    judgement = judged(service, "好")
    assert judgement.pieces == [] and judgement.is_complete
    assert text_html("single_piece") in judgement_html(judgement)


def test_markup_and_control_characters_are_shown_as_text(service, tab, reader):
    text = MARKUP + "&lt\x1b[31m\x07"
    judgement = judged(service, text)
    assert not judgement.is_cut
    table = final(tab.judge_lines(reader, text, None))[tab.table_result]
    for page in (judgement_html(judgement), table):
        assert not re.search("<(script|img)|[\x00-\x08\x0b-\x1f]", page)
        assert "&lt;script&gt;1&lt;/script&gt;，" in page and "&amp;lt␛[31m␇" in page


def test_the_names_of_labels_are_escaped():
    labels, scores = ("<b>x</b>", "{0}"), np.log([0.9, 0.1])
    judgement = Judgement(labels, scores, "a，b", False, ["a，", "b"], np.log([[0.5, 0.5]] * 2))
    page = judgement_html(judgement) + table_html(JudgedTexts(labels, ["a"], scores[None]))
    assert "<b>x" not in page and "&lt;b&gt;x" in page


def test_of_many_labels_the_least_probable_are_added_up():
    chances = np.arange(1, 31) / 465
    judgement = Judgement(tuple(f"l{n}" for n in range(30)), np.log(chances), "a", False)
    page = judgement_html(judgement)
    assert page.count("<li>") == MAX_BARS + 1 and "<b>l29</b><small>6.5%" in page
    assert f"{text_html('other_labels', 10)}</b><small>{55 / 465:.1%}" in page


@pytest.mark.parametrize(
    "value, message",
    [
        ("", "no text yet"),
        (" \n\t　\u2028", "no text yet"),
        ("\0\ufeff\0", "no text yet"),
        ("好" * 1_000_000, "at most 20,000 characters, this has 1,000,000"),
        (None, "Expected a text, got NoneType"),
        (["a"], "Expected a text, got list"),
    ],
)
def test_what_is_no_text_to_judge_is_refused(tab, reader, value, message):
    with pytest.raises(UserError, match=message):
        final(tab.judge(reader, value, None))


@pytest.mark.parametrize(
    "unit", ["好", "a", "\u0301", "。\n", "\x01", "\ud800", "\U0001f469\u200d"]
)
def test_the_longest_texts_are_judged(service, unit):
    text = (unit * MAX_TEXT_CHARS)[:MAX_TEXT_CHARS]
    judgement = judged(service, text)
    assert judgement.is_cut and judgement.is_complete and judgement_html(judgement)


# ---------------------------------------------------------------- many texts


def test_a_table_is_judged_line_by_line_and_copied_as_csv(tab, judge, reader):
    lines = [GOOD, '说"很差"，\t真的', "=1+1", BAD * 20]
    page = final(tab.judge_lines(reader, "\r\n\n".join(lines) + "\r \n", None))
    head, *rows = csv.reader(io.StringIO(page[tab.csv]["value"]))
    assert head == ["text", "label", "p_差评", "p_好评"]
    assert [row[0] for row in rows] == lines and rows[0][1] == "好评"
    for line, row in zip(lines, rows, strict=True):
        expected = probabilities_of(judge, line)
        np.testing.assert_allclose([float(cell) for cell in row[2:]], expected, atol=1e-5, rtol=0)
    assert page[tab.table_result].count("<tr>") == 1 + len(lines)
    assert text_html("judged_lines", 4, 4) in page[tab.table_result]
    assert page[tab.table_status] == ""


def test_200_lines_are_judged_and_201_are_refused(tab, reader):
    page = final(tab.judge_lines(reader, f"{GOOD}\n" * MAX_JUDGED_TEXTS, None))
    assert page[tab.csv]["value"].count("好评,") == MAX_JUDGED_TEXTS
    with pytest.raises(UserError, match="at most 200 texts at a time, here are 201"):
        final(tab.judge_lines(reader, f"{GOOD}\n" * (MAX_JUDGED_TEXTS + 1), None))


@pytest.mark.parametrize(
    "table, message",
    [
        (" \n \r\n\t\n\0\n", "no text yet"),
        (f"好\n\n{'好' * 20_001}\n好", "Line 3 is too long: at most 20,000 .*, it has 20,001"),
        ("好" * (MAX_JUDGED_CHARS + 1), "at most 200,000 characters, this has 200,001"),
        ("a\n" * 90_000, "at most 200 texts at a time, here are 90,000"),
        (3, "Expected a text, got int"),
    ],
)
def test_a_table_that_is_too_large_or_empty_is_refused(tab, reader, table, message):
    with pytest.raises(UserError, match=message):
        final(tab.judge_lines(reader, table, None))


# ---------------------------------------------------------------- limits


def test_after_the_time_limit_the_rest_of_a_table_is_empty(judge):
    states: list[JudgedTexts] = []
    judge_texts([GOOD, BAD] * 20, judge, lambda: bool(states), states.append)
    [only] = states
    assert not only.is_complete and not np.isnan(only.scores[0]).any()
    rows = list(csv.reader(io.StringIO(csv_text(only))))
    assert rows[-1] == [BAD, "", "", ""] and rows[1][1] == "好评"
    assert "<td></td><td></td></tr>" in table_html(only) and "nan" not in table_html(only)


def test_after_the_time_limit_a_text_has_bars_and_uncoloured_pieces(judge):
    states: list[Judgement] = []
    judge_text(GOOD, judge, lambda: True, states.append)
    assert states[-1].pieces and not states[-1].is_complete
    page = judgement_html(states[-1])
    assert page.count("<li>") == 2 and "nan" not in page
    assert set(re.findall('--shade:([^"]*)', page.split('class="pieces"')[1])) == {"0.00"}


def test_a_stopped_request_shows_nothing(tab, service, reader):
    service.note_request(reader)
    assert service.stop(reader)
    assert list(tab.judge(reader, GOOD, None)) == list(tab.judge_lines(reader, GOOD, None)) == []


def test_a_table_that_is_stopped_keeps_what_was_judged(tab, service, reader):
    service.note_request(reader)
    updates = tab.judge_lines(reader, f"{GOOD * 3}\n" * MAX_JUDGED_TEXTS, None)
    first = next(updates)
    stopping = threading.Thread(target=service.stop, args=[reader])
    stopping.start()
    while not service.reader(reader).stopped:
        time.sleep(0.001)
    assert list(updates) == [] and service.reader(reader).running == 0
    stopping.join()
    done = first[tab.csv]["value"].count("好评,")
    assert done and first[tab.table_result].count("<tr>") == 201


# ---------------------------------------------------------------- the linear model


def test_the_linear_model_is_fitted_once_and_reads_texts_without_the_prompts_words(
    service, label_model, reader, monkeypatch
):
    fitted = []

    def fake(*data: object) -> SimpleNamespace:
        fitted.append(data)
        return SimpleNamespace(
            name="a <line>",
            log_probabilities=lambda texts: fitted.append(texts) or np.log([[0.25, 0.75]]),
        )

    monkeypatch.setattr(linear_rival, "strongest", fake)
    with gr.Blocks():
        tab = JudgeTab(service)
    pages = [final(tab.judge(reader, text, None))[tab.result] for text in (GOOD, BAD)]
    assert all("a &lt;line&gt;" in page and "<small>75.0%</small>" in page for page in pages)
    (train_texts, train_labels, *_, labels), *read = fitted
    assert list(labels) == ["差评", "好评"] and set(train_labels) == set(labels)
    assert not any(text.startswith("评论：") for text in train_texts)
    assert read == [[GOOD], [BAD]]


def test_without_training_data_or_with_too_much_there_is_no_linear_model(
    service, label_model, labelled, reader, tmp_path, monkeypatch
):
    with gr.Blocks():
        tab = JudgeTab(service)
    monkeypatch.setattr(linear_rival, "MAX_FITTED_CHARACTERS", 10)
    page = final(tab.judge(reader, GOOD, None))[tab.result]
    assert text_html("linear_data_too_long", 10) in page
    moved = labelled.rename(tmp_path / "moved")
    try:
        tab.rivals = linear_rival.LinearRivals()
        page = final(tab.judge(reader, GOOD, None))[tab.result]
        assert text_html("no_linear_data") in page and "evidence" in page
        assert example_texts(service, str(label_model)) == []
    finally:
        moved.rename(labelled)


def test_data_with_other_labels_is_not_the_linear_models(labelled):
    assert linear_rival.read_splits(labelled, ["好评", "差评"], ("", ""))
    assert linear_rival.read_splits(labelled, ["好评", "中评"], ("", "")) is None


# ---------------------------------------------------------------- examples, models


def test_examples_are_validation_texts_without_the_template(tab, service, label_model, labelled):
    examples = example_texts(service, str(label_model))
    prompts = {pair["messages"][0]["content"] for pair in read_pairs(labelled, "val")}
    assert len(examples) > 1 and {f"评论：{text}" for text in examples} <= prompts
    shown = [tab.next_example("", examples)]
    for _ in examples:
        shown.append(tab.next_example(shown[-1], examples))
    assert shown == [*examples, examples[0]]
    assert tab.next_example("mine", []) == "mine"


def test_a_template_of_several_columns_is_shown(service, label_model, monkeypatch):
    name = str(label_model)
    assert "评论" not in about_html(service, name) and "好评" in about_html(service, name)

    def about_template(template: str) -> str:
        purpose = Purpose("labels", 1, "", Labelling(("<a>", "b"), template))
        monkeypatch.setitem(service.purposes, name, purpose)
        return about_html(service, name)

    assert "{text}" not in about_template("{text}") and "<code>" not in about_template("")
    about = about_template("<i>{title}\\n{text}")
    assert "&lt;i&gt;{title}\n{text}" in about and "<a>" not in about and "&lt;a&gt;" in about


def test_a_model_that_labels_is_for_judging_only(service, label_model, tuned, pretrained):
    label, answers, text = map(str, (label_model, tuned, pretrained))
    assert service.label_models == [label] and service.question_models == [answers]
    assert service.writing_models == [answers, text]
    for refused, message in (
        (lambda: service.question(label, "谁？", {}), "answers no questions. .*out-sft"),
        (lambda: service.continuation(label, "清晨", {}), "labels texts and writes none"),
        (lambda: service.inspect_pieces(label, "清晨", ""), "labels texts and writes none"),
        (lambda: service.judge(text, "好"), "labels no texts. .*out-labels"),
        (lambda: service.judge_many("nowhere", ["好"]), "Unknown model"),
        (lambda: service_of(pretrained).judge(None, "好"), "labels no texts. .*: —"),
    ):
        with pytest.raises(UserError, match=message):
            refused()


@pytest.mark.parametrize(
    "names, tabs",
    [
        (["labels"], ["judge", "training"]),
        (["labels", "text"], ["judge", "continue", "training"]),
        (["questions", "labels"], ["ask", "judge", "continue", "training"]),
        (["questions", "text"], ["ask", "continue", "compare", "training"]),
    ],
)
def test_a_page_has_the_tabs_that_its_models_allow(label_model, tuned, pretrained, names, tabs):
    folders = {"labels": label_model, "questions": tuned, "text": pretrained}
    page = build_page(service_of(*(folders[name] for name in names)))
    assert [block.id for block in page.blocks.values() if isinstance(block, gr.Tab)] == tabs


def test_a_model_that_was_trained_again_for_something_else_is_refused(label_model, tuned, tmp_path):
    ignored = shutil.ignore_patterns("checkpoints")
    folder = Path(shutil.copytree(label_model, tmp_path / "out", ignore=ignored))
    service = service_of(folder)
    assert judged(service, GOOD).pieces
    shutil.copytree(tuned, folder, ignore=ignored, dirs_exist_ok=True)
    with pytest.raises(UserError, match="labels no texts now"):
        judged(service, GOOD)
