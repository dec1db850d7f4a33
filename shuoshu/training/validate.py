"""Evaluation during training, and which model is kept."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from shuoshu.core.device import autocast
from shuoshu.core.distributed import StopFlag
from shuoshu.core.errors import UserError
from shuoshu.core.terminal import Progress
from shuoshu.evaluation.loss import score
from shuoshu.evaluation.metrics import exact_match, rouge_l
from shuoshu.generation.answers import answer
from shuoshu.generation.sampling import SamplingParams, TextGenerator
from shuoshu.training.plots import draw_curves, write_samples
from shuoshu.training.run import Run
from shuoshu.training.schedule import RunClock
from shuoshu.training.step import halve_batch_on_oom

EVALUATION_ROWS = 64  # questions answered side by side
SAMPLES = 4  # of their answers in samples.md


def evaluate(
    run: Run, pace: RunClock, bar: Progress, stop: StopFlag, asked_to_stop: Callable[[], object]
) -> None:
    """Scores the validation data, keeps the model if it is the best so far or as good but for chance, samples, redraws the curves.
    Of one that is stopped in between nothing is kept: it is done again when the run is resumed."""
    state, settings = run.state, run.settings
    facts: dict[str, float] = {}
    told, is_best, scores, samples = "", True, [], []
    if len(run.val):
        parts = run.model, run.raw
        result = halve_batch_on_oom(
            run,
            lambda: score(
                *parts,
                run.val_batches(),
                run.tokenizer.end,
                run.dtype,
                run.processes,
                asked_to_stop,
            ),
        )
        if result is None:
            return
        facts["val_loss"] = require_finite(run, result.loss)
        told = f": val loss {result.loss:.4f}"
        if run.val.characters and (run.task == "questions" or settings.eval_tokens is None):
            facts["bits_per_char"] = result.bits_per(run.val.characters)
            told += f", {facts['bits_per_char']:.3f} bits per character"
        if run.questions:
            measures, scores, samples = answer_questions(run, stop)
            if asked_to_stop():
                return
            facts |= measures
            told += f", ROUGE-L {facts['val_rouge_l']:.3f}, {facts['val_exact_match']:.0%} of the answers exact"
        now = -facts["val_rouge_l"] if run.selects_by_answers else result.loss
        is_best = state.best is None or (now, result.loss) < (state.best, state.loss_at_best)
        state.worse_evals = 0 if is_best else state.worse_evals + 1
    is_kept = (is_best or is_within_noise_of_best(run, scores)) and run.keep_model(bar.say)
    if is_kept:
        state.kept_step = state.step
    if is_kept and len(run.val):
        told += ", the best so far" if is_best else ", kept: as good as the best but for chance"
        if is_best:
            state.best, state.best_step, state.best_scores, state.loss_at_best = (
                now,
                state.step,
                scores,
                result.loss,
            )
    state.evaluated = state.step
    if not run.processes.is_rank_zero:
        return
    told = f"step {state.step:,}{told}"
    bar.say(told)
    run.record("eval", step=state.step, **facts, kept=is_kept, seconds=round(pace.elapsed(), 2))
    if settings.sample_tokens:
        samples = samples or [continue_prompt(run, stop)]
        for sample in () if stop.raised else samples:  # a text that was cut short is none
            run.record("sample", step=state.step, title=told, **sample)
    with run.warn_on_write_error("curves and samples", bar.say):
        if settings.sample_tokens:
            write_samples(run.log, run.out_dir / "samples.md")
        draw_curves(run.log, run.out_dir / "loss.png")


def is_within_noise_of_best(run: Run, scores: list[float]) -> bool:
    """Whether these answers are worse than the best by no more than chance, one standard error: then what was trained for longer knows its own
    questions better. Of labels nobody asks for those; and while no answer is any good, the lowest loss is better."""
    if (
        not run.selects_by_answers
        or run.data.meta.get("labels")
        or not run.state.best
        or not 1 < len(scores) == len(run.state.best_scores)
    ):
        return False
    lost = np.subtract(run.state.best_scores, scores)
    return bool(
        lost.mean() <= lost.std(ddof=1) / math.sqrt(len(lost)) + 1e-9
    )  # one answer alone makes them equal


def answer_questions(
    run: Run, stop: StopFlag
) -> tuple[dict[str, float], list[float], list[dict[str, str]]]:
    """(measures of the answers to the validation questions, the ROUGE-L of each, the first few of them); the processes share the questions."""
    mine = run.questions[run.processes.rank :: run.processes.world]
    run.raw.eval()
    with autocast(run.device, run.dtype):
        generator = TextGenerator(run.raw, run.tokenizer)
        answers = answer(generator, mine, EVALUATION_ROWS, lambda: stop.raised)
    run.raw.train()
    done = [(q, f) for q, f in zip(mine, answers, strict=True) if f]
    own = [0.0] * len(run.questions)
    own[run.processes.rank :: run.processes.world] = [
        rouge_l(f.text, q.reference)[2] if f else 0.0 for q, f in zip(mine, answers, strict=True)
    ]
    sums = [
        len(done),
        sum(exact_match(f.text, q.reference) for q, f in done),
        sum(f.reason == "end" for _, f in done),
    ]
    count, exact, ended, *scores = run.processes.sum([*map(float, sums), *own])
    values = {"val_rouge_l": sum(scores), "val_exact_match": exact, "val_stop_rate": ended}
    samples = [
        {"prompt": q.text, "text": f.text, "reference": q.reference} for q, f in done[:SAMPLES]
    ]
    return {name: value / max(1, count) for name, value in values.items()}, scores, samples


def continue_prompt(run: Run, stop: StopFlag) -> dict[str, str]:
    """What the model makes of the run's prompt, the same each time."""
    prompt = run.settings.sample_prompt
    if prompt is None:
        source = run.data if run.task == "questions" or not len(run.val) else run.val
        first = source.row(0)[0] if run.task == "questions" else source.tokens[:64]
        prompt = run.tokenizer.decode(first.tolist()).lstrip().partition("\n")[0][:24].rstrip("�")
    ids = run.tokenizer.encode(prompt)[-run.block // 2 :]
    sampling = SamplingParams(max_new_tokens=run.settings.sample_tokens)
    run.raw.eval()
    with autocast(run.device, run.dtype):
        generator = TextGenerator(run.raw, run.tokenizer)
        seeds = [run.settings.seed]
        [completion] = generator.complete([ids], sampling, seeds, lambda: stop.raised)
    run.raw.train()
    return {"prompt": prompt, "text": completion.text}


def require_finite(run: Run, loss: float) -> float:
    """The loss; UserError if there is none any more."""
    if not math.isfinite(loss):
        advice = f"lower --learning_rate (it is {run.rate:g}); earlier checkpoints are intact, --resume uses them"
        raise UserError(f"the validation loss became {loss} at step {run.state.step:,}: {advice}")
    return loss
