"""Evaluation during training: losses, answers, samples, and the choice of the model to keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from shuoshu.core.device import autocast
from shuoshu.core.distributed import StopFlag
from shuoshu.core.errors import UserError
from shuoshu.core.parts import evenly
from shuoshu.core.terminal import print_line
from shuoshu.evaluation.label_measures import fit_bias, fit_scale
from shuoshu.evaluation.loss import Score, score
from shuoshu.evaluation.metrics import exact_match, rouge_l
from shuoshu.generation.answers import Question, answer
from shuoshu.generation.sampling import Completion, SamplingParams, TextGenerator
from shuoshu.models.purpose import Purpose
from shuoshu.training.console import measure_name
from shuoshu.training.run import Run
from shuoshu.training.schedule import RunClock
from shuoshu.training.state import RunState
from shuoshu.training.step import halve_batch_on_oom
from shuoshu.training.validate_labels import judge_validation, label_samples, label_values

SAMPLE_ANSWERS = 4  # in samples.md
# Without --sample_prompt the samples' prompt is the first line of the data, cut to these lengths.
SAMPLE_PROMPT_TOKENS = 64
SAMPLE_PROMPT_CHARACTERS = 24
# If only one answer differs, the mean difference equals one standard error. This tolerance keeps
# rounding from deciding such a comparison.
ROUNDING = 1e-9


@dataclass
class Evaluation:
    """The result of one evaluation."""

    values: dict[str, float] = field(default_factory=dict)  # under their names in log.jsonl
    scores: list[float] = field(default_factory=list)  # ROUGE-L per answer
    samples: list[dict[str, str]] = field(default_factory=list)
    purpose: Purpose | None = None  # of labels: with the correction fitted to these values

    def summary(self) -> str:
        """The measures as printed after "step N"; empty without validation data."""
        if not self.values:
            return ""
        parts = [f"val loss {self.values['val_loss']:.4f}"]
        if "bits_per_char" in self.values:
            parts.append(f"{self.values['bits_per_char']:.3f} bits per character")
        if "val_accuracy" in self.values:
            parts.append(f"accuracy {self.values['val_accuracy']:.3f}")
            parts.append(f"macro-F1 {self.values['val_macro_f1']:.3f}")
        elif "val_rouge_l" in self.values:
            parts.append(f"ROUGE-L {self.values['val_rouge_l']:.3f}")
        if "val_exact_match" in self.values:
            parts.append(f"{self.values['val_exact_match']:.0%} of the answers exact")
        return ": " + ", ".join(parts)


def evaluate_run(run: Run, clock: RunClock, say: Callable[[str], None], stop: StopFlag) -> None:
    """Scores the validation data, keeps the model if it is good enough, logs and samples.

    An evaluation that a signal stops leaves nothing behind; the resumed run repeats it.
    """
    result = measure_validation(run, stop)
    if result is None:
        return
    state = run.state
    is_kept, verdict = keep_if_best(run, result, say)
    state.evaluated = state.step
    if not run.processes.is_rank_zero:
        return
    title = f"step {state.step:,}{result.summary()}{verdict}"
    say(title)
    seconds = round(clock.elapsed(), 2)
    run.out_dir.record("eval", step=state.step, **result.values, kept=is_kept, seconds=seconds)
    if run.settings.sample_tokens:
        samples = result.samples or [continue_prompt(run, stop)]
        if not stop.raised:  # else the sample may be cut short
            for sample in samples:
                run.out_dir.record("sample", step=state.step, title=title, **sample)
    run.out_dir.update_pictures(bool(run.settings.sample_tokens), say)


# ---------------------------------------------------------------- measuring


def measure_validation(run: Run, stop: StopFlag) -> Evaluation | None:
    """The measures of the model on the validation data; None if a signal stopped it."""
    result = Evaluation()
    if not len(run.data.val):
        return result
    if run.data.labels:
        return validate_labels(run, stop)
    loss = halve_batch_on_oom(run.trainer, run.state.step, lambda: score_val(run, stop))
    if loss is None:
        return None
    result.values["val_loss"] = require_finite(run, loss.loss)
    is_whole = run.data.val_is_complete or run.data.task != "text"
    if run.data.val.characters and is_whole:
        result.values["bits_per_char"] = loss.bits_per(run.data.val.characters)
    if run.data.questions:
        values, result.scores, result.samples = answer_questions(run, stop)
        if run.processes.any_signal(stop.raised):
            return None
        result.values |= values
    return result


def validate_labels(run: Run, stop: StopFlag) -> Evaluation | None:
    """The measures of the labels of the validation texts; None if a signal stopped it."""
    judged = judge_validation(run, stop)
    if judged is None:
        return None
    scores, true = judged
    values = label_values(scores, true)
    require_finite(run, values["val_loss"])
    # A bias for the lowest log-loss would take back what the weights of the labels gave, or the
    # balance that selecting by macro-F1 asks for. The scale alone changes no decision.
    is_balanced = run.settings.label_weights or run.data.measure == "val_macro_f1"
    correction = (fit_scale if is_balanced else fit_bias)(scores, true)
    bias = () if is_balanced else tuple(correction.bias.tolist())
    labelling = replace(run.data.labelling, scale=float(correction.weights[0]), bias=bias)
    purpose = run.data.purpose._replace(labelling=labelling)
    return Evaluation(values, samples=label_samples(run, scores), purpose=purpose)


def score_val(run: Run, stop: StopFlag) -> Score | None:
    """The loss on the validation data; None if a signal stopped it."""
    trainer = run.trainer
    with autocast(trainer.device, trainer.dtype):
        return score(
            trainer.model,
            trainer.raw,
            run.data.val_batches(trainer.block_size, trainer.micro_rows),
            run.data.end,
            run.processes,
            lambda: run.processes.any_signal(stop.raised),
        )


def require_finite(run: Run, loss: float) -> float:
    """The loss; UserError if it is infinite or NaN."""
    if not math.isfinite(loss):
        raise UserError(
            f"the validation loss became {loss} at step {run.state.step:,}:"
            f" lower --learning_rate (it is {run.trainer.learning_rate:g});"
            " earlier checkpoints are intact, --resume uses them"
        )
    return loss


def answer_questions(
    run: Run, stop: StopFlag
) -> tuple[dict[str, float], list[float], list[dict[str, str]]]:
    """(measures, ROUGE-L per answer, a few samples) of the answers to the validation questions.

    The processes share the questions.
    """
    mine = slice(run.processes.rank, None, run.processes.world_size)
    questions = run.data.questions[mine]
    answers = halve_batch_on_oom(
        run.trainer, run.state.step, lambda: generate_answers(run, questions, stop), "answer_rows"
    )
    pairs = list(zip(questions, answers, strict=True))
    done = [(question, reply) for question, reply in pairs if reply]  # all, unless stopped
    scores = [0.0] * len(run.data.questions)
    scores[mine] = [
        rouge_l(reply.text, question.reference)[2] if reply else 0.0 for question, reply in pairs
    ]
    exact = sum(exact_match(reply.text, question.reference) for question, reply in done)
    ended = sum(reply.reason == "end" for _, reply in done)
    sums = [float(len(done)), float(exact), float(ended), *scores]
    count, exact, ended, *scores = run.processes.sum(sums)
    totals = {"val_rouge_l": sum(scores), "val_exact_match": exact, "val_stop_rate": ended}
    values = {name: total / max(1, count) for name, total in totals.items()}
    samples = [
        {"prompt": question.text, "text": reply.text, "reference": question.reference}
        for question, reply in (done[place] for place in evenly(len(done), SAMPLE_ANSWERS))
    ]
    return values, scores, samples


def generate_answers(
    run: Run, questions: Sequence[Question], stop: StopFlag
) -> list[Completion | None]:
    """The answer to each question; None for those after a signal."""
    trainer = run.trainer
    trainer.raw.eval()
    with autocast(trainer.device, trainer.dtype):
        generator = TextGenerator(trainer.raw, run.data.tokenizer)
        answers = answer(generator, questions, trainer.answer_rows, lambda: stop.raised)
    trainer.raw.train()
    return answers


def continue_prompt(run: Run, stop: StopFlag) -> dict[str, str]:
    """The model's continuation of the run's prompt, which is the same at every evaluation."""
    data, trainer = run.data, run.trainer
    prompt = run.settings.sample_prompt
    if prompt is None:
        if data.task != "text":
            first = data.train.row(0)[0]
        else:
            first = (data.val if len(data.val) else data.train).tokens[:SAMPLE_PROMPT_TOKENS]
        line = data.tokenizer.decode(first.tolist()).lstrip().partition("\n")[0]
        prompt = line[:SAMPLE_PROMPT_CHARACTERS].rstrip("�")  # a cut character decodes to �
    ids = data.tokenizer.encode_prompt(prompt)[-trainer.block_size // 2 :]
    sampling = SamplingParams(max_new_tokens=run.settings.sample_tokens)
    trainer.raw.eval()
    with autocast(trainer.device, trainer.dtype):
        generator = TextGenerator(trainer.raw, data.tokenizer)
        seeds = [run.settings.seed]
        [completion] = generator.complete([ids], sampling, seeds, lambda: stop.raised)
    trainer.raw.train()
    return {"prompt": prompt, "text": completion.text}


# ---------------------------------------------------------------- choosing the model


def keep_if_best(
    run: Run, result: Evaluation, say: Callable[[str], None] = print_line
) -> tuple[bool, str]:
    """Saves the model if it is the best one or within noise of it.

    Returns whether it was saved, and what the evaluation's line says about it.
    """
    state, measure = run.state, run.data.measure
    if not result.values:  # without validation data every evaluation replaces the model
        is_kept = keep_model(run, result.purpose, say)
        state.kept_step = state.step if is_kept else state.kept_step
        return is_kept, ""
    if run.data.labels and not state.step:
        # With few validation texts an untrained model can be right by chance about most of them.
        return keep_model(run, result.purpose, say), ""
    value, loss = result.values[measure], result.values["val_loss"]
    is_best = _is_better(state, measure, value, loss)
    state.worse_evals = 0 if is_best else state.worse_evals + 1
    is_kept = is_best or _is_as_good(run, result.scores)
    is_kept = is_kept and keep_model(run, result.purpose, say)
    if not is_kept:
        return False, ""
    state.kept_step = state.step
    if not is_best:
        return True, ", kept: within noise of the best"
    state.best_measure, state.best_value, state.best_loss = measure, value, loss
    state.best_step, state.best_scores = state.step, result.scores
    return True, f", the best {measure_name(measure)} so far"


def keep_model(run: Run, purpose: Purpose | None, say: Callable[[str], None]) -> bool:
    """Makes the model that of out_dir. False, on all ranks, if it can't be written."""
    purpose = purpose or run.data.purpose
    return run.out_dir.keep_model(run.trainer, run.data, run.state.step, purpose, say)


def _is_better(state: RunState, measure: str, value: float, loss: float) -> bool:
    """Whether the model beats the best one so far.

    The loss decides between equal values: the ROUGE-L of early models is 0.
    """
    if not state.has_best():
        return True
    sign = 1 if measure == "val_loss" else -1  # of the others, more is better
    return (sign * value, loss) < (sign * state.best_value, state.best_loss)


def _is_as_good(run: Run, scores: list[float]) -> bool:
    """Whether the answers of a later model are as good as the best ones, so that it replaces them.

    The later model has seen the training questions more often, so it answers those better. While
    the best ROUGE-L is 0, there is no good model yet.
    """
    state = run.state
    if run.data.measure != "val_rouge_l" or not state.best_value:
        return False
    return is_within_noise(state.best_scores, scores)


def is_within_noise(best: list[float], scores: list[float]) -> bool:
    """Whether the mean score is at most one standard error of the differences below the best."""
    if not 1 < len(scores) == len(best):
        return False
    losses = np.subtract(best, scores)
    return bool(losses.mean() <= losses.std(ddof=1) / math.sqrt(len(losses)) + ROUNDING)
