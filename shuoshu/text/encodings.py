"""Bytes as they are found → text: the encoding by evidence, archives opened, what can't be decoded counted."""

from __future__ import annotations

import codecs
import gzip
import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shuoshu.core.errors import UserError
from shuoshu.core.files import format_bytes

SUFFIXES = (".txt", ".zip", ".gz")
MAX_FILE_BYTES = 4 << 30  # bytes that one file may unpack to
MAX_EXPANSION = 100  # times its own size that an archive over a MB may unpack to: novels give 2 to 5, bombs 1,000
SAMPLE_BYTES = 400_000  # bytes that the choice between encodings looks at
PART_CHARACTERS = 8_000_000  # characters of a text that are cleaned together
MAX_UNREADABLE_SHARE = (
    0.01  # share of characters above which a file is taken for no text of this encoding
)
COMMON_CHARACTERS = frozenset(
    "，。：“”！？、的一不了是人我在有他这中大来上个国道说子之也得曰那里出去將将與与為为見见這個說來國們们時时"
)
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def raw_texts(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """(title, open file) of each text in a file: itself, or the .txt files in a .zip; UserError with the reason if it can't be read."""
    with _reasons():
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                members = [
                    m
                    for m in archive.infolist()
                    if m.filename.lower().endswith(".txt")
                    and not m.is_dir()
                    and "__MACOSX/" not in m.filename
                ]
                members = [m for m in members if not stat.S_ISLNK(m.external_attr >> 16)]
                if not members:
                    raise UserError("the archive holds no .txt file")
                if sum(member.file_size for member in members) > most_of(path):
                    raise UserError(
                        f"it unpacks to more than {format_bytes(most_of(path))}, as no novels of its size do"
                    )
                for member in members:
                    with archive.open(member) as file:
                        yield Path(_zip_name(member)).stem, file
        elif path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                yield Path(path.stem).stem, file
        else:
            with path.open("rb") as file:
                yield path.stem, file


def most_of(path: Path) -> int:
    """Bytes that the texts of a file may come to."""
    is_packed = path.suffix.lower() in (".zip", ".gz")
    return (
        min(MAX_FILE_BYTES, max(1 << 20, MAX_EXPANSION * path.stat().st_size))
        if is_packed
        else MAX_FILE_BYTES
    )


@contextmanager
def _reasons() -> Iterator[None]:
    """What goes wrong while a file is opened or read, as a UserError with the reason."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        gzip.BadGzipFile,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        ValueError,
    ) as error:
        raise UserError(f"the archive is damaged ({error})") from None
    except (
        RuntimeError,
        NotImplementedError,
    ) as error:  # zipfile's words for encrypted members and unknown methods
        raise UserError(f"the archive can't be opened ({error})") from None
    except OSError as error:
        raise UserError(f"it can't be read ({error.strerror or error})") from None


def _zip_name(member: zipfile.ZipInfo) -> str:
    """A member's name; archives made on Chinese Windows write GBK without saying so."""
    if member.flag_bits & 0x800:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("gb18030")
    except UnicodeError:
        return member.filename


class TextDecoder:
    """The text of an open file, part by part. `broken` counts the undecodable places, each of which becomes a �."""

    def __init__(
        self, file: BinaryIO, forced: str | None = None, largest: int | None = None
    ) -> None:
        self.file, self.broken, self.characters, self.largest = (
            file,
            0,
            0,
            largest or MAX_FILE_BYTES,
        )
        self.head = self._read(SAMPLE_BYTES)
        self.encoding, self.skip = (
            _forced(forced, self.head)
            if forced
            else detect_encoding(self.head, is_whole=len(self.head) < SAMPLE_BYTES)
        )

    def _read(self, size: int) -> bytes:
        with _reasons():
            return self.file.read(size)

    def parts(self) -> Iterator[str]:
        """Parts of at most about PART characters, each ending where a line ends; UserError if it is no text."""
        decoder = codecs.getincrementaldecoder(self.encoding)("replace")
        held, chunk, done = "", self.head[self.skip :], len(self.head)
        own = (
            "�".encode(self.encoding, "ignore") if self.encoding.startswith("utf") else None
        )  # a � that the file itself has
        blank = True
        while chunk:
            text = decoder.decode(chunk)
            self.broken += max(0, text.count("�") - (chunk.count(own) if own else 0))
            held += text
            if len(held) > PART_CHARACTERS and (
                cut := last_line_start(held) or len(held) * (len(held) > 2 * PART_CHARACTERS)
            ):
                blank = False
                yield self._checked(held[:cut])
                held = held[cut:]
            chunk = self._read(1 << 20)
            done += len(chunk)
            if done > self.largest:
                raise UserError(
                    f"it unpacks to more than {format_bytes(self.largest)}, as no novel of its size does"
                )
        rest = decoder.decode(b"", final=True)
        self.broken += rest.count("�")
        held += rest
        if blank and not held.strip():
            raise UserError("it is empty")
        if held:
            yield self._checked(held)

    def _checked(self, part: str) -> str:
        self.characters += len(part)
        if self.broken > max(3, MAX_UNREADABLE_SHARE * self.characters):
            raise UserError(
                f"{self.broken:,} places can't be read as {self.encoding}: it is no text, or name its --encoding"
            )
        if (nuls := part.count("\0")) > 0.1 * len(part):
            raise UserError(
                f"{nuls:,} of {len(part):,} characters are NUL: it is no text, or name its --encoding"
            )
        return part


def _forced(name: str, head: bytes) -> tuple[str, int]:
    """(encoding, length of its byte order mark) for the name that the user gives; utf-16 and utf-32 look at the mark."""
    try:
        encoding = codecs.lookup(name).name.removesuffix("-sig")
        if encoding in ("utf-16", "utf-32"):
            encoding = next(
                (
                    known
                    for bom, known in BOMS
                    if head.startswith(bom) and known.startswith(encoding)
                ),
                f"{encoding}-le",
            )
        b"\x80 a".decode(encoding, "replace")
    except (LookupError, ValueError):
        raise UserError(
            f"there is no encoding called {name!r} (utf-8, gb18030, big5, utf-16 …)"
        ) from None
    return encoding, next(
        (len(bom) for bom, known in BOMS if head.startswith(bom) and known == encoding), 0
    )


def last_line_start(text: str) -> int:
    """Where the last line begins that is complete before it and not blank itself; 0 if there is none."""
    end = len(text)
    while (newline := text.rfind("\n", 0, end)) >= 0:
        if text[newline + 1 : end].strip():
            return newline + 1
        end = newline
    return 0


def detect_encoding(head: bytes, is_whole: bool) -> tuple[str, int]:
    """(encoding, length of its byte order mark): by the mark; strict UTF-8; UTF-16's line ends; else what gives the more everyday characters."""
    for bom, encoding in BOMS:
        if head.startswith(bom):
            return encoding, len(bom)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=is_whole)
        if b"\0" not in head:
            return "utf-8", 0
    except UnicodeDecodeError:
        pass
    newlines = head.count(b"\n")
    for encoding, line_end in (("utf-16-le", b"\n\0"), ("utf-16-be", b"\0\n")):
        aligned = sum(
            head[at : at + 2] == line_end
            for at in range(0, len(head) - 1, 2)
            if head[at] in (0, 10)
        )
        if aligned >= 2 and aligned > 0.3 * newlines:
            return encoding, 0
    return max(
        ("utf-8", "gb18030", "big5hkscs", "utf-16-le", "utf-16-be"),
        key=lambda name: _likelihood(head, name),
    ), 0


def _likelihood(sample: bytes, encoding: str) -> float:
    """Share of everyday characters (ASCII's are), less a penalty for what can't be decoded."""
    text = codecs.decode(sample, encoding, "replace")[:-2]
    return (
        sum(" " <= c < "\x7f" or c in COMMON_CHARACTERS for c in text) - 20 * text.count("�")
    ) / max(1, len(text))
