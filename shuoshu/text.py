"""Reading novels: files → sections of text, cut at chapter headings, never more than a few megabytes in memory."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shuoshu.commandline import UserError

BLOCK = 1 << 17  # bytes read at once; also about the longest section

# A line that is a chapter's heading: 第一回 …, 第12章, Chapter 12, CHAPTER XII. Whatever follows the number is set off from it.
HEADING = re.compile(
    r"^[ \t　]*("
    r"第[0-9０-９零〇一二三四五六七八九十百千两]{1,9}[回章节卷集](?=[\s:：]|$).{0,60}"
    r"|(?i:chapter)[ \t]+(?:\d{1,4}|[IVXLCivxlc]{1,8})(?=[\s.:]|$).{0,60}"
    r")$",
    re.MULTILINE,
)


@dataclass
class Section:
    """A run of text; one with a title begins a chapter, one without goes on with it."""

    title: str | None
    text: str


@dataclass
class Book:
    path: Path
    title: str
    characters: int = 0
    chapters: list[tuple[str, int]] = field(default_factory=list)  # (title, where it begins in characters)
    val_from: int = 0  # the character at which the validation text begins

    def survey(self) -> None:
        """Reads the book once, to learn its length and where its chapters begin."""
        for section in sections(self.path):
            if section.title is not None:
                self.chapters.append((section.title, self.characters))
            self.characters += len(section.text)
        if not self.characters:
            raise UserError(f"{self.path} is empty: remove it or give another file")

    def cut(self, val_fraction: float) -> None:
        """Puts the validation text at the chapter that comes nearest to leaving this share of the book.

        Where that would be over four times the share asked for (few chapters, or none), it begins at the next line.
        """
        target = round(self.characters * (1 - val_fraction))
        self.val_from = target
        starts = [start for _, start in self.chapters if start > 0]
        if val_fraction and starts:
            nearest = min(starts, key=lambda start: abs(start - target))
            if self.characters - nearest <= 4 * val_fraction * self.characters:
                self.val_from = nearest

    def splits(self) -> Iterator[tuple[str, Section]]:
        """The book's sections in order, each with the split it belongs to."""
        position, split = 0, "train"
        for section in sections(self.path):
            end = position + len(section.text)
            if split == "train" and end > self.val_from:
                at = self.val_from - position
                if at > 0:  # inside a section: at the next line, or right here in a text without lines
                    at = section.text.find("\n", at - 1) + 1 or at
                    yield "train", Section(section.title, section.text[:at])
                    section = Section(None, section.text[at:])
                split = "val"
            if section.text:
                yield split, section
            position = end


def find_books(inputs: Sequence[str]) -> list[Book]:
    """The .txt files that the user names, folders searched through, each once and in order."""
    found: dict[Path, Book] = {}
    for name in inputs:
        path = Path(name)
        try:
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() == ".txt" and p.is_file())
            if not files:
                raise UserError(f"the folder {path} holds no .txt file" if path.is_dir() else f"there is no file or folder {path}")
        except OSError as error:
            raise UserError(f"can't look into {path}: {error.strerror}") from None
        for file in files:
            found.setdefault(file.resolve(), Book(file, file.stem))
    return list(found.values())


def sections(path: Path) -> Iterator[Section]:
    """The text of a file, line ends made \\n, cut at its chapter headings and at lines where it grows long."""
    for block in _blocks(path):
        cuts = [match.start() for match in HEADING.finditer(block)]
        titles = [" ".join(match.group(1).split()) for match in HEADING.finditer(block)]
        if not cuts or cuts[0] > 0:
            cuts.insert(0, 0)
            titles.insert(0, None)
        for title, start, end in zip(titles, cuts, [*cuts[1:], len(block)], strict=True):
            yield Section(title, block[start:end])


def _blocks(path: Path) -> Iterator[str]:
    """Text in blocks of about BLOCK bytes, each ending where a line ends, the next one beginning with a line that isn't blank."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    held, read = "", 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(BLOCK):
                held += decoder.decode(chunk)
                read += len(chunk)
                cut = _last_line_start(held)
                if not cut and len(held) > 4 * BLOCK:
                    cut = len(held)  # one endless line
                if cut:
                    yield held[:cut]
                    held = held[cut:]
            held += decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: {error.reason} near byte {read:,}. Save it as UTF-8 (in an editor, or: iconv -f GB18030 -t UTF-8 OLD.txt > NEW.txt)"
        ) from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    if held:
        yield held


def _last_line_start(text: str) -> int:
    """Where the last line begins that is complete before it and not blank itself; 0 if there is none."""
    end = len(text)
    while (newline := text.rfind("\n", 0, end)) >= 0:
        if text[newline + 1 : end].strip():
            return newline + 1
        end = newline
    return 0
