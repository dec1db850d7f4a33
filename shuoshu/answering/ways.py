"""Decides how sample.py answers questions, from its settings and from what is beside the model."""

from __future__ import annotations

from pathlib import Path

from shuoshu.answering.answerer import Answerer
from shuoshu.answering.knowledge import ANSWERS
from shuoshu.answering.passages import MAX_BOOK_CHARACTERS, PassageIndex
from shuoshu.core.command_settings import TRAINED, SampleSettings
from shuoshu.core.errors import UserError
from shuoshu.generation.chat_model import ChatModel
from shuoshu.models.purpose import Purpose

QUESTION_SETTINGS = ("answer_by", "precision", "sources", "book")
# Settings of written texts. With them an answer is not one of those whose rightness was measured.
WRITING_SETTINGS = ("num_samples", "temperature", "repetition_penalty", "stop")


def given_system(settings: SampleSettings) -> str | None:
    """The system message of the settings; None: the one of the training, "": none."""
    return {TRAINED: None, "none": ""}.get(settings.system, settings.system)


def changed_settings(settings: SampleSettings, system: str | None, purpose: Purpose) -> list[str]:
    """The settings by which an answer is not of the kind that was measured.

    system: the system message; None: the one of the training.
    """
    changed = [
        name
        for name in WRITING_SETTINGS
        if getattr(settings, name) not in (getattr(SampleSettings, name), 0)
    ]
    return changed if system in (None, purpose.system) else [*changed, "system"]


def question_flags(settings: SampleSettings) -> str:
    """The given flags that are for questions only, as a message names them; empty: none."""
    return ", ".join(f"--{name}" for name in QUESTION_SETTINGS if name in settings.given)


def shows_sources(settings: SampleSettings) -> bool:
    """Whether passages are shown under each answer; a book that isn't read is there for that."""
    return settings.sources or bool(settings.book and settings.answer_by != "read")


def require_fitting_settings(settings: SampleSettings) -> None:
    """UserError if settings that concern questions exclude others."""
    if settings.continue_text and (flags := question_flags(settings)):
        raise UserError(f"{flags}: --continue_text answers no questions: drop one of them")
    if settings.infile and settings.num_samples > 1 and shows_sources(settings):
        raise UserError(
            "--sources and --book with --in go with one answer per question: drop --num_samples"
        )


def open_answerer(
    model: ChatModel, settings: SampleSettings, out_dir: Path, book: PassageIndex | None
) -> tuple[str, Answerer]:
    """(way, answerer) for a model that answers questions. book: of --book, else None.

    Raises UserError if the settings ask for what this model can't do.
    """
    way = _asked_way(settings) or ("read" if model.purpose.passages else None)
    if way == "read" or not _may_recall(model, settings, out_dir, way):
        needs_text = book is None and (way == "read" or settings.sources)
        answerer = Answerer(model, None, PassageIndex.find(out_dir) if needs_text else book)
    else:
        answerer = Answerer.open(out_dir, model)
        answerer.passages = book or answerer.passages
    if way in ("recall", "auto") and not answerer.knowledge:
        raise UserError(f"{_asking_flag(settings)} needs {_missing_knowledge(model, out_dir)}")
    if not answerer.passages and (way == "read" or settings.sources):
        flag = "--answer_by=read" if way == "read" else "--sources"
        raise UserError(
            f"{flag}: the text behind {out_dir} is not there, or is longer than"
            f" {MAX_BOOK_CHARACTERS:,} characters: name one by --book=FILE"
        )
    return way or answerer.default_way, answerer


def _asked_way(settings: SampleSettings) -> str | None:
    """The way that the settings ask for; a precision asks for auto. None: none."""
    way = settings.answer_by
    if "precision" not in settings.given:
        return way
    if way not in (None, "auto"):
        raise UserError(f"--precision is for --answer_by=auto: drop it, or --answer_by={way}")
    return "auto"


def _asking_flag(settings: SampleSettings) -> str:
    return f"--answer_by={settings.answer_by}" if settings.answer_by else "--precision"


def _may_recall(model: ChatModel, settings: SampleSettings, out_dir: Path, way: str | None) -> bool:
    """Whether the answers are of the kind that was measured, and something may be kept.

    UserError if they aren't and the way needs it.
    """
    changed = [
        f"--{name}" for name in changed_settings(settings, given_system(settings), model.purpose)
    ]
    if changed and way in ("recall", "auto"):
        raise UserError(
            f"{_asking_flag(settings)} chooses among taught answers, which doesn't go with"
            f" {', '.join(changed)}: drop one of them"
        )
    return not changed and (out_dir / ANSWERS).is_file()


def _missing_knowledge(model: ChatModel, out_dir: Path) -> str:
    """What is missing, and what to do."""
    if model.purpose.turns != 1:
        return (
            "a model that was trained here on single questions, and this one was not: use"
            " --answer_by=write or read"
        )
    what = "fits other weights than" if (out_dir / ANSWERS).is_file() else "is not beside"
    return (
        f"the taught answers, but {ANSWERS} {what} the model in {out_dir}:"
        f" python eval_metrics.py {out_dir} makes it"
    )
