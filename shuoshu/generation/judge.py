"""Labels texts: how probable each label is, from the answer or from every token of the text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from shuoshu.core.errors import UserError
from shuoshu.generation.answers import render_question
from shuoshu.generation.prompt_files import prompt_of_text
from shuoshu.generation.sampling import TextGenerator, empty_cache, never_stop, prefill
from shuoshu.models.purpose import Labelling
from shuoshu.models.votes import label_marks, mean_votes
from shuoshu.models.weights import LoadedModel
from shuoshu.sft.layouts import template_ends
from shuoshu.sft.rendering import cut_question, longest_answer
from shuoshu.text.tokenizer import Tokenizer

Prompts = Sequence[Sequence[int]]  # each up to where the label begins


class Judge(TextGenerator):
    """A loaded model that labels texts."""

    def __init__(self, loaded: LoadedModel, base: TextGenerator | None = None) -> None:
        super().__init__(loaded.model, loaded.tokenizer, base)
        self.purpose, self.labelling = loaded.purpose, loaded.purpose.labelling
        self.longest = longest_answer(self.tokenizer, self.labelling.labels)
        self.room = self.block - longest_label(self.tokenizer, self.labelling.labels)

    def prompt_of(self, text: str) -> str:
        """The prompt of a text: in the training's template if that has one column, else itself."""
        return prompt_of_text(text, self.labelling.question)

    def messages(self, prompt: str, system: str | None = None) -> list[dict[str, str]]:
        """The conversation before the label. A prompt that is too long has … for its middle.

        This is as in the training. system: the message before it, None for the one of the training.
        UserError if the prompt is empty, or if nothing of it fits into the block.
        """
        if not prompt.strip():
            raise UserError("the text is empty")
        system = self.purpose.system if system is None else system
        messages = [{"role": "system", "content": system}] if system else []
        messages += [{"role": "user", "content": prompt.strip()}]
        if len(render_question(self.tokenizer, messages)) <= self.room:
            return messages
        answer = {"role": "assistant", "content": self.longest}
        ends = template_ends(self.labelling.question)
        cut = cut_question(self.tokenizer, [*messages, answer], self.block + 1, ends)
        if cut is None:
            raise UserError(f"a text doesn't fit into the model's {self.block:,} tokens")
        return cut[:-1]

    def prompt_ids(self, prompt: str, system: str | None = None) -> list[int]:
        """The ids of `messages`; raises UserError like that."""
        return render_question(self.tokenizer, self.messages(prompt, system))

    def probabilities(
        self,
        prompts: Prompts,
        rows: int,
        should_stop: Callable[[], object] = never_stop,
        progress: Callable[[int], None] = lambda done: None,
    ) -> np.ndarray:
        """(prompts, labels): how probable each label is; NaN for prompts after a stop."""
        scores = label_log_probabilities(self, self.labelling, prompts, rows, should_stop, progress)
        return np.exp(scores)


def label_log_probabilities(
    generator: TextGenerator,
    labelling: Labelling,
    prompts: Prompts,
    rows: int,
    should_stop: Callable[[], object] = never_stop,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """(prompts, labels): log-probabilities, which add up to one, with the labelling's bias.

    Prompts are read in batches of `rows`. Those not read before a stop are NaN. `progress` gets
    the number of prompts done after each batch.
    """
    score = score_texts if labelling.judges_by == "text" else score_answers
    scores = np.full((len(prompts), len(labelling.labels)), np.nan)
    done = 0
    for batch in batches_by_length(prompts, rows):
        if should_stop():
            break
        plain = score(generator, [prompts[n] for n in batch], labelling.labels)
        scores[batch] = labelling.correct(plain)
        done += len(batch)
        progress(done)
    return scores


def batches_by_length(prompts: Prompts, rows: int) -> Iterator[list[int]]:
    """Yields the prompts' numbers in batches of up to `rows`, the shortest prompts first."""
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    for start in range(0, len(order), rows):
        yield order[start : start + rows]


# ---------------------------------------------------------------- by the answer


@torch.inference_mode()
def score_answers(generator: TextGenerator, prompts: Prompts, labels: Sequence[str]) -> np.ndarray:
    """(prompts, labels): the log-likelihood of each label as the answer, end token included.

    The prompts are read once for all labels. One that leaves no room in the block for the longest
    label loses its beginning, so that all labels see the same context.
    """
    model, tokenizer = generator.model, generator.tokenizer
    longest = longest_label(tokenizer, labels)
    room = max(1, generator.block - longest)
    prompts = [prompt[-room:] for prompt in prompts]
    scores = np.zeros((len(prompts), len(labels)))
    cache = empty_cache(model, len(prompts), max(map(len, prompts)) + longest)
    first = float64_log_softmax(prefill(model, cache, prompts))
    lengths = list(cache.lengths)
    for column, label in enumerate(labels):
        ids = tokenizer.encode_answer(label)
        cache.lengths = list(lengths)  # forget the previous label; it is overwritten
        total = first[:, ids[0]].clone()
        for token, following in pairwise(ids):
            tokens = torch.full((len(prompts), 1), token, device=cache.k.device)
            logits = model.next_logits(tokens, torch.zeros_like(tokens[:, 0]), cache)
            total += float64_log_softmax(logits)[:, following]
        scores[:, column] = total.numpy()
    return scores


def longest_label(tokenizer: Tokenizer, labels: Sequence[str]) -> int:
    """The number of tokens of a label that the model reads; the last one is only predicted."""
    return max(len(tokenizer.encode_answer(label)) for label in labels) - 1


def float64_log_softmax(logits: Tensor) -> Tensor:
    """log_softmax on the CPU, because Apple GPUs have no float64."""
    return logits.cpu().double().log_softmax(-1)


# ---------------------------------------------------------------- by the text


@torch.inference_mode()
def score_texts(generator: TextGenerator, prompts: Prompts, labels: Sequence[str]) -> np.ndarray:
    """(prompts, labels): the mean over all tokens of a prompt of the logit of each label's mark."""
    model, device = generator.model, generator.model.lm_head.weight.device
    marks = torch.tensor(label_marks(generator.tokenizer, len(labels)), device=device)
    prompts = [prompt[-generator.block :] for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.as_tensor(prompt)
    return mean_votes(model, ids.to(device), lengths.to(device), marks).cpu().double().numpy()
