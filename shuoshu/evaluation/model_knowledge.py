"""Makes what a model needs to recall answers, from the data that it was trained on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from shuoshu.answering.knowledge import Fit, write_knowledge
from shuoshu.answering.passages import PassageIndex
from shuoshu.core.errors import UserError
from shuoshu.core.run_log import read_settings
from shuoshu.evaluation.fit_answers import fit_model, single_questions
from shuoshu.generation.answers import read_questions
from shuoshu.generation.chat_model import ChatModel
from shuoshu.text.dataset import read_meta


def fit_knowledge(out_dir: Path, model: ChatModel, rows: int) -> Fit | None:
    """Writes answers.json and taught.jsonl beside the model in out_dir; returns the better fit.

    None, and nothing is written, if the model wasn't trained on single questions, or if its data
    has changed or lacks validation questions. Raises OSError if the files can't be written.
    """
    folder = trained_questions(out_dir, model)
    if folder is None:
        return None
    training = read_questions(folder, "train", model.tokenizer)
    validation = read_questions(folder, "val", model.tokenizer)
    taught = single_questions(training)
    if not validation or len(taught.answers) < 2:
        return None
    passages = PassageIndex.find(out_dir)
    windows = passages.windows() if passages else []
    fits = fit_model(model, taught, validation, windows, rows)
    write_knowledge(out_dir, taught, fits)
    return next(iter(fits.values()))


def describe_knowledge(fit: Fit) -> str:
    """What the fit says about validation questions, for the terminal."""
    return (
        f"ROUGE-L on validation questions: recalled or written {fit.auto_rouge_l:.3f}, written"
        f" {fit.write_rouge_l:.3f}; {fit.default} answers by default"
    )


def trained_questions(out_dir: Path, model: ChatModel) -> Path | None:
    """The folder of the questions that the model was trained on, as they were then."""
    if model.purpose.task != "questions" or model.purpose.turns != 1:
        return None
    with suppress(UserError, OSError, KeyError):
        data = read_settings(out_dir)["data"]
        folder = Path(str(data["folder"]))
        meta = read_meta(folder)
        train = meta["splits"]["train"]
        is_same = train["sha256"] + train["mask_sha256"] == data["train"]
        is_plain = not meta.get("separator") and not meta.get("passages")
        if is_same and meta["task"] == "questions" and is_plain:
            return folder
    return None
