"""The loss of votes is the cross-entropy of the mean logit over a text's own tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model import GPT, GPTConfig
from shuoshu.core.errors import UserError
from shuoshu.models.votes import MARK_BYTES, VotingModel, label_marks, mean_votes
from shuoshu.text.dataset import IGNORE

MARKS = [3, 7, 9]
LENGTHS = [5, 2, 8]
LABELS = [2, 0, 1]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=32)).eval()


def batch():
    ids = torch.randint(0, 64, (3, 8), generator=torch.Generator().manual_seed(1))
    targets = torch.full((3, 8), IGNORE)
    for row, (length, label) in enumerate(zip(LENGTHS, LABELS, strict=True)):
        targets[row, length - 1] = MARKS[label]
    return ids, targets


def losses_by_hand(model, ids):
    losses = []
    for row, (length, label) in enumerate(zip(LENGTHS, LABELS, strict=True)):
        logits = model(ids[row : row + 1, :length])[0][:, MARKS]  # (length, labels)
        losses.append(F.cross_entropy(logits.mean(0), torch.tensor(label)))
    return torch.stack(losses)


def test_the_loss_is_the_cross_entropy_of_the_mean_logit_of_each_text(model):
    ids, targets = batch()
    expected = losses_by_hand(model, ids).sum()
    torch.testing.assert_close(VotingModel(model, MARKS, None)(ids, targets), expected)


def test_the_weight_of_a_label_multiplies_its_loss(model):
    ids, targets = batch()
    weights = [0.5, 1.0, 2.5]
    expected = (losses_by_hand(model, ids) * torch.tensor([weights[n] for n in LABELS])).sum()
    torch.testing.assert_close(VotingModel(model, MARKS, weights)(ids, targets), expected)


def test_padding_has_no_vote(model):
    ids, _ = batch()
    lengths, marks = torch.tensor(LENGTHS), torch.tensor(MARKS)
    before = mean_votes(model, ids, lengths, marks)
    changed = ids.clone()
    for row, length in enumerate(LENGTHS):
        changed[row, length:] = 63 - changed[row, length:]
    torch.testing.assert_close(mean_votes(model, changed, lengths, marks), before)


def test_a_mark_is_the_token_of_a_byte_that_no_text_has(tokenizer):
    marks = label_marks(tokenizer, 5)
    assert len(set(marks)) == 5
    assert [tokenizer.token_bytes[mark] for mark in marks] == [bytes([b]) for b in MARK_BYTES[:5]]
    for byte in MARK_BYTES[:13]:
        with pytest.raises(UnicodeDecodeError):
            bytes([byte, 0x80]).decode()
    ids = tokenizer.encode("他说：“走！”\n\tHello, 12.5% naïve 😀")
    assert not np.isin(ids, marks).any()


def test_more_labels_than_marks_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"at most 39 labels, but there are 40.*judge_by=answer"):
        label_marks(tokenizer, 40)
