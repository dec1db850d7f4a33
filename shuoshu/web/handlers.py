"""The page: what its buttons and its API do. Ask the book, continue the story, compare two models, look inside."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

import gradio as gr

from shuoshu.core.errors import UserError
from shuoshu.core.run_log import read_settings
from shuoshu.evaluation.html import bilingual, escape_html
from shuoshu.generation.chat_model import ChatModel
from shuoshu.generation.sampling import SamplingParams
from shuoshu.web import token_view
from shuoshu.web.labels import SAID, WORDS, bilingual_message
from shuoshu.web.model_server import GenerationState, ModelServer, ReaderState
from shuoshu.web.validation import LOOKED, parse_history, parse_settings, parse_text, ranges

HERE = Path(__file__).parent
I18N = gr.I18n(
    **{
        code: {key: words[n] for key, words in WORDS.items()}
        for n, codes in enumerate((("zh", "zh-CN", "zh-TW"), ("en",)))
        for code in codes
    }
)
Message = dict[str, str]


@dataclass
class GeneratedText:
    """A text that a model wrote, and after what: enough to look inside it."""

    model: str
    asked: str = ""
    prompt: list[int] = field(default_factory=list)
    text: str = ""
    ids: list[int] = field(
        default_factory=list
    )  # none where it was stopped: it is cut into tokens anew then
    maker: tuple[str, int] = ("", 0)


@dataclass
class Story:
    """A text in the box that grew by pieces."""

    earlier: list[str] = field(default_factory=list)  # what undo brings back
    last: GeneratedText | None = None
    versions: list[GeneratedText] = field(default_factory=list)


def errors_to_gradio(work: Callable) -> Callable:
    """A reader's mistake is a message on the page and in the API; anything else stays in the server's log."""

    @functools.wraps(work)
    def once(*args: object) -> object:
        try:
            return work(*args)
        except UserError as error:
            raise gr.Error(
                escape(str(error)), print_exception=False, title="说书 · Shuoshu"
            ) from None

    @functools.wraps(work)
    def bit_by_bit(*args: object) -> Iterator[object]:
        try:
            yield from work(*args)
        except UserError as error:
            raise gr.Error(
                escape(str(error)), print_exception=False, title="说书 · Shuoshu"
            ) from None

    return bit_by_bit if inspect.isgeneratorfunction(work) else once


def status_html(key: str) -> str:
    """What is said under a text, in the reader's language."""
    return bilingual(*SAID[key]) if SAID[key][0] else ""


