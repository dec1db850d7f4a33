"""Bytes to text: opens archives, detects the encoding, counts what can't be decoded."""

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

TEXT_SUFFIXES = (".txt", ".zip", ".gz")
MAX_FILE_BYTES = 4 << 30  # unpacked size of one file
MAX_EXPANSION = 100  # unpacked size / file size; novels have 2 to 5, zip bombs about 1,000
MIN_UNPACKED_LIMIT = 1 << 20  # bytes that every archive may unpack to, however small it is
SAMPLE_BYTES = 400_000  # read to detect the encoding
READ_BYTES = 1 << 20  # read at once
PART_CHARACTERS = 8_000_000  # cleaned at once; limits memory
# A text with more undecodable places than this has another encoding or is not a text.
MAX_UNREADABLE_PLACES, MAX_UNREADABLE_SHARE = 3, 0.01  # the larger one counts
MAX_NUL_SHARE = 0.1  # of the characters; more is a binary file
UNREADABLE_PENALTY = 20  # everyday characters that one undecodable place outweighs
UTF16_MIN_LINE_ENDS, UTF16_MIN_SHARE = 2, 0.3  # line ends that look like UTF-16's
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
ZIP_NAME_IS_UTF8 = 0x800  # general-purpose flag of a zip member


# ---------------------------------------------------------------- files and archives


def raw_texts(path: Path) -> Iterator[tuple[str, BinaryIO]]:
    """Yields (title, open file): the file itself, or each .txt file in a .zip.

    Raises UserError with the reason if the file can't be read.
    """
    with _read_errors_to_user_errors():
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                for member in _text_members(archive, max_unpacked_bytes(path)):
                    with archive.open(member) as file:
                        yield Path(_zip_name(member)).stem, file
        elif path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                yield Path(path.stem).stem, file
        else:
            with path.open("rb") as file:
                yield path.stem, file


def _text_members(archive: zipfile.ZipFile, limit: int) -> list[zipfile.ZipInfo]:
    """The .txt files of an archive; no folders, links, or macOS's resource files."""
    members = [
        member
        for member in archive.infolist()
        if member.filename.lower().endswith(".txt")
        and not member.is_dir()
        and "__MACOSX/" not in member.filename
        and not stat.S_ISLNK(member.external_attr >> 16)
    ]
    if not members:
        raise UserError("the archive holds no .txt file")
    if sum(member.file_size for member in members) > limit:
        raise UserError(_too_large(limit))
    return members


def max_unpacked_bytes(path: Path) -> int:
    """Upper limit for the unpacked size of a file."""
    if path.suffix.lower() not in (".zip", ".gz"):
        return MAX_FILE_BYTES
    return min(MAX_FILE_BYTES, max(MIN_UNPACKED_LIMIT, MAX_EXPANSION * path.stat().st_size))


def _too_large(limit: int) -> str:
    return f"it unpacks to more than {format_bytes(limit)}, too much for a novel of its file size"


@contextmanager
def _read_errors_to_user_errors() -> Iterator[None]:
    """Turns errors of opening and reading a file into UserError with the reason."""
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
    except (RuntimeError, NotImplementedError) as error:  # zipfile: encrypted, unknown compression
        raise UserError(f"the archive can't be opened ({error})") from None
    except OSError as error:
        raise UserError(f"it can't be read ({error.strerror or error})") from None


def _zip_name(member: zipfile.ZipInfo) -> str:
    """A member's name. Archives from Chinese Windows hold GBK names without declaring it."""
    if member.flag_bits & ZIP_NAME_IS_UTF8:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("gb18030")
    except UnicodeError:
        return member.filename


# ---------------------------------------------------------------- decoding


