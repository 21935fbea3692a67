from __future__ import annotations

import numpy as np
import torch

from scdisentangle.objectives import squared_error


def test_squared_error_is_the_squared_euclidean_norm_per_cell():
    x_hat, x = torch.randn(9, 30).double(), torch.randn(9, 30).double()
    expected = np.linalg.norm(x_hat.numpy() - x.numpy(), axis=1) ** 2
    np.testing.assert_allclose(squared_error(x_hat, x), expected)


def test_its_mean_over_cells_is_the_reconstruction_loss_by_hand():
    x_hat = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    assert squared_error(x_hat, x).mean().item() == (1 + 4 + 9) / 2
