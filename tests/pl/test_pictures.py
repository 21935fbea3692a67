"""Pictures are as they were when somebody looked at them.

After a change that is meant: delete the file in ``baseline``, run the test twice, and look at it.
"""

from pathlib import Path

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.testing.compare import compare_images

from scdisentangle import pl

pytestmark = pytest.mark.skipif(
    matplotlib.__version_info__[:2] != (3, 11),
    reason="matplotlib lays out text and axes a little differently in each version; drawn by 3.11",
)
BASELINE = Path(__file__).parent / "baseline"
TOLERANCE = 8.0
"""Root mean square of grey levels: fonts and rounding differ by less, a wrong bar by more."""


def check(figure, name, tmp_path):
    expected, drawn = BASELINE / f"{name}.png", tmp_path / f"{name}.png"
    if not expected.exists():
        figure.savefig(expected, dpi=60)
        pytest.fail(f"{expected} was not there and has been drawn: look at it")
    figure.savefig(drawn, dpi=60)
    assert compare_images(str(expected), str(drawn), TOLERANCE) is None


@pytest.fixture
def adata():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"batch": ["x", "y"] * 60, "type": ["B", "NK", "T"] * 40}).astype("category")
    obs.index = obs.index.astype(str)
    obs["depth"] = np.linspace(0.0, 1.0, 120)
    adata = ad.AnnData(obs=obs)
    for key in ("X_pca", "X_disentangle"):
        adata.obsm[key] = rng.normal(size=(120, 4))
        adata.obsm[f"{key}_umap"] = (
            rng.normal(size=(120, 2)) + 4 * obs[["batch"]].eq("x").to_numpy()
        )
    adata.obsm["X_disentangle_batch"] = obs[["batch"]].eq("x").to_numpy().astype(float)
    return adata


def test_report(report, tmp_path):
    check(pl.report(report, show=False)[0].figure, "report", tmp_path)


def test_leakage(report, tmp_path):
    check(pl.leakage(report, show=False).figure, "leakage", tmp_path)


def test_batch_effect(tmp_path):
    values = np.add.outer(np.linspace(-1, 1, 12), [0.5, 0, -0.5]) * [1, -2, 1]
    effect = pd.DataFrame(values, index=[f"gene {i}" for i in range(12)], columns=list("abc"))
    effect.attrs["unit"] = "log2"
    check(pl.batch_effect(effect, n_genes=4, show=False).figure, "batch_effect", tmp_path)


def test_latents(adata, tmp_path):
    axes = pl.latents(adata, ["batch", "type", "depth"], show=False)
    assert axes[-1, 1].get_xlabel() == "UMAP 1"
    assert axes[-1, 2].get_xlabel() == "one cloud for each value"
    check(axes[0, 0].figure, "latents", tmp_path)


def test_losses(tmp_path):
    epochs = pd.RangeIndex(20, name="epoch")
    curves = {
        "train_loss": 100 / (1 + epochs),
        "validation_loss": 110 / (1 + epochs),
        "classification_loss_train": 1 / (1 + epochs),
        "reconstruction_loss_weighted_train": 90 / (1 + epochs),
        "classification_loss_weighted_train": 10 / (1 + epochs),
        "disentanglement_weight": epochs / 19,
        "noise_level": 0.1 - epochs / 200,
    }
    history = {name: pd.DataFrame({name: values}, index=epochs) for name, values in curves.items()}
    check(pl.losses(history, show=False)[0].figure, "losses", tmp_path)
