"""The training loop: batches in order, one step after another, evaluated and saved on the way."""

from __future__ import annotations

import math
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from shuoshu.core import device as core_device
from shuoshu.core import terminal
from shuoshu.core.cli import UserError
from shuoshu.core.files import reason_of, size
from shuoshu.core.saving import Lock
from shuoshu.core.settings import TrainSettings
from shuoshu.evaluation.loss import score
from shuoshu.evaluation.metrics import exact_match, rouge_l
from shuoshu.generation.answers import answer
from shuoshu.generation.sampling import Sampling, complete
from shuoshu.training import checkpoints
from shuoshu.training.run import Run
from shuoshu.training.schedule import Pace
from shuoshu.training.step import ASKED_EVERY, train_step, within_memory

EVALUATION_ROWS = 64  # questions answered side by side
SAMPLES = 4  # of their answers in samples.md


def train(settings: TrainSettings) -> int:
    """Trains as the settings say; the exit code."""
    core_device.keep_memory()
    processes = core_device.Processes()
    device = core_device.pick_device(settings.device, processes.local_rank)
    start_processes(processes, device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what stays in fp32
    run, failed = None, True
    try:
        if settings.threads:
            torch.set_num_threads(settings.threads)
        with Lock(Path(settings.out_dir)) as lock:
            run = Run(settings, processes, device, lock)
            code = dry_run(run) if settings.dry_run else loop(run)
        failed = False
        return code
    except torch.OutOfMemoryError as error:
        raise UserError(out_of_memory(settings, processes, run.micro_rows if run else settings.batch_size)) from error
    except BrokenPipeError:  # who read what we print is gone
        if run and run.saved is not None:
            save_or_end(run)
        raise
    except RuntimeError as error:
        if not processes.lost_others(error):
            raise
        told = "another process of this run is gone: its own message says why. The same command with --resume goes on from the newest checkpoint"
        raise UserError(f"process {processes.rank}: {told}") from error
    finally:
        del run  # and with it the last hold on the processes' group
        processes.stop(failed)


def start_processes(processes: core_device.Processes, device: torch.device) -> None:
    try:
        processes.start(device)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the {processes.world} processes of this run don't find each other ({error}): start them with torchrun, as README shows") from None


def out_of_memory(settings: TrainSettings, processes: core_device.Processes, rows: int) -> str:
    """What to turn when the GPU's memory is not enough."""
    halve = f"--batch_size={settings.batch_size // 2} --gradient_accumulation_steps={2 * settings.gradient_accumulation_steps} (the same training); "
    return (
        f"out of memory in process {processes.rank}: "
        + (halve if settings.batch_size > 1 and processes.world > 1 else "even one row at a time is too much; " if rows == 1 else "")
        + "else a shorter --block_size, or a smaller model: --n_layer, --n_embd"
    )


def loop(run: Run) -> int:
    """Steps until the plan, the user or the patience ends it; the exit code."""
    state, settings = run.state, run.settings
    pace = Pace(settings, run.steps_per_epoch, run.processes, run.device)
    run.processes.first(run.open_out_dir)
    if run.processes.is_first:
        introduce(run, pace)
    pace.begin(state)
    loss_sum, loss_steps = torch.zeros((), device=run.device), 0
    bar = terminal.Progress(state.plan.max_iters if state.plan else 0, state.step, show=run.processes.is_first)
    run.raw.train()
    with core_device.StopFlag() as stop:

        def asked_to_stop() -> int | None:
            return run.processes.agree_on_signal(stop.raised)

        while True:
            plan = state.plan
            is_last = plan is not None and state.step >= plan.max_iters
            evaluating = is_last or state.step == 0 or (plan is not None and state.step % plan.eval_interval == 0)
            evaluating = evaluating and state.evaluated != state.step  # a resumed run may begin at a step that is evaluated and saved already
            saving = is_last or (plan is not None and state.step > 0 and state.step % plan.save_interval == 0)
            saving = saving and (evaluating or run.saved != state.step)
            if evaluating or saving:
                loss_steps -= run.skips.settle(bar.say)
                with pace.pause():
                    if state.step == 0 and run.saved is None:
                        save_or_end(run)  # so that a run killed at any moment can be resumed
                    if evaluating:
                        evaluate(run, pace, bar, stop, asked_to_stop)
                    if saving and not state.skipped_in_row:  # weights that lead to nothing shall not push out those that did
                        pace.note(state)
                        with run.spared(f"the checkpoint of step {state.step:,}", bar.say):
                            run.save()
            stopped = asked_to_stop()
            if is_last and state.evaluated == state.step:
                stopped = None  # too late: it is finished
            out_of_patience = settings.patience is not None and state.worse_evals >= settings.patience
            if is_last or stopped or out_of_patience:
                break
            loss_sum, loss_steps = loss_sum + train_step(run), loss_steps + 1
            state.step += 1
            state.plan = pace.plan_after(state)
            is_told = state.step % settings.log_interval == 0
            if is_told or run.device.type == "cpu" or state.step % ASKED_EVERY == 0:
                loss_steps -= run.skips.settle(bar.say)
            if is_told:
                if loss_steps:
                    tell(run, pace, bar, loss_sum.item() / loss_steps)
                loss_sum, loss_steps = torch.zeros_like(loss_sum), 0
        run.skips.settle(bar.say)
        if run.saved != state.step:
            pace.note(state)
            save_or_end(run)
    bar.close()
    if run.processes.is_first:
        conclude(run, stopped, out_of_patience)
    return 128 + stopped if stopped else 0


def save_or_end(run: Run) -> None:
    """A checkpoint without which there is no going on."""
    try:
        run.save()
    except OSError as error:
        intact = "" if run.saved is None else f"; the checkpoint of step {run.saved:,} is intact, --resume goes on from it once the disk can be written again"
        raise UserError(f"step {run.state.step:,} can't be saved in {run.out_dir}: {reason_of(error)}{intact}") from None


def evaluate(run: Run, pace: Pace, bar: terminal.Progress, stop: core_device.StopFlag, asked_to_stop: Callable[[], object]) -> None:
    """Scores the validation data, keeps the model if it is the best so far or as good but for chance, samples, redraws the curves.
    Of one that is stopped in between nothing is kept: it is done again when the run is resumed."""
    state, settings = run.state, run.settings
    facts: dict[str, float] = {}
    told, is_best, scores, samples = "", True, [], []
    if len(run.val):
        parts = run.model, run.raw
        result = within_memory(run, lambda: score(*parts, run.val_batches(), run.tokenizer.end, run.dtype, run.processes, asked_to_stop))
        if result is None:
            return
        facts["val_loss"] = finite(run, result.loss)
        told = f": val loss {result.loss:.4f}"
        if run.val.characters and (run.turns or settings.eval_tokens is None):
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
    is_kept = (is_best or stands_by(run, scores)) and run.keep_model(bar.say)
    if is_kept:
        state.kept_step = state.step
    if is_kept and len(run.val):
        told += ", the best so far" if is_best else ", kept: as good as the best but for chance"
        if is_best:
            state.best, state.best_step, state.best_scores, state.loss_at_best = now, state.step, scores, result.loss
    state.evaluated = state.step
    if not run.processes.is_first:
        return
    told = f"step {state.step:,}{told}"
    bar.say(told)
    run.record("eval", step=state.step, **facts, kept=is_kept, seconds=round(pace.elapsed(), 2))
    if settings.sample_tokens:
        samples = samples or [continue_prompt(run, stop)]
        for sample in () if stop.raised else samples:  # a text that was cut short is none
            run.record("sample", step=state.step, title=told, **sample)
    with run.spared("curves and samples", bar.say):
        if settings.sample_tokens:
            terminal.write_samples(run.log, run.out_dir / "samples.md")
        terminal.draw_curves(run.log, run.out_dir / "loss.png")


def stands_by(run: Run, scores: list[float]) -> bool:
    """Whether these answers are worse than the best by no more than chance, one standard error: then what was trained for longer knows its own
    questions better. Of labels nobody asks for those; and while no answer is any good, the lowest loss is better."""
    if not run.selects_by_answers or run.data.meta.get("labels") or not run.state.best or not 1 < len(scores) == len(run.state.best_scores):
        return False
    lost = np.subtract(run.state.best_scores, scores)
    return bool(lost.mean() <= lost.std(ddof=1) / math.sqrt(len(lost)) + 1e-9)  # one answer alone makes them equal


def answer_questions(run: Run, stop: core_device.StopFlag) -> tuple[dict[str, float], list[float], list[dict[str, str]]]:
    """(measures of the answers to the validation questions, the ROUGE-L of each, the first few of them); the processes share the questions."""
    mine = run.questions[run.processes.rank :: run.processes.world]
    run.raw.eval()
    with core_device.autocast(run.device, run.dtype):
        answers = answer(run.raw, run.tokenizer, mine, EVALUATION_ROWS, lambda: stop.raised)
    run.raw.train()
    done = [(q, f) for q, f in zip(mine, answers, strict=True) if f]
    own = [0.0] * len(run.questions)
    own[run.processes.rank :: run.processes.world] = [rouge_l(f.text, q.reference)[2] if f else 0.0 for q, f in zip(mine, answers, strict=True)]
    sums = [len(done), sum(exact_match(f.text, q.reference) for q, f in done), sum(f.reason == "end" for _, f in done)]
    count, exact, ended, *scores = run.processes.sum([*map(float, sums), *own])
    values = {"val_rouge_l": sum(scores), "val_exact_match": exact, "val_stop_rate": ended}
    samples = [{"prompt": q.text, "text": f.text, "reference": q.reference} for q, f in done[:SAMPLES]]
    return {name: value / max(1, count) for name, value in values.items()}, scores, samples


def continue_prompt(run: Run, stop: core_device.StopFlag) -> dict[str, str]:
    """What the model makes of the run's prompt, the same each time."""
    prompt = run.settings.sample_prompt
    if prompt is None:
        source = run.data if run.turns or not len(run.val) else run.val
        first = source.row(0)[0] if run.turns else source.tokens[:64]
        prompt = run.tokenizer.decode(first.tolist()).lstrip().partition("\n")[0][:24].rstrip("�")
    ids = run.tokenizer.encode(prompt)[-run.block // 2 :]
    sampling = Sampling(max_new_tokens=run.settings.sample_tokens)
    run.raw.eval()
    with core_device.autocast(run.device, run.dtype):
        text = complete(run.raw, run.tokenizer, [ids], sampling, [run.settings.seed], should_stop=lambda: stop.raised)[0].text
    run.raw.train()
    return {"prompt": prompt, "text": text}


# ---------------------------------------------------------------- what the user reads


def introduce(run: Run, pace: Pace) -> None:
    total, inner = run.raw.count_parameters()
    guess = math.log(run.tokenizer.n_vocab)
    rates: dict[float, int] = {}
    for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
        rates[group["full_lr"]] = rates.get(group["full_lr"], 0) + sum(p.numel() for p in group["params"])
    compiled = ", compiled" if run.machine["compiled"] else ""
    terminal.say(f"model      {total:,} parameters, {inner:,} of them outside embedding and head; a blind guess would have a loss of {guess:.2f}")
    terminal.say(f"optimiser  {run.settings.optimizer}: " + ", ".join(f"{count:,} parameters at {rate:g}" for rate, count in rates.items()))
    unit = "rows" if run.turns else "tokens"
    more = f" and {len(run.data.numbers) - len(run.data):,} reworded" if run.settings.reworded else ""
    sizes = f"{len(run.data):,} training{more} and {len(run.val):,} validation {unit}"
    terminal.say(f"data       {run.data.folder}: {sizes}, {run.steps_per_epoch:.1f} steps an epoch")
    epochs = run.settings.max_epochs
    if epochs is not None and pace.steps > (fewer := math.ceil(epochs * run.steps_per_epoch)):
        told = f"{pace.steps:,} steps, {pace.steps / run.steps_per_epoch:.1f} epochs, since min_iters says so"
        terminal.say(f"length     {told}; max_epochs={epochs:g} alone (--min_iters=none) would be {fewer:,} steps")
    terminal.say(f"machine    {run.device}, {run.settings.dtype}, torch {run.machine['torch']}{compiled}")


def finite(run: Run, loss: float) -> float:
    """The loss; UserError if there is none any more."""
    if not math.isfinite(loss):
        advice = f"lower --learning_rate (it is {run.rate:g}); earlier checkpoints are intact, --resume uses them"
        raise UserError(f"the validation loss became {loss} at step {run.state.step:,}: {advice}")
    return loss


def tell(run: Run, pace: Pace, bar: terminal.Progress, loss: float) -> None:
    """The loss of the last steps and the speed, to the bar and the log."""
    state = run.state
    lr = run.optimizers[0].param_groups[0]["lr"]
    rate = pace.recent_steps_per_second(state.step) * run.tokens_per_step
    peak = None if run.turns else core_device.peak_flops(run.device)  # of questions only a part of the work is counted
    mfu = rate * run.raw.flops_per_token() / (peak * run.processes.world) if peak else None
    left = pace.seconds_left(state)
    told = [f"loss {loss:.3f}", f"lr {lr:.2g}", f"{rate:,.0f} tok/s"]
    told[1:1] = [f"best val {abs(state.best):.3f}"] if state.best is not None else []
    told += [f"MFU {mfu:.0%}"] if mfu else []
    told += [f"{terminal.duration(left)} left"] if left is not None else []
    bar.update(state.step, state.plan.max_iters if state.plan else 0, "  ".join(told))
    if run.processes.is_first:
        epoch = round(state.step / run.steps_per_epoch, 3)
        speed = {"tokens_per_second": round(rate)} | ({"mfu": round(mfu, 4)} if mfu else {})
        run.record("step", step=state.step, epoch=epoch, loss=loss, lr=lr, **speed)


def conclude(run: Run, stopped: int | None, out_of_patience: bool) -> None:
    state, settings = run.state, run.settings
    if stopped:
        again = f"python train.py --resume {shlex.quote(f'--out_dir={settings.out_dir}')}"
        terminal.say(f"stopped by {signal.Signals(stopped).name} after step {state.step:,}; everything is saved. Go on with\n  {again}")
        return
    early = f", stopped early after {state.worse_evals} evaluations without a better one" if out_of_patience else ""
    best = {} if state.best is None else {"best_rouge_l": -state.best} if run.selects_by_answers else {"best_loss": state.best}
    run.record("end", step=state.step, best_step=state.best_step, **best, kept_step=state.kept_step, seconds=round(state.seconds, 2))
    left_out = f", {state.skipped:,} of them left out" if state.skipped else ""
    terminal.say(f"done       {state.step:,} steps{left_out}, {state.step / run.steps_per_epoch:.2f} epochs in {terminal.duration(state.seconds)}{early}")
    for name, value in best.items():
        what = name.removeprefix("best_").replace("rouge_l", "ROUGE-L")
        kept = "that model" if state.kept_step == state.best_step else f"that of step {state.kept_step:,}, as good but for chance,"
        terminal.say(f"best       val {what} {value:.4f} at step {state.best_step:,}: {kept} is in {run.out_dir}, its curve in loss.png")
    terminal.say(f'next       python sample.py {shlex.quote(f"--out_dir={settings.out_dir}")} --start="…"')


def dry_run(run: Run) -> int:
    """Size, memory, time and disk, measured on a few real steps; writes nothing."""
    run.raw.train()
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        train_step(run)
        core_device.synchronise(run.device)
        seconds.append(time.perf_counter() - began)
    per_step = sorted(seconds[3:])[2]
    steps = Pace(run.settings, run.steps_per_epoch, run.processes, run.device).steps_at(per_step)
    total, inner = run.raw.count_parameters()
    if run.processes.is_first:
        rows = f"{run.rows_per_step} rows, {run.tokens_per_step:,.0f} trained tokens"
        print(f"parameters   {total:,}, {inner:,} of them outside embedding and head; vocabulary {run.raw.config.vocab_size:,}")
        print(f"step         {rows} in {per_step:.3f} s, {run.tokens_per_step / per_step:,.0f} tokens/s")
        print(f"run          {steps:,} steps, {steps / run.steps_per_epoch:.2f} epochs, {terminal.duration(steps * per_step)} and the evaluations")
        print(f"memory       {size(core_device.peak_memory(run.device))} at the peak, on {run.device} in {run.settings.dtype}")
        print(f"disk         {size(run.bytes_per_checkpoint())} a checkpoint, {checkpoints.KEEP} are kept; {size(4 * total)} the model")
    return 0
