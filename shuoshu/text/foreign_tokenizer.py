"""Another model's tokenizer: its own tokenizer.json encodes, its own chat template renders."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from shuoshu.core.errors import UserError
from shuoshu.text.chat_template import ChatTemplate
from shuoshu.text.tokenizer import PROBE, RenderedRow, Tokenizer, byte_letters
from shuoshu.text.tokenizer_json import (
    components,
    plain_tokenizer,
    prepended_token,
    refuse_unsupported,
)

MAX_IDS = 1 << 20  # the largest vocabularies have about 260,000
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>")  # between documents in pretraining
Part = str | int  # of a template's literal text: plain text or the id of an added token


@dataclass
class TokenizerFolder:
    """What a model's folder says about its tokenizer."""

    where: str  # the folder, for messages
    document: dict  # the content of tokenizer.json
    files: dict[str, str]  # file name → text, to be written back unchanged
    eos: list[int] = field(default_factory=list)  # of generation_config.json and config.json
    names: dict[str, str] = field(default_factory=dict)  # bos_token, eos_token … of the config
    template: str | None = None


@dataclass
class RowPlan:
    """How a conversation with these roles becomes a row."""

    literals: list[list[Part]]  # before, between and after the messages' contents
    trained: list[int]  # the messages that are trained


class ForeignTokenizer(Tokenizer):
    """Encodes as `tokenizers` does, but text never becomes an added token: only templates do."""

    def __init__(self, folder: TokenizerFolder) -> None:
        self.folder, self.kind = folder, "foreign"
        refuse_unsupported(folder.document)
        added = folder.document.get("added_tokens") or []
        self.added = {token["content"]: token["id"] for token in added}
        self.specials = {token["content"]: token["id"] for token in added if token["special"]}
        # Tokens that swallow white space around them, or count as whole words only.
        self._greedy = {
            token["content"]
            for token in added
            if token.get("lstrip") or token.get("rstrip") or token.get("single_word")
        }
        self.vocab: dict[str, int] = folder.document["model"]["vocab"]
        ids = [*self.vocab.values(), *self.added.values()]
        if not all(type(i) is int and 0 <= i < MAX_IDS for i in ids):
            raise ValueError(f"its ids are not all whole numbers below {MAX_IDS:,}")
        self.n_vocab = max(ids) + 1
        self._library = plain_tokenizer(folder.document, self.added)
        self.bos_token_id = prepended_token(folder.document.get("post_processor"), self.added)
        self._choose_ends()
        self._added_names = re.compile(  # of two that begin at one place, the longer one
            "|".join(map(re.escape, sorted(self.added, key=len, reverse=True))) or "(?!)"
        )
        self._plans: dict[tuple[str, ...], list[RowPlan]] = {}
        self.template = None
        if folder.template is not None:
            self.template = ChatTemplate(folder.template, folder.names, folder.where)
        normalizer = self._library.normalizer
        probe = normalizer.normalize_str(PROBE) if normalizer else PROBE
        if self.decode(self.encode(PROBE)) != probe:
            raise ValueError("it loses text")

    def _choose_ends(self) -> None:
        """Sets the ids that end texts, as far as they don't depend on the template."""
        eos_name = self.folder.names.get("eos_token", "")
        named = self.added.get(eos_name, self.vocab.get(eos_name))
        eos = [*([] if named is None else [named]), *self.folder.eos]
        if wrong := [i for i in eos if i >= self.n_vocab]:
            raise ValueError(f"eos_token_id {wrong[0]:,} is not in its vocabulary")
        ends = [self.added[name] for name in DOCUMENT_ENDS if name in self.added]
        if not (ends or eos):
            raise ValueError("no file in the folder names its eos_token")
        self.eos = eos or ends[:1]
        self.eos_token_id = self.eos[0]
        self.end = (ends or eos)[0]
        self.start = self.end if self.bos_token_id is None else self.bos_token_id
        self.pad = self.added.get(self.folder.names.get("pad_token", ""), self.end)

    def add_ends(self, ids: Iterable[int]) -> None:
        """Ids that end texts, too: those of a base, which the folder of its adapter lacks."""
        self.eos += ids

    # ------------------------------------------------------------ text

    def encode(self, text: str) -> list[int]:
        """Ids of a text. An added token's name in it, such as `<|im_end|>`, is plain text."""
        try:
            return self._encode(text)
        except TypeError:  # half of a surrogate pair, from JSON
            return self._encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))

    def _encode(self, text: str) -> list[int]:
        try:
            # Twice as fast as encode(), because it doesn't track characters.
            return self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except BaseException as error:  # a panic of the library is no Exception
            if type(error).__name__ != "PanicException":
                raise
            raise UserError(
                f"the tokenizer.json in {self.folder.where} can't encode a text: {error!s:.200}"
            ) from None

    def encode_to_numpy(self, text: str) -> np.ndarray:
        """The same ids as a uint32 array. Releases the GIL, so that threads encode in parallel."""
        return np.array(self.encode(text), dtype=np.uint32)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each id; empty for special tokens and for numbers without a token."""
        table = [b""] * self.n_vocab
        latin = {ord(letter): byte for byte, letter in enumerate(byte_letters())}
        for name, number in self.vocab.items():
            with suppress(UnicodeEncodeError):  # a name with other letters has no bytes
                table[number] = name.translate(latin).encode("latin-1")
        for name, number in self.added.items():
            table[number] = b"" if name in self.specials else name.encode()
        return table

    # ------------------------------------------------------------ conversations

    @property
    def has_template(self) -> bool:
        return self.template is not None

    @cached_property
    def answer_end(self) -> int:
        """The token that the template writes after an answer. UserError if it can't be found."""
        return self._answer_tail[1]

    @cached_property
    def ends(self) -> frozenset[int]:
        """All tokens that end a text or an answer."""
        try:
            return frozenset([*self.eos, self.end, self.answer_end])
        except UserError:  # the template is unusable; the model can still continue text
            return frozenset([*self.eos, self.end])

    @property
    def eos_token_ids(self) -> list[int]:
        """All ends, for generation_config.json; the tokenizer's own eos_token comes first."""
        return list(dict.fromkeys([*self.eos, *sorted(self.ends)]))

    def encode_answer(self, text: str) -> list[int]:
        """The ids that are trained for an answer: the text, and what ends it."""
        tail, end = self._answer_tail
        return [*self.encode(text.strip() + tail), end]

    def render(self, messages: Sequence[Mapping]) -> RenderedRow:
        """A conversation as (ids, mask), or one that asks for an answer, as in Tokenizer.

        Answers whose context differs when they are asked for are not trained: see render_rows.
        """
        *before, last = messages
        if last["content"] is not None:
            return self.render_rows(messages)[-1]
        roles = [message["role"] for message in before]
        literals = self.require_template().literals(roles, asks=True)
        ids, _ = self._encode_row(RowPlan([self._parse(text) for text in literals], []), before)
        return ids, [0] * len(ids)

    def render_rows(self, messages: Sequence[Mapping]) -> list[RenderedRow]:
        """Rows that train each answer of a conversation once, exactly where it will be asked for.

        A template may write an earlier answer in another way than the last one: Qwen3's writes an
        empty thought before the last one only. Such an answer gets a row that ends with it.
        """
        roles = tuple(message["role"] for message in messages)
        if roles not in self._plans:
            self._plans[roles] = self._plan_rows(roles)
        rows = []
        for plan in self._plans[roles]:
            ids, spans = self._encode_row(plan, messages)
            mask = [0] * len(ids)
            for start, end in spans:
                mask[start:end] = [1] * (end - start)
            last_end = spans[-1][1]
            rows.append((ids[:last_end], mask[:last_end]))
        return rows

    def _plan_rows(self, roles: tuple[str, ...]) -> list[RowPlan]:
        template = self.require_template()
        whole = template.literals(roles, asks=False)
        trained, plans = [], []
        for n, role in enumerate(roles):
            if role != "assistant":
                continue
            asked = template.literals(roles[:n], asks=True)
            if asked == whole[: n + 1]:
                trained.append(n)
                continue
            own = template.literals(roles[: n + 1], asks=False)
            if asked != own[: n + 1]:
                raise UserError(
                    f"the chat template in {self.folder.where} can't be used for training: before"
                    f" an answer it writes {own[n][-60:]!r}, but when it asks for one,"
                    f" {asked[n][-60:]!r}"
                )
            plans.append(RowPlan([self._parse(text) for text in own], [n]))
        if trained:
            plans.append(RowPlan([self._parse(text) for text in whole], trained))
        for plan in plans:
            for n in plan.trained:
                self._split_tail(plan.literals[n + 1])
        return plans

    @cached_property
    def _answer_tail(self) -> tuple[str, int]:
        """What the template writes after an answer: text, and the token that ends the answer."""
        plan = self._plan_rows(("user", "assistant"))[-1]
        return self._split_tail(plan.literals[-1])

    def _split_tail(self, literal: list[Part]) -> tuple[str, int]:
        """The text before the first added token, and that token."""
        for n, part in enumerate(literal):
            if isinstance(part, int):
                return "".join(literal[:n]), part
        raise UserError(
            f"the chat template in {self.folder.where} can't be used for training: it writes no"
            f" special token after an answer, but {''.join(literal)!r}"
        )

    def require_template(self) -> ChatTemplate:
        """The chat template; UserError if there is none."""
        if self.template is None:
            raise UserError(
                f"{self.folder.where} has no chat template, so it can't be asked or fine-tuned on"
                " questions: copy chat_template.jinja or tokenizer_config.json from the model's"
                " chat version (-Instruct, -Chat), or use it with text"
            )
        return self.template

    def _parse(self, literal: str) -> list[Part]:
        """The literal text in parts: plain text and added tokens, found from left to right."""
        parts: list[Part] = []
        done = 0
        for match in self._added_names.finditer(literal):
            if match[0] in self._greedy:
                raise UserError(
                    f"the chat template in {self.folder.where} writes {match[0]}, but that token's"
                    " settings lstrip, rstrip and single_word are not supported"
                )
            parts += [literal[done : match.start()], self.added[match[0]]]
            done = match.end()
        return [part for part in [*parts, literal[done:]] if part != ""]

    def _encode_row(
        self, plan: RowPlan, messages: Sequence[Mapping]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a whole conversation, and (start, end) of each trained answer in them.

        The text between two added tokens is encoded in one piece, as transformers does. But an
        answer begins a piece of its own, because when it is asked for, the prompt ends there.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        pending, start = "", None  # text that is not encoded yet; begin of an unfinished answer
        for n, literal in enumerate(plan.literals):
            for part in literal:
                if isinstance(part, str):
                    pending += part
                    continue
                ids += [*self.encode(pending), part] if pending else [part]
                pending = ""
                if start is not None:
                    spans.append((start, len(ids)))
                    start = None
            if n == len(messages):
                break
            if messages[n]["role"] == "assistant":
                ids += self.encode(pending) if pending else []
                pending = ""
                start = len(ids) if n in plan.trained else None
            pending += messages[n]["content"].strip()
        return ids + (self.encode(pending) if pending else []), spans

    # ------------------------------------------------------------ files

    @cached_property
    def hash(self) -> str:
        """Fingerprint: tokenizers with the same hash give the same ids for everything.

        It doesn't depend on how the files are written: other tools save them in other forms.
        """
        document, model = self.folder.document, self.folder.document["model"]
        template = self.folder.template or ""
        content = [
            [document.get("normalizer"), model.get("ignore_merges")],
            [  # trim_offsets changes no ids
                {key: value for key, value in part.items() if key != "trim_offsets"}
                for part in components(document["pre_tokenizer"], "pretokenizers")
            ],
            sorted((number, name) for name, number in self.vocab.items()),
            [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]],
            sorted((number, name, name in self.specials) for name, number in self.added.items()),
            [template, {key: name for key, name in self.folder.names.items() if key in template}],
            [self.start, self.end],
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The folder's own tokenizer.json."""
        return self.folder.files["tokenizer.json"]

    def files(self, block_size: int, system: str = "") -> dict[str, str]:
        """The folder's own tokenizer files, unchanged."""
        return dict(self.folder.files)

    def data_files(self) -> dict[str, str]:
        """The tokenizer files of a data folder; they load as this tokenizer without a model."""
        generation = json.dumps({"eos_token_id": self.eos_token_ids}, indent=1)
        return {**self.folder.files, "generation_config.json": generation}
