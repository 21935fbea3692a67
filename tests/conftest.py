import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
import scvi
import torch
from hypothesis import HealthCheck, settings

matplotlib.use("agg")
for name, examples in {"ci": 100, "nightly": 2000}.items():
    settings.register_profile(
        name,
        max_examples=examples,
        derandomize=name == "ci",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real data sets: ``SCDISENTANGLE_REAL_DATA``, or beside the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SCDISENTANGLE_REAL_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not in {folder}")
    return folder


@pytest.fixture(autouse=True)
def _one_thread():
    """Small models gain nothing from more, and numba raises the number behind PyTorch's back."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _figures_closed():
    yield
    plt.close("all")


@pytest.fixture(autouse=True)
def _logs_elsewhere(tmp_path):
    scvi.settings.logging_dir = tmp_path / "scvi_log"
