"""A loaded model that continues texts or, if it was fine-tuned on questions, answers them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shuoshu.core.command_settings import SampleSettings
from shuoshu.core.device import pick_dtype
from shuoshu.core.errors import UserError
from shuoshu.core.terminal import shorten
from shuoshu.generation.answers import render_question
from shuoshu.generation.sampling import SamplingParams, TextGenerator
from shuoshu.models.weights import LoadedModel, convert_weights


class ChatModel(TextGenerator):
    """A TextGenerator that knows what its model was trained for."""

    def __init__(self, loaded: LoadedModel, device: torch.device, dtype: str = "auto") -> None:
        """Converts the weights to `dtype`; auto: to pick_dtype's choice on CUDA, else float32."""
        if dtype == "auto" and device.type != "cuda":
            dtype = "float32"
        model = convert_weights(loaded.model, pick_dtype(dtype, device))
        super().__init__(model, loaded.tokenizer)
        self.step, self.purpose = loaded.step, loaded.purpose

    def question_ids(
        self, text: str, before: Sequence[dict[str, str]] = (), system: str | None = None
    ) -> list[int]:
        """The ids of a question after a system message and the last messages before it.

        system: None for the one of the training, "" for none. Keeps as many turns as the model was
        trained on, and fewer if they don't fit into half of the block. UserError if the question is
        empty or if it is, with the system message, longer than the block.
        """
        question = {"role": "user", "content": text.strip()}
        if not question["content"]:
            raise UserError(
                "the question is empty: set --start or use --chat; --continue_text continues text"
            )
        system = self.purpose.system if system is None else system.strip()
        first = [{"role": "system", "content": system}] if system else []
        earlier = 2 * (self.purpose.turns - 1)  # messages: a question and an answer for each turn
        history = [*before[max(0, len(before) - earlier) :], question]
        ids = render_question(self.tokenizer, [*first, *history])
        while len(history) > 1 and len(ids) > self.block // 2:
            history = history[2:]
            ids = render_question(self.tokenizer, [*first, *history])
        if len(ids) >= self.block:
            what = "a question with its system message" if system else "a question"
            raise UserError(
                f"{what} of {len(ids):,} tokens is longer than the {self.block:,} that this model"
                f" reads: {shorten(text[:200], 60)}"
            )
        return ids

    def sampling_params(self, settings: SampleSettings, answers: bool) -> SamplingParams:
        """The sampling parameters in the settings, with a default temperature for the task."""
        names = [name for name in SamplingParams.__dataclass_fields__ if hasattr(settings, name)]
        values = {name: getattr(settings, name) for name in names}
        if settings.temperature is None:
            values["temperature"] = 0.0 if answers else SamplingParams.temperature
        return SamplingParams(**values, keeps_prompt=answers)
