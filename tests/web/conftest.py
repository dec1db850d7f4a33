"""Fixtures of the page's tests: known questions, and a page in a real browser."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

import prepare_sft
import train
from shuoshu.sft.dataset import read_pairs
from tests.web.browsing import LONG, open_tab, train_on_markup
from tests.web.serving import TIMEOUT, Server

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LOCAL_URL = re.compile(r"http://127\.0\.0\.1:\d+/|data:|blob:|about:")


@pytest.fixture(scope="session")
def known(qa: Path) -> dict[str, str]:
    """Training questions of the fine-tuned model, with their answers."""
    return {
        pair["messages"][0]["content"]: pair["messages"][1]["content"]
        for pair in read_pairs(qa, "train")
    }


GOOD, BAD = ("很好", "干净", "安静", "喜欢"), ("很差", "肮脏", "吵闹", "讨厌")
PARTS = ("房间", "早餐", "服务", "大堂", "窗外", "价格", "床铺", "热水")


@pytest.fixture(scope="session")
def labelled(pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of short reviews, whose labels 好评 and 差评 follow from their words."""
    folder = tmp_path_factory.mktemp("labelled")
    draw, rows = random.Random(5), []
    for number in range(160):
        words = (GOOD, BAD)[number % 2]
        clauses = [part + draw.choice(words) for part in draw.sample(PARTS, 2)]
        rows.append({"review": "，".join(clauses) + "。", "label": number % 2})
    (folder / "reviews.json").write_text(json.dumps(rows), encoding="utf-8")
    command = [str(folder / "reviews.json"), f"--out={folder / 'reviews'}", "--block_size=64"]
    templates = ["--question=评论：{review}", "--answer={label}", "--labels=0=好评,1=差评"]
    assert prepare_sft.main([*command, *templates, f"--tokenizer={pretrained}"]) == 0
    return folder / "reviews"


@pytest.fixture(scope="session")
def label_model(
    labelled: Path, sft: list[str], pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model that labels these reviews."""
    out_dir = tmp_path_factory.mktemp("labels") / "out-labels"
    command = [argument for argument in sft if not argument.startswith("--dataset=")]
    command += [f"--dataset={labelled}", f"--out_dir={out_dir}", "--max_iters=60"]
    assert train.main([*command, "--eval_interval=60"]) == 0
    return out_dir


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        installed = [path for name in CHROMIUM_NAMES if (path := shutil.which(name))]
        paths = [*installed, playwright.chromium.executable_path]
        path = next((path for path in paths if Path(path).exists()), None)
        if path is None:
            missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            missing("no Chromium here: apt install chromium")
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def markup_model(
    sft: list[str], pretrained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return train_on_markup(tmp_path_factory.mktemp("markup"), sft, pretrained)


@pytest.fixture(scope="module")
def page_server(
    tuned: Path,
    pretrained: Path,
    markup_model: Path,
    label_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """One page for all tests in the browser; two readers may wait in its queue."""
    with Server(
        tmp_path_factory.mktemp("page"),
        tuned,
        pretrained,
        markup_model,
        label_model,
        f"--max_new_tokens={LONG}",
        "--max_seconds=30",
        "--queue=2",
        slow=True,
    ) as server:
        yield server
        assert "Traceback" not in server.output()


class Visits:
    """Opens the page as a new reader each time, and collects what goes wrong there.

    allowed: a pattern of errors that a test expects.
    """

    def __init__(self, browser: Browser, context: BrowserContext, url: str) -> None:
        self.browser, self.context, self.url = browser, context, url
        self.opened: list[Page | BrowserContext] = []
        self.faults: list[tuple] = []
        self.allowed = "(?!)"  # matches nothing

    def __call__(self, tab: str = "", own_window: bool = False, **options: object) -> Page:
        """own_window: for several readers at once, because a browser slows down hidden pages.

        options: of a new browser context, which has a window of its own too.
        """
        context = self.context
        if own_window or options:
            context = self.browser.new_context(**{"locale": "zh-CN", **options})
            context.set_default_timeout(1000 * TIMEOUT)
            self.opened.append(context)
        page = context.new_page()
        self.opened.append(page)
        self._watch(page)
        page.goto(self.url)
        expect(page.get_by_role("tab").first).to_be_visible()
        if tab:
            open_tab(page, tab)
        return page

    def close(self) -> None:
        for opened in reversed(self.opened):
            opened.close()

    def _watch(self, page: Page) -> None:
        def on_console(message):
            if message.type == "error":
                self.faults.append(("console", message.text))

        def on_dialog(dialog):
            self.faults.append(("dialog", dialog.message))
            dialog.dismiss()

        def on_response(response):
            if response.status >= 400:
                self.faults.append((response.status, response.url))

        def on_request(request):
            if not LOCAL_URL.match(request.url):
                self.faults.append(("request to another machine", request.url))

        page.on("console", on_console)
        page.on("pageerror", lambda error: self.faults.append(("script", str(error))))
        page.on("dialog", on_dialog)
        page.on("response", on_response)
        page.on("request", on_request)

    def unexpected_faults(self) -> list[tuple]:
        return [fault for fault in self.faults if not re.search(self.allowed, str(fault))]


@pytest.fixture(scope="module")
def context(browser: Browser) -> BrowserContext:
    """A Chinese reader's browser; its cache makes further pages open sooner."""
    context = browser.new_context(locale="zh-CN")
    context.set_default_timeout(1000 * TIMEOUT)
    return context


@pytest.fixture
def visit(browser: Browser, context: BrowserContext, page_server: Server) -> Iterator[Visits]:
    """visit(): the page as a new reader has it. No visit may end with an unexpected fault."""
    visits = Visits(browser, context, page_server.url)
    yield visits
    visits.close()
    assert visits.unexpected_faults() == []