class Page:
    def __init__(self, desk: ModelServer) -> None:
        self.desk = desk
        self.turns = {name: desk.turns(name) for name in desk.folders}
        self.names = list(desk.folders)
        self.answering = [name for name in self.names if self.turns[name]]
        self.knobs = ranges(desk.settings.max_new_tokens)

    # ------------------------------------------------------------ what all of it needs

    def model_of(self, name: object, answers: bool = False) -> str:
        """The model that is asked for; by default the first that can do it."""
        there = self.answering if answers else self.names
        if name is None and there:
            return there[0]
        if name not in self.names:
            raise UserError(bilingual_message("no_model", ", ".join(self.names)))
        if name not in there:
            raise UserError(bilingual_message("no_answers", ", ".join(self.answering) or "—"))
        return name

    def write(
        self,
        name: str,
        asked: str,
        before: Sequence[Message],
        answers: bool,
        values: Sequence[object],
        copies: int = 1,
        reader: ReaderState | None = None,
    ) -> Iterator[list[GeneratedText] | str]:
        """What a model makes of a question or a beginning, as it grows; at last why it ended, if no reader stopped it. values: the knobs' and the seed."""
        wanted = parse_settings(
            dict(zip((*self.knobs, "seed"), values, strict=True)), self.desk.settings.max_new_tokens
        )
        if answers and not asked.strip():
            raise UserError(bilingual_message("empty"))

        def ask(voice: ChatModel) -> tuple[list[int], SamplingParams]:
            try:
                ids = (
                    voice.question_ids(asked, before) if answers else voice.tokenizer.encode(asked)
                )
            except UserError:
                raise UserError(bilingual_message("too_many_tokens", voice.block)) from None
            return ids, voice.sampling_params(wanted, answers)

        draft = GenerationState([], [], [])
        for draft in self.desk.write(name, ask, [wanted.seed + n for n in range(copies)], reader):
            ids = draft.ids or [[]] * copies
            yield [
                GeneratedText(name, asked, draft.prompt, *grown, draft.maker)
                for grown in zip(draft.texts, ids, strict=True)
            ]
        if draft.reason and not (reader and reader.stopped > reader.asked):
            yield draft.reason

    def look(self, written: GeneratedText | None, known: str = "") -> str:
        """The text that was written with all that can be told about it, as HTML."""
        if written is None or not written.text:
            raise UserError(bilingual_message("nothing"))

        def pieces(voice: ChatModel) -> tuple[list[token_view.Piece], bool]:
            is_same = written.maker in ((voice.tokenizer.hash, voice.step), ("", 0))
            if written.maker[0] in (voice.tokenizer.hash, ""):
                return token_view.token_probabilities(
                    voice, written.prompt, written.ids or voice.tokenizer.encode(written.text)
                ), is_same
            return token_view.token_probabilities(
                voice, voice.tokenizer.encode(written.asked), voice.tokenizer.encode(written.text)
            ), is_same

        found, is_same = self.desk.do(written.model, pieces)
        head = "" if is_same else f'<p class="soft">{status_html("trained")}</p>'
        return (
            head
            + token_view.pieces_html(found, escape_html(known))
            + token_view.copied_html(written.text, self.desk.sources(written.model))
        )

    # ------------------------------------------------------------ waiting, stopping

    def wish(self, request: gr.Request) -> None:
        """Before a text is waited for."""
        self.desk.asked(request.session_hash)

    def end(self, request: gr.Request) -> None:
        self.stop(request)

    def stop(self, request: gr.Request) -> bool:
        """Ends the reader's text; whether it had not begun. What was sent of it is on the page before this returns."""
        only_waited = self.desk.stop(request.session_hash)
        time.sleep(0.15)
        return only_waited

    # ------------------------------------------------------------ ask

    def ask(
        self,
        request: gr.Request,
        question: object,
        talk: list[GeneratedText],
        name: object,
        *values: object,
    ) -> Iterator[tuple]:
        asked, name = parse_text(question), self.model_of(name, answers=True)
        reader = self.desk.reader(request.session_hash)
        if reader.stopped > reader.asked:
            return
        grown = [*talk, GeneratedText(name, asked)]
        yield "", to_chat_messages(grown), grown, "", ""
        try:
            for now in self.write(name, asked, messages(talk), True, values, reader=reader):
                if isinstance(now, str):
                    alone = now == "end" and self.turns[name] == 1 and len(grown) == 2
                    yield (
                        gr.skip(),
                        gr.skip(),
                        gr.skip(),
                        status_html("alone" if alone else now),
                        gr.skip(),
                    )
                else:
                    grown = [*talk, *now]
                    yield gr.skip(), to_chat_messages(grown), grown, "", gr.skip()
        except UserError:
            yield asked, to_chat_messages(talk), talk, "", ""
            raise

    def example(self, event: gr.SelectData, request: gr.Request) -> str:
        self.wish(request)
        return event.value["text"]

    def ask_example(
        self,
        request: gr.Request,
        question: object,
        talk: list[GeneratedText],
        name: object,
        *values: object,
    ) -> Iterator[tuple]:
        for _, *others in self.ask(request, question, talk, name, *values):
            yield gr.skip(), *others

    def retry(
        self,
        request: gr.Request,
        question: object,
        talk: list[GeneratedText],
        name: object,
        temperature: object,
        *values: object,
    ) -> Iterator[tuple]:
        if not talk:
            raise UserError(bilingual_message("empty"))
        *values, _ = values  # another seed than before
        for _, chat, grown, noted, looked in self.ask(
            request, talk[-1].asked, talk[:-1], name, temperature or 0.8, *values, None
        ):
            yield (
                gr.skip(),
                chat,
                grown,
                status_html("warmer")
                if not temperature and noted in (status_html("end"), status_html("alone"))
                else noted,
                looked,
            )

    def undo(self, request: gr.Request, question: str, talk: list[GeneratedText]) -> tuple:
        if self.stop(request) or not talk:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return talk[-1].asked, to_chat_messages(talk[:-1]), talk[:-1], "", ""

    def clear(self, request: gr.Request) -> tuple:
        self.stop(request)
        return "", [], [], "", ""

    def look_at_answer(self, talk: list[GeneratedText], event: gr.SelectData) -> str:
        at = (event.index[0] if isinstance(event.index, (list, tuple)) else event.index) // 2
        return self.look_at_turn(talk, at) if at < len(talk) else ""

    def look_at_turn(self, talk: list[GeneratedText], at: int = -1) -> str:
        head = f'<p class="soft">{escape_html(talk[at].asked)}</p>' if talk else ""
        return head + self.look(talk[at] if talk else None)

    # ------------------------------------------------------------ continue

    def go_on(
        self, request: gr.Request, box: object, story: Story, name: object, *values: object
    ) -> Iterator[tuple]:
        begun, name = parse_text(box), self.model_of(name)
        kept = [*story.earlier, begun][-50:]
        for now in self.write(
            name, begun, (), False, values, reader=self.desk.reader(request.session_hash)
        ):
            if isinstance(now, str):
                yield gr.skip(), gr.skip(), gr.skip(), status_html(now), ""
            else:
                yield begun + now[0].text, Story(kept, now[0]), gr.update(visible=False), "", ""

    def three(
        self, request: gr.Request, box: object, story: Story, name: object, *values: object
    ) -> Iterator[tuple]:
        begun, name = parse_text(box), self.model_of(name)
        for now in self.write(
            name, begun, (), False, values, 3, self.desk.reader(request.session_hash)
        ):
            if isinstance(now, str):
                yield *[gr.skip()] * 5, status_html(now)
            else:
                yield (
                    *(written.text for written in now),
                    replace(story, versions=now),
                    gr.update(visible=True),
                    "",
                )

    def taking(self, number: int) -> Callable:
        """What takes this one of three versions."""

        def take(request: gr.Request, box: str, story: Story) -> tuple:
            self.stop(request)
            if not story.versions:
                raise UserError(bilingual_message("nothing"))
            written = story.versions[number]
            return (
                written.asked + written.text,
                Story([*story.earlier, box][-50:], written),
                gr.update(visible=False),
                "",
                "",
            )

        return take

    def take_back(self, request: gr.Request, box: str, story: Story) -> tuple:
        if self.stop(request) or not story.earlier:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return story.earlier[-1], Story(story.earlier[:-1]), gr.update(visible=False), "", ""

    def look_at_story(self, box: object, story: Story, name: object) -> str:
        whole, last = parse_text(box), story.last
        if last and whole == last.asked + last.text:
            return self.look(last, known=last.asked[-200:])
        name, known = self.model_of(name), whole[:-LOOKED]  # edited since, or all the reader's own
        prompt = self.desk.do(name, lambda voice: voice.tokenizer.encode(known))
        return self.look(
            GeneratedText(name, prompt=prompt, text=whole[-LOOKED:]), known=known[-200:]
        )

    # ------------------------------------------------------------ compare

    def pair(self) -> tuple[str, str]:
        """Before and after: a fine-tuned model behind the one that it began with, where both are here."""
        homes = {folder.resolve(): name for name, folder in self.desk.folders.items()}
        for name in self.answering:
            before = read_settings(self.desk.folders[name]).get("settings", {}).get("init_from")
            if isinstance(before, str) and (found := homes.get(Path(before).resolve())):
                return found, name
        return self.names[0], self.names[1]

    def both_write(
        self, request: gr.Request, prompt: object, one: object, other: object, *values: object
    ) -> Iterator[tuple]:
        asked, texts, found, reason = parse_text(prompt), ["", ""], [None, None], ""
        reader = self.desk.reader(request.session_hash)
        for side, name in enumerate((self.model_of(one), self.model_of(other))):
            for now in self.write(
                name,
                asked,
                (),
                bool(self.turns[name]) and bool(asked.strip()),
                values,
                reader=reader,
            ):
                if isinstance(now, str):
                    reason = now if now in ("length", "time") else reason
                else:
                    texts[side], found[side] = now[0].text, now[0]
                yield *texts, list(found), status_html(reason) if reason and side else "", "", ""

    def look_at_both(self, found: list[GeneratedText | None]) -> tuple[str, str]:
        if not any(found):
            raise UserError(bilingual_message("nothing"))
        return tuple(
            f"<h3>{escape_html(written.model)}</h3>{self.look(written)}"
            if written and written.text
            else ""
            for written in found
        )

    # ------------------------------------------------------------ the API

    def api_models(self) -> list[dict]:
        """The models, and how many questions in a row each learned to answer (0: it continues text)."""
        return [{"model": name, "turns": self.turns[name]} for name in self.names]

    def api_ask(
        self,
        question: str,
        history: list | None = None,
        model: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        max_new_tokens: int | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Answers a question, streaming: each state is the whole answer so far. history: [[question, answer], …]. None: the default."""
        asked, before, name = (
            parse_text(question),
            parse_history(history),
            self.model_of(model, answers=True),
        )
        yield from self._api(
            name,
            asked,
            before,
            True,
            (temperature, top_p, top_k, max_new_tokens, repetition_penalty, seed),
        )

    def api_continue(
        self,
        text: str,
        model: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        max_new_tokens: int | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continues a text, streaming: each state is all that was written so far, without the beginning."""
        yield from self._api(
            self.model_of(model),
            parse_text(text),
            (),
            False,
            (temperature, top_p, top_k, max_new_tokens, repetition_penalty, seed),
        )

    def _api(
        self, name: str, asked: str, before: Sequence[Message], answers: bool, values: tuple
    ) -> Iterator[str]:
        for now in self.write(name, asked, before, answers, values):
            if not isinstance(now, str):
                yield now[0].text

    def api_inside(self, text: str, start: str = "", model: str | None = None) -> list[dict]:
        """The pieces of a text as the model held them after `start`: text, probability, likeliest alternatives (None: the end)."""
        written, begun, name = parse_text(text, LOOKED), parse_text(start), self.model_of(model)
        pieces = self.desk.do(
            name,
            lambda voice: token_view.token_probabilities(
                voice, voice.tokenizer.encode(begun), voice.tokenizer.encode(written)
            ),
        )
        return [vars(piece) for piece in pieces]


def messages(talk: list[GeneratedText]) -> list[Message]:
    return [
        {"role": role, "content": part}
        for turn in talk
        for role, part in (("user", turn.asked), ("assistant", turn.text))
    ]


def to_chat_messages(talk: list[GeneratedText]) -> list[Message]:
    """The conversation for Gradio's chat, which takes what it is given for HTML."""
    return [
        {**message, "content": escape(message["content"], quote=False)}
        for message in messages(talk)
    ]
