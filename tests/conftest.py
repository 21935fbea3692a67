from pathlib import Path

import matplotlib
import pytest
import scvi
import torch

matplotlib.use("agg")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real data sets, beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not beside the repository")
    return folder


@pytest.fixture(autouse=True)
def _one_thread():
    """Small models gain nothing from more, and numba raises the number behind PyTorch's back."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _logs_elsewhere(tmp_path):
    scvi.settings.logging_dir = tmp_path / "scvi_log"
