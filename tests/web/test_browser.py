"""The page in a real browser: what a reader sees, does, and is spared."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

import prepare_sft
import train
from shuoshu.sft.dataset import read_pairs
from tests.web.serving import PATIENCE, Server, until

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
]
ARGUMENTS += ["--disable-sync"]
LONG = 20_000  # tokens, more than a test waits for
expect.set_options(timeout=1000 * PATIENCE)
WRITTEN = """[...document.querySelectorAll("#talk [data-testid=bot], .written textarea")]
  .some(e => e.checkVisibility() && (e.value ?? e.textContent).trim())"""
WATCH = """[selector => {
  window.states = new Set();
  const look = () => { const all = document.querySelectorAll(selector), last = all[all.length - 1]; if (last) states.add(last.value ?? last.textContent); };
  window.watch = setInterval(look, 5);
  new MutationObserver(look).observe(document.body, { childList: true, subtree: true, characterData: true });
}][0]"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        names = [
            path
            for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
            if (path := shutil.which(name))
        ]
        path = next((path for path in (*names, own) if Path(path).exists()), None)
        if path is None:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
                "no Chromium here: apt install chromium"
            )
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(
    tuned: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with Server(
        tmp_path_factory.mktemp("served"),
        tuned,
        pretrained,
        f"--max_new_tokens={LONG}",
        "--max_seconds=30",
        "--queue=4",
    ) as server:
        yield server
        assert "Traceback" not in server.told()


@pytest.fixture(scope="module")
def known(qa: Path) -> dict[str, str]:
    return {
        pair["messages"][0]["content"]: pair["messages"][1]["content"]
        for pair in read_pairs(qa, "train")
    }


EVIL = (
    "<script>alert(1)</script> **bold** <img src=x onerror=alert(1)> [a](javascript:alert(1)) $x^2$"
)


@pytest.fixture(scope="module")
def evil(sft: list[str], pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers with markup, whatever it is asked."""
    home = tmp_path_factory.mktemp("evil")
    pairs = [
        {"question": "谁在渡口？", "answer": EVIL, "split": split} for split in ("train", "val")
    ]
    (home / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    assert (
        prepare_sft.main(
            [
                str(home / "pairs.json"),
                f"--out={home / 'qa'}",
                f"--tokenizer={pretrained}",
                "--block_size=192",
            ]
        )
        == 0
    )
    command = [argument for argument in sft if not argument.startswith("--dataset=")]
    lengths = ["--max_iters=60", "--eval_interval=60", "--block_size=192"]
    assert (
        train.main(
            [*command, f"--dataset={home / 'qa'}", f"--out_dir={home / 'out-evil'}", *lengths]
        )
        == 0
    )
    return home / "out-evil"


@pytest.fixture(scope="module")
def narrow(
    evil: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server where one reader may wait, of a model that answers with markup."""
    with Server(
        tmp_path_factory.mktemp("narrow"),
        evil,
        pretrained,
        f"--max_new_tokens={LONG}",
        "--max_seconds=8",
        "--queue=1",
        slowly=True,
    ) as server:
        yield server
        assert "Traceback" not in server.told()


Opener = Callable[..., Page]


@pytest.fixture
def reader(browser: Browser, server: Server) -> Iterator[Opener]:
    """reader(**context): a page as another reader has it; that none saw an error or asked outside is asserted at the end."""
    contexts, wrong = [], []

    def watch(page: Page) -> None:
        page.on(
            "console",
            lambda message: message.type == "error" and wrong.append(("console", message.text)),
        )
        page.on("pageerror", lambda error: wrong.append(("script", str(error))))
        page.on(
            "dialog", lambda dialog: (wrong.append(("dialog", dialog.message)), dialog.dismiss())
        )
        page.on(
            "response",
            lambda answer: answer.status >= 400 and wrong.append((answer.status, answer.url)),
        )
        page.on(
            "request",
            lambda request: (
                re.match(r"(http://127\.0\.0\.1:\d+/|data:|blob:|about:)", request.url)
                or wrong.append(("outside", request.url))
            ),
        )

    def open_page(
        url: str = server.url, locale: str = "zh-CN", tab: str = "", **more: object
    ) -> Page:
        contexts.append(browser.new_context(locale=locale, **more))
        contexts[-1].set_default_timeout(1000 * PATIENCE)
        page = contexts[-1].new_page()
        watch(page)
        page.goto(url)
        expect(page.get_by_role("tab").first).to_be_visible()
        if tab:
            page.get_by_role("tab", name=tab, exact=True).click()
        return page

    open_page.forgiven = "(?!)"  # nothing
    yield open_page
    for context in contexts:
        context.close()
    assert [fault for fault in wrong if not re.search(open_page.forgiven, str(fault))] == []


def button(page: Page, name: str):
    """The visible button of this name."""
    return page.get_by_role("button", name=name, exact=True).locator("visible=true")


def ask(page: Page, question: str) -> None:
    page.locator("#question textarea").fill(question)
    page.locator("#question textarea").press("Enter")


def answers(page: Page):
    return page.locator("#talk [data-testid=bot]")


def set_knob(page: Page, label: str, value: int) -> None:
    """One of the visible tab's settings."""
    settings = page.locator("button.label-wrap:visible")
    if "open" not in settings.get_attribute("class"):
        settings.click()
    field = page.locator(f'input[type=number][aria-label*="{label}"]:visible')
    field.fill(str(value))
    field.press("Tab")


def write_long(page: Page, begun: str = "清晨，") -> None:
    """Begins a greedy continuation that doesn't end by itself."""
    set_knob(page, "温度", 0)
    set_knob(page, "长度", LONG)
    page.locator("#story textarea").fill(begun)
    button(page, "接着写").click()


def story(page: Page) -> str:
    return page.locator("#story textarea").input_value()


# ---------------------------------------------------------------- asking


def test_a_question_in_chinese_is_answered_and_the_box_is_cleared(reader, known):
    page, (question, answer) = reader(), next(iter(known.items()))
    ask(page, question)
    expect(answers(page)).to_have_text(answer)
    expect(page.locator("#question textarea")).to_have_value("")


def test_retry_undo_and_clear(reader, known):
    page, (one, two) = reader(), [*known][:2]
    ask(page, one)
    expect(answers(page)).to_have_text(known[one])
    ask(page, two)
    expect(answers(page).last).to_have_text(known[two])
    expect(page.locator(".prose.note:visible")).to_contain_text("每个问题单独作答")
    button(page, "重答").click()
    expect(page.locator(".prose.note:visible")).to_contain_text("这次用了 0.8")
    expect(answers(page)).to_have_count(2)
    button(page, "撤回").click()
    expect(answers(page)).to_have_count(1)
    expect(page.locator("#question textarea")).to_have_value(two)
    button(page, "清空").click()
    expect(answers(page)).to_have_count(0)


def test_an_example_is_asked_by_a_click(reader, known):
    page = reader()
    example = page.locator("#talk button.example").first
    question = example.inner_text().strip()
    example.click()
    expect(answers(page)).to_have_text(known[question])


def test_an_empty_question_is_told(reader):
    page = reader()
    button(page, "发送").click()
    expect(page.get_by_text("还没有写问题。", exact=False)).to_be_visible()
    expect(answers(page)).to_have_count(0)


def test_reloading_begins_anew_and_the_page_works_on(reader, known):
    page, question = reader(), next(iter(known))
    reader.forgiven = (
        "AbortError|Connection errored out"  # of a stream that the leaving page closes
    )
    for _ in range(2):
        ask(page, question)
        expect(answers(page)).to_have_text(known[question])
        page.reload()
        expect(page.locator("#question textarea")).to_be_visible()
        expect(answers(page)).to_have_count(0)


# ---------------------------------------------------------------- looking inside


def test_a_token_is_chosen_by_mouse_and_by_arrow_keys(reader, known):
    page, question = reader(), next(iter(known))
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


def test_by_keyboard_alone_a_reader_asks_and_looks_inside(reader, known):
    page, (question, answer) = reader(), next(iter(known.items()))

    def tab_to(selector: str) -> None:
        until(
            lambda: (
                page.keyboard.press("Tab")
                or page.evaluate("s => document.activeElement.matches(s)", selector)
            ),
            f"a way to {selector} by keyboard",
        )

    page.evaluate("document.activeElement.blur()")
    tab_to("#question textarea")
    page.keyboard.insert_text(question)
    page.keyboard.press("Enter")
    expect(answers(page)).to_have_text(answer)
    until(
        lambda: (
            page.keyboard.press("Tab")
            or page.evaluate("document.activeElement.textContent.trim() == '看里面'")
        ),
        "a way to Look inside",
    )
    page.keyboard.press("Enter")
    expect(page.locator("#ask-inside button.piece").first).to_be_visible()
    tab_to("#ask-inside button.piece")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#ask-inside .chosen li").first).to_be_visible()


# ---------------------------------------------------------------- continuing, comparing, training


def test_a_text_grows_in_its_box_and_stops(reader):
    page = reader(tab="续写")
    page.evaluate(WATCH, "#story textarea")
    write_long(page)
    until(lambda: page.evaluate("states.size") > 5, "five states of a growing text")
    button(page, "停").click()
    page.wait_for_function(
        "() => { const now = states.size, then = window.then; window.then = now; return then === now; }",
        polling=1500,
    )
    assert story(page).startswith("清晨，") and len(story(page)) > 10
    grown = story(page)
    button(page, "看里面").click()
    expect(page.locator("#story-inside .pieces")).to_be_visible()
    assert (
        page.locator("#story-inside .pieces").inner_text().replace("\n", "")[-20:]
        == grown.replace("\n", "")[-20:]
    )
    button(page, "撤回").click()
    expect(page.locator("#story textarea")).to_have_value("清晨，")


def test_of_three_versions_the_second_is_taken(reader):
    page = reader(tab="续写")
    page.locator("#story textarea").fill("清晨，")
    button(page, "三种写法").click()
    versions, take = page.locator(".version textarea"), button(page, "用这个")
    expect(page.locator(".prose.note:visible")).to_contain_text("到了长度上限")
    texts = [versions.nth(n).input_value() for n in range(3)]
    assert len(set(texts)) == 3
    take.nth(1).click()
    expect(page.locator("#story textarea")).to_have_value("清晨，" + texts[1])
    expect(versions.first).to_be_hidden()


def test_two_models_are_compared_side_by_side(reader, known):
    page, (question, answer) = reader(tab="对比"), next(iter(known.items()))
    set_knob(page, "温度", 0)
    page.locator("#prompt textarea").fill(question)
    button(page, "一起写").click()
    written = page.locator(".written textarea")
    expect(page.locator(".prose.note:visible")).to_contain_text("到了长度上限")
    expect(written.nth(1)).to_have_value(answer)  # before stands left of after
    assert written.nth(0).input_value() not in ("", answer)
    button(page, "看里面").click()
    expect(page.locator(".pieces:visible")).to_have_count(2)


def test_enter_sends_where_the_hint_says_so(reader, known):
    for tab, box in (("问", "#question"), ("对比", "#prompt")):
        page = reader(tab=tab)
        assert "回车发送" in page.locator(f"{box} textarea").get_attribute("placeholder")
        page.locator(f"{box} textarea").fill(next(iter(known)))
        page.keyboard.press("Enter")
        expect(
            page.locator("#talk [data-testid=bot]" if tab == "问" else ".written textarea")
            .locator("visible=true")
            .first
        ).to_be_visible()
        until(lambda page=page: page.evaluate(WRITTEN), f"an answer in {tab}", 10)


def test_training_shows_its_curves_without_a_bar_of_its_own_in_the_pages_language(reader):
    page = reader(tab="训练")
    frame = page.frame_locator("iframe.report")
    expect(frame.locator("svg[role=img] path.curve").first).to_be_visible()
    expect(frame.get_by_role("heading", name="训练曲线")).to_be_visible()
    expect(frame.get_by_role("heading", name="Training curves")).to_be_hidden()
    assert frame.locator("path.curve.a").count() >= 1
    until(
        lambda: frame.locator("html").evaluate(
            "e => e.scrollHeight <= e.clientHeight && e.scrollWidth <= e.clientWidth"
        ),
        "no scroll bar",
        10,
    )


# ---------------------------------------------------------------- language, width, darkness


@pytest.mark.parametrize(
    "locale, tab",
    [("zh-CN", "训练"), ("zh-TW", "训练"), ("en-US", "Training"), ("fr-FR", "Training")],
)
def test_the_browsers_language_is_the_pages(reader, locale, tab):
    page = reader(locale=locale)
    expect(page.get_by_role("tab", name=tab, exact=True)).to_be_visible()
    other = {"训练": "Training", "Training": "训练"}[tab]
    assert other not in page.locator("body").inner_text()


def test_the_switch_changes_the_language_and_lasts(reader):
    page = reader(locale="fr-FR")
    button(page, "中文 / English").click()
    expect(page.get_by_role("tab", name="续写", exact=True)).to_be_visible()
    page.reload()
    expect(page.get_by_role("tab", name="续写", exact=True)).to_be_visible()
    page.get_by_role("tab", name="训练", exact=True).click()
    expect(
        page.frame_locator("iframe.report").get_by_role("heading", name="训练曲线")
    ).to_be_visible()
    button(page, "中文 / English").click()
    expect(page.get_by_role("tab", name="Training", exact=True)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_all_tabs_are_reached_and_nothing_scrolls_sideways(reader, known, scheme):
    page = reader(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True)
    ask(page, next(iter(known)))
    expect(answers(page)).to_have_count(1)
    for name, sign in (
        ("问", "#talk"),
        ("续写", "#story"),
        ("对比", "#prompt"),
        ("训练", "iframe.report"),
    ):
        page.get_by_role("tab", name=name, exact=True).click()
        expect(page.locator(sign)).to_be_visible()
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), name
    assert page.evaluate("document.body.classList.contains('dark')") is (scheme == "dark")


# ---------------------------------------------------------------- what a model writes is text


def test_markup_in_an_answer_is_shown_letter_by_letter(reader, narrow):
    page = reader(narrow.url)
    page.evaluate(WATCH, "#talk [data-testid=bot]")
    ask(page, "谁在渡口？")
    expect(answers(page)).to_have_text(EVIL)
    assert answers(page).inner_text().strip() == EVIL
    states = page.evaluate("[...states]")
    assert len([text for text in states if text and text != EVIL and EVIL.startswith(text)]) >= 2, (
        states
    )
    button(page, "看里面").click()
    expect(page.locator("#ask-inside .pieces")).to_have_text(EVIL)
    page.locator("#ask-inside button.piece").first.click()
    expect(page.locator("#ask-inside .chosen")).to_contain_text("「<」")
    assert (
        page.locator(
            "#talk :is(script, strong, b, img:not([class]), a, .katex), #ask-inside :is(script, img, a, strong)"
        ).count()
        == 0
    )


def test_markup_is_text_in_a_comparison_too(reader, narrow):
    page = reader(narrow.url, tab="对比")
    set_knob(page, "温度", 0)
    page.locator("#prompt textarea").fill("谁在渡口？")
    button(page, "一起写").click()
    expect(page.locator(".prose.note:visible")).to_contain_text("到了长度上限")
    expect(page.locator(".written textarea").last).to_have_value(EVIL)
    button(page, "看里面").click()
    expect(page.locator(".pieces:visible").last).to_have_text(EVIL)


def test_a_question_with_markup_is_text(reader):
    page, question = reader(), "<b>x</b> **y** <img src=x>"
    ask(page, question)
    expect(page.locator("#talk [data-testid=user]")).to_have_text(question)
    expect(answers(page)).to_have_text(re.compile("."))
    assert page.locator("#talk :is(strong, img:not([class]), a, .katex)").count() == 0


# ---------------------------------------------------------------- many readers


def test_two_readers_are_both_served_and_the_waiting_one_sees_its_place(reader, known):
    first, second = reader(tab="续写"), reader()
    write_long(first)
    until(lambda: len(story(first)) > 10, "the first reader's text")
    question = next(iter(known))
    ask(second, question)
    expect(second.get_by_text(re.compile(r"(queue|队列|排队)\D*\d+/\d+"))).to_be_visible()
    button(first, "停").click()
    expect(answers(second)).to_have_text(known[question])


def test_a_closed_tab_frees_the_model_within_two_seconds(reader, known):
    first, second = reader(tab="续写"), reader()
    write_long(first)
    until(lambda: len(story(first)) > 10, "the first reader's text")
    question = next(iter(known))
    ask(second, question)
    expect(second.get_by_text(re.compile(r"\d+/\d+"))).to_be_visible()
    first.close()
    closed = time.monotonic()
    expect(answers(second)).to_have_text(re.compile("."))
    assert time.monotonic() - closed < 4  # two seconds, and as much for a busy machine


def test_a_full_queue_is_told(reader, narrow):
    reader.forgiven = "503"
    writing, waiting, refused = (reader(narrow.url, tab="续写") for _ in range(3))
    write_long(writing)
    until(lambda: len(story(writing)) > 10, "a text")
    for page in (waiting, refused):
        page.locator("#story textarea").fill("黄昏")
        button(page, "接着写").click()
        if page is waiting:
            expect(page.get_by_text(re.compile(r"\d+/\d+"))).to_be_visible()
    expect(refused.get_by_text(re.compile("full|满"))).to_be_visible()
    until(lambda: len(story(waiting)) > 10, "the waiting reader's text")


def test_no_request_leaves_this_machine(reader, known):
    page, asked = reader(), []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    ask(page, next(iter(known)))
    expect(answers(page)).to_have_text(known[next(iter(known))])
    page.get_by_role("tab", name="训练", exact=True).click()
    expect(page.frame_locator("iframe.report").locator("h1")).to_be_visible()
    assert len(asked) > 10 and all(
        url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:")) for url in asked
    )
