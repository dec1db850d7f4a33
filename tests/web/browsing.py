"""Actions of a reader on the page, and the models that the browser's tests use."""

from __future__ import annotations

import json
import re
from pathlib import Path

from playwright.sync_api import Locator, Page, expect

import prepare_sft
import train
from tests.web.serving import TIMEOUT

LONG = 20_000  # tokens, more than a test waits for
MARKUP = (
    "<script>alert(1)</script> **bold** <img src=x onerror=alert(1)> [a](javascript:alert(1)) $x^2$"
)
MARKUP_QUESTION = "谁在渡口？"

# Collects the states of the last element that matches a selector in window.states.
COLLECT_STATES = """selector => {
  window.states = new Set();
  const look = () => {
    const last = [...document.querySelectorAll(selector)].at(-1);
    if (last) states.add(last.value ?? last.textContent);
  };
  setInterval(look, 5);
  new MutationObserver(look).observe(
    document.body, { childList: true, subtree: true, characterData: true });
}"""

expect.set_options(timeout=1000 * TIMEOUT)


def train_on_markup(folder: Path, sft: list[str], pretrained: Path) -> Path:
    """A model that answers MARKUP, whatever it is asked."""
    pair = {"question": MARKUP_QUESTION, "answer": MARKUP}
    pairs = [{**pair, "split": split} for split in ("train", "val")]
    (folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    qa, out_dir = folder / "qa", folder / "out-markup"
    block = "--block_size=192"  # the answer is longer than the block of the other models
    arguments = [str(folder / "pairs.json"), f"--out={qa}", f"--tokenizer={pretrained}", block]
    assert prepare_sft.main(arguments) == 0
    command = [argument for argument in sft if not argument.startswith("--dataset=")]
    command += [f"--dataset={qa}", f"--out_dir={out_dir}", block]
    assert train.main([*command, "--max_iters=60", "--eval_interval=60", "--batch_size=4"]) == 0
    return out_dir


# ---------------------------------------------------------------- actions


def button(page: Page, name: str | re.Pattern) -> Locator:
    """The visible button of this name."""
    return page.get_by_role("button", name=name, exact=True).locator("visible=true")


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def ask(page: Page, question: str) -> None:
    page.locator("#question textarea").fill(question)
    page.locator("#question textarea").press("Enter")


def wait_until_answered(page: Page, answer: str) -> None:
    """Waits for the last answer, and until the page accepts the next question."""
    expect(answers(page).last).to_have_text(answer)
    expect(page.locator("#conversation .wrap:not(.hide)")).to_have_count(0)


def answers(page: Page) -> Locator:
    return page.locator("#conversation [data-testid=bot] .reply")


def status(page: Page) -> Locator:
    """The line under the text."""
    return page.locator(".prose.status-line:visible")


def choose_model(page: Page, label: str, folder: Path) -> None:
    page.get_by_label(label, exact=True).locator("visible=true").click()
    page.get_by_role("option", name=str(folder)).click()


def change_setting(page: Page, label: str, value: int) -> None:
    """A setting of the visible tab."""
    settings = page.locator("button.label-wrap:visible")
    if "open" not in settings.get_attribute("class"):
        settings.click()
    field = page.locator(f'input[type=number][aria-label*="{label}"]:visible')
    field.fill(str(value))
    field.press("Tab")


def write_long(page: Page) -> None:
    """Starts a greedy continuation that doesn't end during a test; waits until it grows."""
    change_setting(page, "温度", 0)
    change_setting(page, "长度", LONG)
    page.locator("#story textarea").fill("清晨，")
    button(page, "接着写").click()
    page.wait_for_function("document.querySelector('#story textarea').value.length > 10")


def story(page: Page) -> str:
    return page.locator("#story textarea").input_value()
