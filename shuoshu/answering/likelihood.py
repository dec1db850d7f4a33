"""How probable a model finds given answers to a question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from shuoshu.generation.sampling import TextGenerator, empty_cache

MAX_SCORED_TOKENS = 64  # of an answer: by then it is clear which one it is


@torch.inference_mode()
def answer_log_likelihoods(
    generator: TextGenerator, prompt: Sequence[int], answers: Sequence[Sequence[int]]
) -> np.ndarray:
    """The log-likelihood of each answer, or of its first MAX_SCORED_TOKENS tokens; 0 without any.

    The prompt is read once for all answers. It loses its beginning if the block has no room.
    """
    model = generator.model
    device = model.lm_head.weight.device
    answers = [answer[: min(MAX_SCORED_TOKENS, generator.block)] for answer in answers]
    lengths = np.array([len(answer) for answer in answers])
    longest = int(lengths.max(initial=0))
    if not longest:
        return np.zeros(len(answers))
    prompt = (list(prompt) or [generator.tokenizer.start])[-max(1, generator.block - longest) :]
    cache = empty_cache(model, 1, len(prompt) + longest)
    read = torch.tensor([prompt], device=device)
    first = model.next_logits(read, [len(prompt) - 1], cache).log_softmax(-1)  # (1, V)
    ids = torch.zeros(len(answers), longest, dtype=torch.long)
    for row, answer in enumerate(answers):
        ids[row, : len(answer)] = torch.as_tensor(answer)
    ids = ids.to(device)
    scores = first[0, ids[:, 0]][:, None]
    if longest > 1:
        each = empty_cache(model, len(answers), len(prompt) + longest)
        each.k[:], each.v[:], each.lengths = cache.k, cache.v, cache.lengths * len(answers)
        hidden = model.hidden(ids[:, :-1], each)
        following = model.lm_head(hidden).float().log_softmax(-1)
        following = following.gather(-1, ids[:, 1:, None])[..., 0]
        scores = torch.cat((scores, following), dim=1)
    is_scored = np.arange(longest) < lengths[:, None]
    return np.where(is_scored, scores.cpu().double().numpy(), 0.0).sum(axis=1)


def mean_log_probability(
    generator: TextGenerator, prompt: Sequence[int], ids: Sequence[int]
) -> float:
    """The mean log-probability of the first tokens of a text after the prompt, 0 without tokens."""
    if not ids:
        return 0.0
    [total] = answer_log_likelihoods(generator, prompt, [ids])
    return float(total) / min(len(ids), MAX_SCORED_TOKENS, generator.block)
