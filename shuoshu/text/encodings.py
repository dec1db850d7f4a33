"""Bytes to text: opens archives, decodes part by part, counts what can't be decoded."""

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
from shuoshu.text.detection import BOMS, detect_encoding

TEXT_SUFFIXES = (".txt", ".zip", ".gz")
MAX_FILE_BYTES = 4 << 30  # unpacked size of one file
MAX_EXPANSION = 100  # unpacked size / file size; novels have 2 to 5, zip bombs about 1,000
MIN_UNPACKED_LIMIT = 1 << 20  # bytes that every archive may unpack to, however small it is
SAMPLE_BYTES = 400_000  # read to detect the encoding
MIN_EVIDENCE_BYTES = 1000  # after the first one outside ASCII
READ_BYTES = 1 << 20  # read at once
PART_CHARACTERS = 8_000_000  # cleaned at once; limits memory
# A text with more undecodable places than this has another encoding or is not a text.
MAX_UNREADABLE_PLACES, MAX_UNREADABLE_SHARE = 3, 0.01  # the larger one counts
MAX_NUL_SHARE = 0.1  # of the characters; more is a binary file
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

    `broken` counts the undecodable places; each becomes a �. `encoding` is certain when the first
    byte outside ASCII has been read.
    """

    def __init__(
        self, file: BinaryIO, forced: str | None = None, max_bytes: int | None = None
    ) -> None:
        self.file, self.max_bytes = file, max_bytes or MAX_FILE_BYTES
        self.broken = self.characters = self.n_bytes = 0
        self.is_at_end = False
        self.head = self._with_evidence(self._read(SAMPLE_BYTES))
        if forced:
            self.encoding, self.bom_bytes = _forced_encoding(forced, self.head)
        else:
            self.encoding, self.bom_bytes = detect_encoding(self.head, self.is_at_end)
        # ASCII alone tells nothing; it may be UTF-16 if it has NULs.
        self.is_certain = bool(forced) or not self.head.isascii() or b"\0" in self.head

    def _read(self, size: int) -> bytes:
        with _read_errors_to_user_errors():
            data = self.file.read(size)
        self.is_at_end = len(data) < size
        self.n_bytes += len(data)
        if self.n_bytes > self.max_bytes:
            raise UserError(_too_large(self.max_bytes))
        return data

    def _with_evidence(self, chunk: bytes) -> bytes:
        """The chunk; with the next bytes if only its end has some outside ASCII."""
        if not chunk.isascii() and chunk[:-MIN_EVIDENCE_BYTES].isascii():
            chunk += self._read(SAMPLE_BYTES)
        return chunk

    def _chunks(self) -> Iterator[bytes]:
        """Yields the bytes of the file, without a mark; sets `encoding` for those that follow."""
        chunk = self.head[self.bom_bytes :]
        while chunk:
            if not self.is_certain and not chunk.isascii():
                chunk = self._with_evidence(chunk)
                self.encoding, _ = detect_encoding(chunk, self.is_at_end)
                self.is_certain = True
            yield chunk
            chunk = self._read(READ_BYTES)

    def parts(self) -> Iterator[str]:
        """Yields parts of about PART_CHARACTERS, cut at line ends.

        Raises UserError if the file is empty, too large, or not text.
        """
        encoding, decoder, stored = "", None, None
        buffer, is_blank = "", True
        for chunk in self._chunks():
            if encoding != self.encoding:
                encoding = self.encoding
                decoder = codecs.getincrementaldecoder(encoding)("replace")
                # A � that is stored in the file itself is not an undecodable place.
                stored = "�".encode(encoding) if encoding.startswith("utf") else None
            text = decoder.decode(chunk)
            self.broken += max(0, text.count("�") - (chunk.count(stored) if stored else 0))
            buffer += text
            if cut := _part_end(buffer):
                is_blank = False
                yield self._checked(buffer[:cut])
                buffer = buffer[cut:]
        rest = decoder.decode(b"", final=True) if decoder else ""
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
