"""HTML of an answer: how it was found, how sure the model is, and where the book speaks of it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from shuoshu.answering.answerer import Answer
from shuoshu.answering.passages import Passage
from shuoshu.answering.terminal_chat import MAX_SHOWN_PROBABILITY
from shuoshu.evaluation.html import escape_html
from shuoshu.web.labels import text_html
from shuoshu.web.service import GeneratedText, Message

GREEN_FROM, YELLOW_FROM = (
    0.9,
    0.6,
)  # from these probabilities on, the mark is green or yellow, else red


def chat_messages(turns: Sequence[GeneratedText]) -> list[Message]:
    """The conversation for Gradio's Chatbot, which takes messages as HTML."""
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in (
            ("user", escape(turn.prompt, quote=False)),
            ("assistant", reply_html(turn)),
        )
    ]


def reply_html(generated: GeneratedText) -> str:
    """An answer for the conversation: its text, and below it what is known about it."""
    answer = generated.answer
    parts = [f'<div class="reply">{escape(generated.text, quote=False)}</div>']
    if answer and answer.probability is not None:
        parts.append(f'<div class="how">{sureness_html(answer)}</div>')
    if answer and answer.way == "decline" and answer.nearest:
        items = "".join(f"<li>{escape_html(question)}</li>" for question in answer.nearest)
        parts.append(f'<div class="how">{text_html("nearest_questions")}<ul>{items}</ul></div>')
    if generated.quote:
        quote = f"<q>{escape_html(generated.quote)}</q>"
        parts.append(f'<div class="how">{text_html("nearest_sentence")} {quote}</div>')
    if generated.sources:
        parts.append(sources_html(generated.sources))
    return "".join(parts)


def sureness_html(answer: Answer) -> str:
    """How an answer was found, and how probably it is right."""
    probability = min(answer.probability, MAX_SHOWN_PROBABILITY)
    level = (
        "sure"
        if probability >= GREEN_FROM
        else "unsure"
        if probability >= YELLOW_FROM
        else "doubtful"
    )
    texts = {"recall": "recalled", "write": "written", "decline": "declined"}
    return f'<span class="sureness {level}">{probability:.0%}</span> {text_html(texts[answer.way])}'


def sources_html(sources: Sequence[Passage]) -> str:
    """A folded list of passages with book and chapter."""
    items = "".join(
        f'<li><span class="place">{escape_html(passage.source or "")}</span>'
        f"<p>{escape_html(passage.text)}</p></li>"
        for passage in sources
    )
    return (
        f'<details class="how"><summary>{text_html("passages", len(sources))}</summary>'
        f"<ol>{items}</ol></details>"
    )
