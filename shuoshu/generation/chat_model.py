"""A model that continues texts or, if it learned to, answers questions: how it reads what it is given."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shuoshu.core.device import pick_dtype
from shuoshu.core.errors import UserError
from shuoshu.core.settings import SampleSettings
from shuoshu.core.terminal import shorten
from shuoshu.generation.answers import render_question
from shuoshu.generation.sampling import SamplingParams, TextGenerator
from shuoshu.models.weights import LoadedModel


class ChatModel(TextGenerator):
    def __init__(self, loaded: LoadedModel, device: torch.device, dtype: str = "auto") -> None:
        wanted = "float32" if dtype == "auto" and device.type != "cuda" else dtype
        super().__init__(loaded.model.to(pick_dtype(wanted, device)), loaded.tokenizer)
        self.step, self.task, self.turns = loaded.step, loaded.task, loaded.turns

    def question_ids(self, text: str, before: Sequence[dict[str, str]] = ()) -> list[int]:
        """A question's ids; of the conversation before it as much as the model learned to follow and half its block holds."""
        asked = {"role": "user", "content": text.strip()}
        if not asked["content"]:
            raise UserError(
                "a question is empty: give one with --start, or --chat; --continue_text continues text"
            )
        history = [*before[max(0, len(before) - 2 * (self.turns - 1)) :], asked]
        while len(history) > 1 and len(render_question(self.tokenizer, history)) > self.block // 2:
            history = history[2:]
        ids = render_question(self.tokenizer, history)
        if len(ids) >= self.block:
            raise UserError(
                f"a question of {len(ids):,} tokens is longer than the {self.block:,} that this model reads: {shorten(text[:200], 60)}"
            )
        return ids

    def sampling_params(self, settings: SampleSettings, answers: bool) -> SamplingParams:
        """How it is to choose its words."""
        chosen = {
            name: getattr(settings, name)
            for name in SamplingParams.__dataclass_fields__
            if hasattr(settings, name)
        }
        if settings.temperature is None:
            chosen["temperature"] = 0.0 if answers else SamplingParams.temperature
        return SamplingParams(**chosen, keeps_prompt=answers)