class TextDecoder:
    """Decodes an open file part by part.

    `broken` counts the undecodable places; each becomes a �.
    """

    def __init__(
        self, file: BinaryIO, forced: str | None = None, max_bytes: int | None = None
    ) -> None:
        self.file, self.max_bytes = file, max_bytes or MAX_FILE_BYTES
        self.broken = self.characters = 0
        self.head = self._read(SAMPLE_BYTES)
        if forced:
            self.encoding, self.bom_bytes = _forced_encoding(forced, self.head)
        else:
            is_whole = len(self.head) < SAMPLE_BYTES
            self.encoding, self.bom_bytes = detect_encoding(self.head, is_whole)

    def _read(self, size: int) -> bytes:
        with _read_errors_to_user_errors():
            return self.file.read(size)

    def parts(self) -> Iterator[str]:
        """Yields parts of about PART_CHARACTERS, cut at line ends.

        Raises UserError if the file is empty, too large, or not text.
        """
        decoder = codecs.getincrementaldecoder(self.encoding)("replace")
        buffer, chunk, n_bytes = "", self.head[self.bom_bytes :], len(self.head)
        # A � that is stored in the file itself is not an undecodable place.
        stored = "�".encode(self.encoding, "ignore") if self.encoding.startswith("utf") else None
        is_blank = True
        while chunk:
            text = decoder.decode(chunk)
            self.broken += max(0, text.count("�") - (chunk.count(stored) if stored else 0))
            buffer += text
            if cut := _part_end(buffer):
                is_blank = False
                yield self._checked(buffer[:cut])
                buffer = buffer[cut:]
            chunk = self._read(READ_BYTES)
            n_bytes += len(chunk)
            if n_bytes > self.max_bytes:
                raise UserError(_too_large(self.max_bytes))
        rest = decoder.decode(b"", final=True)
        self.broken += rest.count("�")
        buffer += rest
        if is_blank and not buffer.strip():
            raise UserError("it is empty")
        if buffer:
            yield self._checked(buffer)

    def _checked(self, part: str) -> str:
        """The part; UserError if too much of the text so far is unreadable."""
        self.characters += len(part)
        if self.broken > max(MAX_UNREADABLE_PLACES, MAX_UNREADABLE_SHARE * self.characters):
            raise UserError(
                f"{self.broken:,} places can't be decoded as {self.encoding}: "
                "it is not a text file, or its --encoding must be set"
            )
        if (nuls := part.count("\0")) > MAX_NUL_SHARE * len(part):
            raise UserError(
                f"{nuls:,} of {len(part):,} characters are NUL: "
                "it is not a text file, or its --encoding must be set"
            )
        return part


def _part_end(buffer: str) -> int:
    """Where to cut the buffer; 0 to read more first. A line longer than two parts is cut too."""
    if len(buffer) <= PART_CHARACTERS:
        return 0
    return last_line_start(buffer) or (len(buffer) if len(buffer) > 2 * PART_CHARACTERS else 0)


def last_line_start(text: str) -> int:
    """Index just after the last newline that is followed by non-blank text; 0 if none."""
    end = len(text)
    while (newline := text.rfind("\n", 0, end)) >= 0:
        if text[newline + 1 : end].strip():
            return newline + 1
        end = newline
    return 0


# ---------------------------------------------------------------- choosing the encoding


def _forced_encoding(name: str, head: bytes) -> tuple[str, int]:
    """(encoding, length of its byte order mark) for the user's --encoding.

    The mark decides the byte order of utf-16 and utf-32. Raises UserError for an unknown name.
    """
    try:
        encoding = codecs.lookup(name).name.removesuffix("-sig")
        if encoding in ("utf-16", "utf-32"):
            marked = (known for bom, known in BOMS if head.startswith(bom))
            same_family = (known for known in marked if known.startswith(encoding))
            encoding = next(same_family, f"{encoding}-le")
        b"\x80 a".decode(encoding, "replace")  # fails for codecs that are not text encodings
    except (LookupError, ValueError):
        raise UserError(
            f"there is no encoding called {name!r} (utf-8, gb18030, big5, utf-16 …)"
        ) from None
    lengths = (len(bom) for bom, known in BOMS if head.startswith(bom) and known == encoding)
    return encoding, next(lengths, 0)


def detect_encoding(head: bytes, is_whole: bool) -> tuple[str, int]:
    """(encoding, length of its byte order mark) of a file that begins with `head`.

    In this order: a byte order mark; valid UTF-8; line ends of UTF-16; else the encoding that gives
    the most everyday characters.
    """
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
        if aligned >= UTF16_MIN_LINE_ENDS and aligned > UTF16_MIN_SHARE * newlines:
            return encoding, 0
    candidates = ("utf-8", "gb18030", "big5hkscs", "utf-16-le", "utf-16-be")
    return max(candidates, key=lambda name: _likelihood(head, name)), 0


def _likelihood(sample: bytes, encoding: str) -> float:
    """Share of everyday characters (ASCII included), less a penalty for undecodable places."""
    text = codecs.decode(sample, encoding, "replace")[:-2]  # the sample may end inside a character
    everyday = sum(" " <= c < "\x7f" or c in COMMON_CHARACTERS for c in text)
    return (everyday - UNREADABLE_PENALTY * text.count("�")) / max(1, len(text))
