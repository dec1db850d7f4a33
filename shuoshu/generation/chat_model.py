"""A loaded model that continues texts or, if it was fine-tuned on questions, answers them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch

from shuoshu.core.command_settings import SampleSettings
from shuoshu.core.device import pick_dtype
from shuoshu.core.errors import UserError
from shuoshu.core.terminal import shorten
from shuoshu.generation.answers import render_question
from shuoshu.generation.sampling import SamplingParams, TextGenerator
from shuoshu.models.weights import LoadedModel


def generation_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type of the weights; auto: pick_dtype's choice on CUDA, else float32."""
    if name == "auto" and device.type != "cuda":
        return torch.float32
    return pick_dtype(name, device)


class ChatModel(TextGenerator):
    """A TextGenerator that knows what its model was trained for.

    `base` is that of the model below the adapter of this one.
    """

    def __init__(self, loaded: LoadedModel, base: ChatModel | None = None) -> None:
        super().__init__(loaded.model, loaded.tokenizer, base)
        self.step, self.purpose = loaded.step, loaded.purpose

    def question_ids(
        self, text: str, before: Sequence[dict[str, str]] = (), system: str | None = None
    ) -> list[int]:
        """The ids of a question after a system message and the last messages before it.

        system: None for the one of the training, "" for none; then a chat template may write its
        own. Keeps as many turns as the model was trained on, and fewer if they don't fit into half
        of the block. UserError if the question is empty or if it is, with the system message,
        longer than the block.
        """
        question = {"role": "user", "content": text.strip()}
        if not question["content"]:
            raise UserError(
                "the question is empty: set --start or use --chat; --continue_text continues text"
            )
        system = self.purpose.system if system is None else system.strip()
        first = [{"role": "system", "content": system}] if system else []

        def ids_after(turns: int) -> list[int]:
            earlier = before[len(before) - 2 * turns :]  # a question and an answer for each turn
            return render_question(self.tokenizer, [*first, *earlier, question])

        ids = ids_after(self._fitting_turns(len(before) // 2, ids_after))
        if len(ids) >= self.block:
            what = "a question with its system message" if system else "a question"
            raise UserError(
                f"{what} of {len(ids):,} tokens is longer than the {self.block:,} that this model"
                f" reads: {shorten(text[:200], 60)}"
            )
        return ids

    def _fitting_turns(self, given: int, ids_after: Callable[[int], list[int]]) -> int:
        """How many of the given turns to keep, found without rendering many more than those."""
        trained = given + 1 if self.purpose.turns is None else self.purpose.turns
        most, tried = max(0, min(given, trained - 1)), 1

        def is_too_long(turns: int) -> bool:
            return len(ids_after(turns)) > self.block // 2

        while tried < most and not is_too_long(tried):
            tried *= 2
        return bisect_left(range(1, min(tried, most) + 1), True, key=is_too_long)

    def sampling_params(self, settings: SampleSettings, answers: bool) -> SamplingParams:
        """The sampling parameters in the settings, with a default temperature for the task."""
        names = [name for name in SamplingParams.__dataclass_fields__ if hasattr(settings, name)]
        values = {name: getattr(settings, name) for name in names}
        if settings.temperature is None:
            values["temperature"] = 0.0 if answers else SamplingParams.temperature
        return SamplingParams(**values, keeps_prompt=answers)
