from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn import functional

from scdisentangle.objectives import batch_cross_entropy


@pytest.fixture
def example():
    batch = torch.tensor([0, 0, 0, 0, 0, 1, 1, 3])  # batch 2 is not in the minibatch
    return torch.randn(8, 4).double(), batch


def test_equals_scikit_learn(example):
    logits, batch = example
    expected = log_loss(batch, logits.softmax(1).numpy(), labels=range(4))
    assert batch_cross_entropy(logits, batch).item() == pytest.approx(expected)


def test_equals_the_one_hot_form(example):
    logits, batch = example
    one_hot = functional.one_hot(batch, 4).double()
    expected = -(one_hot * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(batch_cross_entropy(logits, batch), expected)


def test_balanced_is_the_mean_of_the_batches_means(example):
    logits, batch = example
    probabilities = logits.softmax(1).numpy()
    means = [
        log_loss(batch[batch == b], probabilities[batch == b], labels=range(4)) for b in (0, 1, 3)
    ]
    assert batch_cross_entropy(logits, batch, balanced=True).item() == pytest.approx(np.mean(means))


def test_gradient_is_softmax_minus_one_hot(example):
    logits, batch = example
    logits.requires_grad_()
    batch_cross_entropy(logits, batch).backward()
    expected = (logits.softmax(1) - functional.one_hot(batch, 4)) / len(batch)
    torch.testing.assert_close(logits.grad, expected.detach())
