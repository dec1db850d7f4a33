"""The page in a real browser: what a reader sees and does."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import Page, expect

from tests.web.browsing import (
    COLLECT_STATES,
    MARKUP,
    MARKUP_QUESTION,
    answers,
    ask,
    button,
    change_setting,
    choose_model,
    open_tab,
    status,
    story,
    wait_until_answered,
    write_long,
)
from tests.web.serving import wait_for

PLACE_IN_QUEUE = re.compile(r"\d+/\d+")


@pytest.fixture
def question(known: dict[str, str]) -> str:
    """A question whose answer the model knows."""
    return next(iter(known))


# ---------------------------------------------------------------- Ask


def test_a_question_in_chinese_is_answered_and_the_box_is_cleared(visit, known, question):
    page = visit()
    ask(page, question)
    expect(answers(page)).to_have_text(known[question])
    expect(page.locator("#question textarea")).to_have_value("")


def test_retry_undo_and_clear(visit, known):
    page, first = visit(), next(iter(known))
    second = next(question for question in known if known[question] != known[first])
    ask(page, first)
    wait_until_answered(page, known[first])
    ask(page, second)
    wait_until_answered(page, known[second])
    expect(status(page)).to_contain_text("每个问题单独作答")
    button(page, "重答").click()
    expect(status(page)).to_contain_text("这次用了 0.8")
    expect(answers(page)).to_have_count(2)
    button(page, "撤回").click()
    expect(answers(page)).to_have_count(1)
    expect(page.locator("#question textarea")).to_have_value(second)
    button(page, "清空").click()
    expect(answers(page)).to_have_count(0)


def test_a_click_on_an_example_asks_it(visit, known):
    page = visit()
    example = page.locator("#conversation button.example").first
    question = example.inner_text().strip()
    example.click()
    expect(answers(page)).to_have_text(known[question])


def test_an_empty_question_is_an_error(visit):
    page = visit()
    button(page, "发送").click()
    expect(page.get_by_text("还没有写问题。", exact=False)).to_be_visible()
    expect(answers(page)).to_have_count(0)


def test_an_error_does_not_cover_the_conversation(visit, known, question):
    page = visit()
    ask(page, question)
    wait_until_answered(page, known[question])
    ask(page, "好" * 200)
    expect(page.get_by_text("太长：这个模型", exact=False)).to_be_visible()
    expect(page.locator("#question textarea")).to_have_value("好" * 200)
    expect(page.locator("#conversation .error")).to_have_count(1)
    expect(page.locator("#conversation .error")).to_be_hidden()
    expect(answers(page)).to_have_text(known[question])


def test_after_a_reload_the_page_is_empty_and_works(visit, known, question):
    page = visit()
    visit.allowed = "AbortError|Connection errored out"  # of the stream that the reload closes
    for _ in range(2):
        ask(page, question)
        expect(answers(page)).to_have_text(known[question])
        page.reload()
        expect(page.locator("#question textarea")).to_be_visible()
        expect(answers(page)).to_have_count(0)


# ---------------------------------------------------------------- Look inside


def test_a_piece_is_chosen_by_mouse_and_by_arrow_keys(visit, known, question):
    page = visit()
    ask(page, question)
    expect(answers(page)).to_have_text(known[question])
    button(page, "看里面").click()
    pieces, chosen = page.locator("#ask-inside button.piece"), page.locator("#ask-inside .chosen")
    expect(pieces.first).to_be_visible()
    assert "".join(pieces.all_inner_texts()) == known[question]
    pieces.nth(1).click()
    expect(chosen).to_contain_text(pieces.nth(1).inner_text())
    assert chosen.locator("li").count() >= 1 and "%" in chosen.locator("li").first.inner_text()
    page.keyboard.press("ArrowRight")
    expect(pieces.nth(2)).to_be_focused()
    expect(chosen).to_contain_text(pieces.nth(2).inner_text())
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(pieces.nth(0)).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#ask-inside .piece[aria-pressed=true]")).to_have_count(1)


def press_tab_until(page: Page, condition: str) -> None:
    """Moves the focus until a JavaScript condition on `focused` holds."""

    def is_there() -> bool:
        page.keyboard.press("Tab")
        return page.evaluate(f"(focused => {condition})(document.activeElement)")

    wait_for(is_there, f"the focus is where {condition}")


def test_a_reader_asks_and_looks_inside_by_keyboard_alone(visit, known, question):
    page = visit()
    page.evaluate("document.activeElement.blur()")
    press_tab_until(page, "focused.matches('#question textarea')")
    page.keyboard.insert_text(question)
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text(known[question])
    press_tab_until(page, "focused.textContent.trim() == '看里面'")
    page.keyboard.press("Enter")
    expect(page.locator("#ask-inside button.piece").first).to_be_visible()
    press_tab_until(page, "focused.matches('#ask-inside button.piece')")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#ask-inside .chosen li").first).to_be_visible()


# ---------------------------------------------------------------- Judge


def test_a_text_is_judged_and_its_pieces_are_coloured(visit):
    page, review = visit(tab="判断"), "房间很好，<b>早餐</b>干净。"
    page.locator("#judged-text textarea").fill(review)
    button(page, "判断").click()
    bars = page.locator("#judgement .judged .bars")
    expect(bars).to_have_count(2)  # the model's and the linear model's
    expect(bars.first.locator("li").first).to_contain_text("好评")
    pieces = page.locator("#judgement .pieces")
    expect(pieces).to_have_text(review)
    expect(pieces.locator(".evidence")).to_have_count(2)
    assert page.locator("#judgement .pieces b").count() == 0
    button(page, "例子").click()
    expect(page.locator("#judged-text textarea")).not_to_have_value(review)


def test_a_pasted_table_is_judged_and_its_csv_can_be_copied(visit):
    page = visit(tab="判断", permissions=["clipboard-read", "clipboard-write"])
    button(page, re.compile("很多段文字")).click()
    page.locator("#judged-lines-text textarea").fill(
        "房间很好，早餐干净。\n\n房间很差，<i>脏</i>。"
    )
    button(page, "全部判断").click()
    rows = page.locator(".judged-table tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(1)).to_contain_text("房间很差，<i>脏</i>。")
    page.locator("#judged-csv button").first.click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("text,label,p_差评,p_好评\n房间很好，早餐干净。,好评,0.")


def test_a_text_that_is_too_long_to_be_sent_is_an_error(visit):
    visit.allowed = "413"
    page = visit(tab="判断")
    for length, message in ((100_000, "太长了：最多 20,000 字"), (1_000_000, "太长了，没有发送")):
        page.locator("#judged-text textarea").fill("好" * length)
        button(page, "判断").click()
        expect(page.get_by_text(message)).to_be_visible()


# ---------------------------------------------------------------- Continue, Compare, Training


def test_a_text_grows_in_its_box_and_stops(visit):
    page = visit(tab="续写")
    page.evaluate(COLLECT_STATES, "#story textarea")
    write_long(page)
    wait_for(lambda: page.evaluate("states.size") > 5, "five states of a growing text")
    button(page, "停止").click()
    page.wait_for_function(  # no new state between two looks
        "() => { const before = window.seen; window.seen = states.size; return before === seen; }",
        polling=1500,
    )
    text = story(page)
    assert text.startswith("清晨，") and len(text) > 10
    button(page, "看里面").click()
    pieces = page.locator("#story-inside .pieces")
    expect(pieces).to_be_visible()
    shown = pieces.inner_text().replace("\n", "").replace("↵", "")
    assert shown[-20:] == text.replace("\n", "")[-20:]
    button(page, "撤回").click()
    expect(page.locator("#story textarea")).to_have_value("清晨，")


def test_the_second_of_three_versions_is_used(visit):
    page = visit(tab="续写")
    change_setting(page, "长度", 60)
    page.locator("#story textarea").fill("清晨，")
    button(page, "三种写法").click()
    versions = page.locator(".version textarea")
    expect(status(page)).to_contain_text("到了长度上限")
    texts = [versions.nth(n).input_value() for n in range(3)]
    assert len(set(texts)) == 3
    button(page, "用这个").nth(1).click()
    expect(page.locator("#story textarea")).to_have_value("清晨，" + texts[1])
    expect(versions.first).to_be_hidden()


def test_two_models_are_compared_side_by_side(visit, known, question):
    page = visit(tab="对比")
    change_setting(page, "温度", 0)
    change_setting(page, "长度", 60)
    page.locator("#prompt textarea").fill(question)
    button(page, "一起写").click()
    outputs = page.locator(".written textarea")
    expect(status(page)).to_contain_text("到了长度上限")
    expect(outputs.nth(1)).to_have_value(known[question])  # the fine-tuned model is on the right
    assert outputs.nth(0).input_value() not in ("", known[question])
    button(page, "看里面").click()
    expect(page.locator(".pieces:visible")).to_have_count(2)


@pytest.mark.parametrize(
    "tab, box, output",
    [
        ("问", "#question", "#conversation [data-testid=bot] .reply"),
        ("对比", "#prompt", ".written textarea"),
    ],
)
def test_enter_sends_where_the_hint_says_so(visit, question, tab, box, output):
    page = visit(tab=tab)
    textarea = page.locator(f"{box} textarea")
    assert "回车发送" in textarea.get_attribute("placeholder")
    textarea.fill(question)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "selector => [...document.querySelectorAll(selector)]"
        ".some(e => (e.value ?? e.textContent).trim())",
        arg=output,
    )


def test_the_training_report_is_in_the_pages_language_without_a_scroll_bar(visit):
    page = visit(tab="训练")
    report = page.frame_locator("iframe.report")
    expect(report.locator("svg[role=img] path.curve").first).to_be_visible()
    expect(report.get_by_role("heading", name="训练曲线")).to_be_visible()
    expect(report.get_by_role("heading", name="Training curves")).to_be_hidden()
    assert report.locator("path.curve.a").count() >= 1
    fits = "e => e.scrollHeight <= e.clientHeight && e.scrollWidth <= e.clientWidth"
    wait_for(lambda: report.locator("html").evaluate(fits), "no scroll bar", 10)


# ---------------------------------------------------------------- language, width, dark mode


@pytest.mark.parametrize(
    "locale, tab",
    [("zh-CN", "训练"), ("zh-TW", "训练"), ("en-US", "Training"), ("fr-FR", "Training")],
)
def test_the_page_has_the_language_of_the_browser(visit, locale, tab):
    page = visit(locale=locale)
    expect(page.get_by_role("tab", name=tab, exact=True)).to_be_visible()
    other = {"训练": "Training", "Training": "训练"}[tab]
    assert other not in page.locator("body").inner_text()


def test_the_language_can_be_changed_and_stays(visit):
    page = visit(locale="fr-FR")
    button(page, "中文 / English").click()
    expect(page.get_by_role("tab", name="续写", exact=True)).to_be_visible()
    page.reload()
    open_tab(page, "训练")
    report = page.frame_locator("iframe.report")
    expect(report.get_by_role("heading", name="训练曲线")).to_be_visible()
    button(page, "中文 / English").click()
    expect(page.get_by_role("tab", name="Training", exact=True)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_tabs_without_scrolling_sideways(visit, question, scheme):
    page = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    ask(page, question)
    expect(answers(page)).to_have_count(1)
    for name, content in (
        ("问", "#conversation"),
        ("判断", "#judged-text"),
        ("续写", "#story"),
        ("对比", "#prompt"),
        ("训练", "iframe.report"),
    ):
        open_tab(page, name)
        expect(page.locator(content)).to_be_visible()
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), name
    assert page.evaluate("document.body.classList.contains('dark')") is (scheme == "dark")


# ---------------------------------------------------------------- markup is shown as text


def test_markup_in_an_answer_is_text_in_every_state(visit, markup_model):
    page = visit()
    choose_model(page, "模型", markup_model)
    page.evaluate(COLLECT_STATES, "#conversation [data-testid=bot] .reply")
    ask(page, MARKUP_QUESTION)
    expect(answers(page)).to_have_text(MARKUP)
    assert answers(page).inner_text().strip() == MARKUP
    states = page.evaluate("[...states]")
    parts = [state for state in states if state not in ("", MARKUP) and MARKUP.startswith(state)]
    assert len(parts) >= 2, states
    button(page, "看里面").click()
    expect(page.locator("#ask-inside .pieces")).to_have_text(MARKUP)
    page.locator("#ask-inside button.piece").first.click()
    expect(page.locator("#ask-inside .chosen")).to_contain_text("「<」")
    rendered = page.locator(
        "#conversation :is(script, strong, b, img:not([class]), a, .katex),"
        " #ask-inside :is(script, img, a, strong)"
    )
    assert rendered.count() == 0


def test_markup_in_a_comparison_is_text(visit, markup_model):
    page = visit(tab="对比")
    choose_model(page, "右边的模型", markup_model)
    change_setting(page, "温度", 0)
    page.locator("#prompt textarea").fill(MARKUP_QUESTION)
    button(page, "一起写").click()
    expect(page.locator(".written textarea").last).to_have_value(MARKUP)
    expect(status(page)).to_contain_text("到了长度上限")
    button(page, "看里面").click()
    expect(page.locator(".pieces:visible").last).to_have_text(MARKUP)


def test_markup_in_a_question_is_text(visit):
    page, question = visit(), "<b>x</b> **y** <img src=x>"
    ask(page, question)
    expect(page.locator("#conversation [data-testid=user]")).to_have_text(question)
    expect(answers(page)).to_have_text(re.compile("."))
    assert page.locator("#conversation :is(strong, img:not([class]), a, .katex)").count() == 0


# ---------------------------------------------------------------- many readers


def test_a_waiting_reader_sees_their_place_and_is_served_after_a_stop(visit, known, question):
    first, second = visit(tab="续写", own_window=True), visit()
    write_long(first)
    ask(second, question)
    expect(second.get_by_text(re.compile(r"(queue|队列|排队)\D*\d+/\d+"))).to_be_visible()
    button(first, "停止").click()
    expect(answers(second)).to_have_text(known[question])


def test_a_closed_tab_frees_the_model_within_two_seconds(visit, question):
    first, second = visit(tab="续写", own_window=True), visit()
    write_long(first)
    ask(second, question)
    expect(second.get_by_text(PLACE_IN_QUEUE)).to_be_visible()
    first.close()
    closed = time.monotonic()
    expect(answers(second)).to_have_text(re.compile("."))
    assert time.monotonic() - closed < 4  # two seconds, and as much for a busy machine


def test_a_full_queue_is_an_error_and_the_waiting_readers_are_served(visit):
    visit.allowed = "503"
    writing, *waiting, refused = (visit(tab="续写", own_window=True) for _ in range(4))
    write_long(writing)
    for page in (*waiting, refused):
        page.locator("#story textarea").fill("黄昏")
        button(page, "接着写").click()
        if page is not refused:
            expect(page.get_by_text(PLACE_IN_QUEUE)).to_be_visible()
    expect(refused.get_by_text("排队的人太多")).to_be_visible()
    button(writing, "停止").click()
    for page in waiting:
        wait_for(lambda page=page: len(story(page)) > 10, "the waiting reader's text")


def test_no_request_leaves_this_machine(visit, known, question):
    page, urls = visit(), []
    page.on("request", lambda request: urls.append(request.url))
    page.reload()
    ask(page, question)
    expect(answers(page)).to_have_text(known[question])
    open_tab(page, "训练")
    expect(page.frame_locator("iframe.report").locator("h1")).to_be_visible()
    assert len(urls) > 10  # `visit` asserts that they are local
