import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scdisentangle import DisentangleModel, InputError, pl
from scdisentangle.data import simulated

EPOCHS = 4


@pytest.fixture(scope="module")
def model():
    adata = simulated(n_cells=100, n_genes=40, n_types=2)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    options = {"objective": {"hsic": 1.0, "batch_mmd": 0.5}, "nio_flow": "detached"}
    model = DisentangleModel(adata, **options)
    model.train(EPOCHS, enable_progress_bar=False, check_val_every_n_epoch=1)
    return model


def curves(axes):
    return {
        (ax.get_title(), line.get_label()): np.asarray(line.get_ydata())
        for ax in axes
        for line in ax.lines
    }


def test_every_term_and_every_schedule(model, tmp_path):
    axes = pl.losses(model, show=False, save=tmp_path / "losses.png")
    drawn = curves(axes)
    history = {key: frame.iloc[:, 0].to_numpy(float) for key, frame in model.history.items()}
    expected = {
        ("loss", "training"): "train_loss",
        ("loss", "validation"): "validation_loss",
        ("reconstruction loss", "training"): "reconstruction_loss_train",
        ("classification loss", "validation"): "classification_loss_validation",
        ("hsic", "training"): "hsic_train",
        ("batch mmd", "validation"): "batch_mmd_validation",
        ("weighted terms (training)", "batch mmd"): "batch_mmd_weighted_train",
        ("weights", "disentanglement"): "disentanglement_weight",
        ("noise level", "noise level"): "noise_level",
    }
    for curve, key in expected.items():
        np.testing.assert_array_equal(drawn[curve], history[key])
        assert len(drawn[curve]) == EPOCHS
    assert plt.imread(tmp_path / "losses.png").std() > 0.05


def test_the_history_draws_as_the_model_does(model):
    first, second = (
        curves(pl.losses(model, show=False)),
        curves(pl.losses(model.history, show=False)),
    )
    assert first.keys() == second.keys()


def test_legends_columns_and_terms_that_are_zero():
    epochs = pd.RangeIndex(3, name="epoch")
    history = {
        "a_train": pd.DataFrame({"a_train": [3.0, 2.0, 1.0]}, index=epochs),
        "a_validation": pd.DataFrame({"a_validation": [4.0, 3.0, 2.0]}, index=epochs),
        "b_train": pd.DataFrame({"b_train": [1.0, 1.0, 1.0]}, index=epochs),
        "kl_local_train": pd.DataFrame({"kl_local_train": [0.0, 0.0, 0.0]}, index=epochs),
        "kl_weight": pd.DataFrame({"kl_weight": [1.0, 1.0, 1.0]}, index=epochs),
    }
    axes = pl.losses(history, n_columns=1, show=False)
    assert [ax.get_title() for ax in axes] == ["a", "b"]
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["training", "validation"]
    assert axes[1].get_legend() is None
    assert axes[0].get_position().x0 == axes[1].get_position().x0


def test_weighted_terms_are_those_of_training_and_what_is_no_term_is_left_out():
    names = ["a_train", "a_weighted_train", "a_weighted_validation", "elbo_train"]
    names += ["elbo_validation", "kl_global_train", "train_loss_step"]
    for order in (names, names[::-1]):
        history = {name: pd.DataFrame({name: [1.0 + names.index(name)] * 2}) for name in order}
        axes = pl.losses(history, show=False)
        drawn = {key: values.tolist() for key, values in curves(axes).items()}
        assert drawn == {
            ("a", "training"): [1.0, 1.0],
            ("weighted terms (training)", "a"): [2.0, 2.0],
        }


def test_a_single_epoch_is_a_point_to_be_seen():
    for n_epochs, marker in ((1, "o"), (2, "None")):
        history = {"a_train": pd.DataFrame({"a_train": np.ones(n_epochs)})}
        (ax,) = pl.losses(history, show=False)
        assert [line.get_marker() for line in ax.lines] == [marker]


def test_a_model_that_is_not_trained():
    adata = simulated(n_cells=30, n_genes=40, n_types=2)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    with pytest.raises(InputError, match="call model.train()"):
        pl.losses(DisentangleModel(adata), show=False)
    with pytest.raises(InputError, match="or its history, not AnnData"):
        pl.losses(adata, show=False)


def test_in_axes_of_the_caller(model):
    expected = curves(pl.losses(model, show=False))
    _, axes = plt.subplots(5, 4)
    drawn = pl.losses(model, ax=axes, show=False)
    assert list(drawn) == list(axes.flat[: len(drawn)])
    found = curves(drawn)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    with pytest.raises(InputError, match="ax has 1 axes"):
        pl.losses(model, ax=[axes[0, 0]], show=False)
    with pytest.raises(InputError, match="n_columns=0"):
        pl.losses(model, n_columns=0, show=False)
