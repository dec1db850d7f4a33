"""Measures models on text: perplexity, and continuations of prompts from the text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shuoshu.core.command_settings import EvalSettings
from shuoshu.core.parts import evenly
from shuoshu.evaluation.copies import TrainingText
from shuoshu.evaluation.evaluated_model import (
    EvaluatedModel,
    SplitResult,
    answer_row,
    progress_printer,
)
from shuoshu.evaluation.loss import score
from shuoshu.evaluation.measure_set import MeasureSet
from shuoshu.generation.sampling import SamplingParams, TextGenerator
from shuoshu.text.dataset import TextDataset
from shuoshu.text.windows import text_windows

PROMPTS = 40  # default number of prompts that a model continues
PROMPT_TOKENS = 64  # length of a prompt
CONTINUATION_TOKENS = 100  # default length of a continuation


class Continuation(NamedTuple):
    prompt: str
    written: str  # by the model
    reference: str  # the text itself after the prompt


def measure_text(
    settings: EvalSettings,
    models: Sequence[EvaluatedModel],
    folder: Path,
    splits: Sequence[str],
    source: TrainingText | None,
) -> dict[str, SplitResult]:
    """Measures the models on each split."""
    return {
        split: measure_text_split(settings, models, TextDataset(folder, split), split, source)
        for split in splits
    }


def measure_text_split(
    settings: EvalSettings,
    models: Sequence[EvaluatedModel],
    data: TextDataset,
    split: str,
    source: TrainingText | None,
) -> SplitResult:
    """Perplexity with overlapping and with disjoint windows, and statistics of continuations."""
    prompt_tokens = min(PROMPT_TOKENS, *(model.model.config.block_size // 2 for model in models))
    counts = data.meta["splits"][split]
    result = SplitResult({name: counts[name] for name in ("tokens", "characters", "bytes")})
    for model in models:
        measures = MeasureSet(settings.seed)
        window = model.window
        stride = min(settings.stride or window // 2, window)
        for suffix, step in (("", stride), ("_disjoint", window)):
            start, end = model.tokenizer.start, model.tokenizer.end
            windows = text_windows(data.tokens, start, window, model.rows(window), step)
            scored = score(model.model, model.model, windows, end)
            measures.add_perplexities(scored, data.characters, data.bytes, suffix)
        texts = continue_prompts(settings, model, data, prompt_tokens)
        written, references = [t.written for t in texts], [t.reference for t in texts]
        copies = source.find_copies(written + references) if source and texts else []
        if texts:
            measures.add_text_statistics("", written, copies[: len(written)])
            measures.add_text_statistics("reference_", references, copies[len(written) :])
        if model is models[0]:
            result.counts |= {"window": window, "stride": stride, "prompts": len(texts)}
            result.rows = [
                answer_row(split, number, text.prompt, text.reference, text.written)
                for number, text in enumerate(texts)
            ]
            result.add_copies(copies)
        result.add(model.folder, measures, written)
    return result


def continue_prompts(
    settings: EvalSettings, model: EvaluatedModel, data: TextDataset, prompt_tokens: int
) -> list[Continuation]:
    """Continues prompts from evenly spaced places of the text; empty if the text is too short."""
    length = settings.max_new_tokens or CONTINUATION_TOKENS
    last_start = len(data) - prompt_tokens - length
    count = min(settings.limit or PROMPTS, max(0, last_start // prompt_tokens + 1))
    starts = evenly(max(0, last_start) + 1, count)
    pieces = [data.tokens[start : start + prompt_tokens + length].tolist() for start in starts]
    tokenizer = model.tokenizer
    prompts = [tokenizer.decode(ids[:prompt_tokens]).strip("�") for ids in pieces]
    completions = TextGenerator(model.model, tokenizer).complete_many(
        [tokenizer.encode_prompt(prompt) for prompt in prompts],
        SamplingParams(max_new_tokens=length),
        [settings.seed + number for number in range(count)],
        settings.batch_size,
        progress=progress_printer(count),
    )
    references = [tokenizer.decode(ids[prompt_tokens:]).strip("�") for ids in pieces]
    return [
        Continuation(prompt, completion.text, reference)
        for prompt, completion, reference in zip(prompts, completions, references, strict=True)
    ]
