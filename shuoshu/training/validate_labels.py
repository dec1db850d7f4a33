"""Evaluation of labels during training: log-loss, accuracy, macro-F1, a few samples."""

from __future__ import annotations

import numpy as np

from shuoshu.core.device import autocast
from shuoshu.core.distributed import StopFlag
from shuoshu.core.parts import evenly
from shuoshu.evaluation.metrics import confusion_matrix, label_f1
from shuoshu.generation.answers import Question
from shuoshu.generation.judge import label_log_probabilities
from shuoshu.generation.sampling import TextGenerator
from shuoshu.training.run import Run
from shuoshu.training.step import halve_batch_on_oom

SAMPLES = 4  # in samples.md


def judge_validation(run: Run, stop: StopFlag) -> tuple[np.ndarray, np.ndarray] | None:
    """(log-probabilities (texts, labels), true label numbers) of the validation texts.

    The processes share the texts. None if a signal stopped it.
    """
    data, processes = run.data, run.processes
    mine = slice(processes.rank, None, processes.world_size)
    own = halve_batch_on_oom(
        run.trainer,
        run.state.step,
        lambda: own_scores(run, data.questions[mine], stop),
        "answer_rows",
    )
    if processes.any_signal(stop.raised):
        return None
    scores = np.zeros((len(data.questions), len(data.labels)))
    scores[mine] = own
    scores = np.reshape(processes.sum(scores.ravel().tolist()), scores.shape)
    numbers = {label: number for number, label in enumerate(data.labels)}
    return scores, np.array([numbers[question.reference] for question in data.questions])


def own_scores(run: Run, questions: list[Question], stop: StopFlag) -> np.ndarray:
    """(questions, labels): the labels' log-probabilities, without a bias."""
    trainer, prompts = run.trainer, [question.ids for question in questions]
    trainer.raw.eval()
    with autocast(trainer.device, trainer.dtype):
        generator = TextGenerator(trainer.raw, run.data.tokenizer)
        scores = label_log_probabilities(
            generator, run.data.labelling, prompts, trainer.answer_rows, lambda: stop.raised
        )
    trainer.raw.train()
    return scores


def label_values(scores: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """The measures under their names in log.jsonl."""
    predicted = scores.argmax(axis=1)
    confusion = confusion_matrix(predicted, true, scores.shape[1])
    return {
        "val_loss": float(-scores[np.arange(len(true)), true].mean()),
        "val_accuracy": float((predicted == true).mean()),
        "val_macro_f1": float(label_f1(confusion).mean()),
    }


def label_samples(run: Run, scores: np.ndarray) -> list[dict[str, str]]:
    """A few validation texts with the likeliest label of each."""
    labels, questions = run.data.labels, run.data.questions
    samples = []
    for number in evenly(len(questions), SAMPLES):
        best = scores[number].argmax()
        text = f"{labels[best]} ({np.exp(scores[number, best]):.0%})"
        reference = questions[number].reference
        samples.append({"prompt": questions[number].text, "text": text, "reference": reference})
    return samples
