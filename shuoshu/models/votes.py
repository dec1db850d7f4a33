"""The loss of a GPT whose tokens vote: every token of a text has a say in the text's label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import GPT
from shuoshu.core.errors import UserError
from shuoshu.text.dataset import IGNORE
from shuoshu.text.tokenizer import Tokenizer

# Bytes that no text in UTF-8 has, then control characters that hardly any text has.
MARK_BYTES = [0xC0, 0xC1, *range(0xF5, 0x100), *range(0x01, 0x09), *range(0x0E, 0x20)]


def label_marks(tokenizer: Tokenizer, count: int) -> list[int]:
    """The tokens that stand for so many labels: those of bytes that texts don't have.

    UserError if there are not enough of them.
    """
    numbers = {text: number for number, text in enumerate(tokenizer.token_bytes)}
    marks = [numbers[bytes([byte])] for byte in MARK_BYTES if bytes([byte]) in numbers]
    if len(marks) < count:
        raise UserError(
            f"judge_by=text is for at most {len(marks)} labels, but there are {count}:"
            " set --judge_by=answer"
        )
    return marks[:count]


def mean_votes(model: GPT, ids: Tensor, lengths: Tensor, marks: Tensor) -> Tensor:
    """ids (B, T), lengths (B), marks (M) → (B, M): the mean logit of each mark over a row's tokens.

    A mark is the token that stands for a label. Tokens from lengths[b] on are padding.
    """
    logits = F.linear(model.hidden(ids), model.lm_head.weight[marks]).float()  # (B, T, M)
    is_text = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # (B, T)
    return (logits * is_text[..., None]).sum(1) / lengths[:, None]


class VotingModel(nn.Module):
    """Computes the loss of the labels for a model whose tokens vote."""

    def __init__(self, model: GPT, marks: Sequence[int], weights: Sequence[float] | None) -> None:
        """`weights`: of the labels in the loss; None: all are 1."""
        super().__init__()
        self.model = model
        device = model.lm_head.weight.device
        self.register_buffer("marks", torch.tensor(marks, device=device), persistent=False)
        weights = torch.tensor(weights or [1.0] * len(marks), device=device)
        self.register_buffer("weights", weights, persistent=False)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor,
        reduction: str | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """ids (B, T), targets (B, T) → the sum over the rows of the weighted loss of their labels.

        The only target of a row is its label's mark, at the last token of its text. With a
        reduction the texts are read, not judged: the result is that of GPT.forward.
        """
        if reduction:
            return self.model(ids, targets, reduction, positions)
        places = (targets != IGNORE).int().argmax(1)  # (B)
        true = targets.gather(1, places[:, None])  # (B, 1)
        numbers = (true == self.marks).int().argmax(1)  # (B)
        votes = mean_votes(self.model, ids, places + 1, self.marks)
        return F.cross_entropy(votes, numbers, weight=self.weights, reduction="sum")
