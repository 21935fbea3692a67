"""Data that stay on the device give what scvi-tools' loader gives."""

import anndata as ad
import numpy as np
import pytest
import scvi
import torch
from scipy import sparse
from scvi.data import AnnTorchDataset

from scdisentangle import DisentangleModel, InputError, NonFiniteError, data
from scdisentangle.data import _loading
from scdisentangle.data._loading import ABOVE_ZERO_KEY, CompressedRows, DeviceRows, HostRows

CPU = torch.device("cpu")


def simulated(convert=sparse.csr_matrix):
    adata = data.simulated(n_cells=150, n_genes=40)
    adata.X = convert(adata.X.toarray() if sparse.issparse(adata.X) else adata.X)
    adata.obs["size"] = np.asarray(adata.X.sum(axis=1)).ravel() + 1.0
    adata.obs["age"] = np.linspace(0, 1, 150)
    adata.obs["sex"] = np.tile(["f", "m"], 75)
    return adata


def setup(adata, everything=True):
    keys = {
        "labels_key": "celltype",
        "size_factor_key": "size",
        "categorical_covariate_keys": ["sex"],
        "continuous_covariate_keys": ["age"],
    }
    DisentangleModel.setup_anndata(adata, batch_key="batch", **(keys if everything else {}))
    return adata


def trained(data_on_device, adata=None, **kwargs):
    scvi.settings.seed = 0
    adata = setup(simulated() if adata is None else adata)
    model = DisentangleModel(adata, n_hidden=16, encode_covariates=True)
    model.train(
        2, batch_size=32, enable_progress_bar=False, data_on_device=data_on_device, **kwargs
    )
    return model


def assert_same(model, other):
    for name, weights in model.module.state_dict().items():
        assert torch.equal(weights, other.module.state_dict()[name]), name
    assert model.history.keys() == other.history.keys()
    for name, curve in model.history.items():
        assert curve.equals(other.history[name]), name


def device_rows_on_the_cpu(manager):
    return DeviceRows(AnnTorchDataset(manager), CPU)


@pytest.fixture(params=["cut on the host", "cut on a device"])
def way(request, monkeypatch):
    if request.param == "cut on a device":
        monkeypatch.setattr(_loading, "HostRows", device_rows_on_the_cpu)


@pytest.mark.parametrize(
    "convert", [sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, np.array]
)
def test_any_matrix_trains_to_the_same_weights(way, convert):
    assert_same(trained(True, simulated(convert)), trained(False, simulated(convert)))


@pytest.mark.parametrize(
    "options",
    [
        {"train_size": 0.5, "validation_size": 0.2, "shuffle_set_split": False},
        {"train_size": 1.0, "datasplitter_kwargs": {"drop_last": True}},
        {"early_stopping": True, "early_stopping_patience": 1, "early_stopping_min_delta": 1e9},
    ],
)
def test_any_split_gives_the_same_weights(way, options):
    assert_same(trained(True, **options), trained(False, **options))


def test_a_run_that_goes_on_gives_the_same_weights(way, tmp_path):
    for data_on_device in (True, False):
        trained(data_on_device, checkpoint=tmp_path / f"{data_on_device}")
    on, off = (trained(on, checkpoint=tmp_path / f"{on}") for on in (True, False))
    assert_same(on, off)


def test_it_is_taken_by_default_and_let_go_of(monkeypatch):
    rows = []

    def kept(manager):
        rows.append(HostRows(manager))
        return rows[-1]

    monkeypatch.setattr(_loading, "HostRows", kept)
    model = trained(None)
    assert len(rows) == 1
    assert rows[0].x is None
    assert model.trainer.datamodule.adata_manager is model.adata_manager
    with pytest.raises(NonFiniteError):
        trained(None, plan_kwargs={"lr": 1e30})
    assert rows[1].x is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"datasplitter_kwargs": {"num_workers": 1}}, "num_workers"),
        ({"datasplitter_kwargs": {"pin_memory": True}}, "pin_memory"),
        ({"load_sparse_tensor": True}, "load_sparse_tensor"),
    ],
)
def test_options_of_the_other_loader_ask_for_it(options, reason):
    with pytest.raises(InputError, match=rf"cannot stay on the device: {reason}"):
        trained(True, **options)


def test_workers_of_the_settings_ask_for_the_other_loader(monkeypatch):
    monkeypatch.setattr(scvi.settings, "dl_num_workers", 1)
    with pytest.raises(InputError, match="dl_num_workers"):
        trained(True)


def test_data_on_disk_stay_there(tmp_path):
    simulated().write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r+")
    with pytest.raises(InputError, match="on disk"):
        trained(True, backed)
    assert np.isfinite(trained(None, backed).history["train_loss"].to_numpy(float)).all()


def test_data_that_do_not_fit_are_cut_on_the_host(monkeypatch):
    monkeypatch.setattr(_loading, "free_bytes", lambda device: 1000)
    assert trained(None, simulated(sparse.csc_matrix)).is_trained
    with pytest.raises(InputError, match="more than 50% of the 0.00 GiB"):
        trained(True, simulated(sparse.csc_matrix))


def test_what_data_need_is_what_they_take():
    manager = DisentangleModel(setup(simulated())).adata_manager
    source = AnnTorchDataset(manager)
    rows = DeviceRows(source, CPU)
    x = rows.sparse["X"]
    tensors = [x.starts, x.lengths_there, x.columns, x.values, *rows.dense.values()]
    there = sum(tensor.nbytes for tensor in tensors)
    assert _loading.bytes_needed(source, torch.device("cuda")) == there
    assert _loading.bytes_needed(source, CPU) == 0


def test_a_matrix_by_columns_is_copied_to_be_cut_by_rows():
    manager = DisentangleModel(setup(simulated(sparse.csc_matrix))).adata_manager
    copy = HostRows(manager).x
    there = copy.data.nbytes + copy.indices.nbytes + copy.indptr.nbytes
    ends = 4 * abs(copy.shape[0] - copy.shape[1])  # of columns, and not of rows
    assert _loading.bytes_needed(AnnTorchDataset(manager), CPU) == pytest.approx(there, abs=ends)


def test_training_without_validation_cannot_stop_early_on_it():
    with pytest.raises(ValueError, match="no validation set"):
        trained(None, train_size=1.0, early_stopping=True)


ODD = sparse.csr_matrix(
    # a value in two parts, a stored zero, an empty row, columns out of order
    (np.array([1.0, 2, 0, 5, 4, 3]), np.array([1, 1, 3, 2, 3, 0]), np.array([0, 2, 3, 3, 6])),
    shape=(4, 5),
)


@pytest.mark.parametrize("rows", [[0], [3, 1, 2], [2], [0, 0, 3]])
def test_odd_rows_are_cut_as_scipy_cuts_them(rows):
    index = torch.tensor(rows)
    cut = CompressedRows(ODD, np.float32, CPU).cut(index, index)
    np.testing.assert_array_equal(cut, ODD.toarray()[rows])
    assert cut.dtype == torch.float32


def test_places_above_zero_are_given_where_they_are_those_of_the_matrix():
    adata = simulated()
    rows = HostRows(DisentangleModel(setup(adata, everything=False)).adata_manager)
    minibatch = rows[[7, 3, 90]]
    expected = np.flatnonzero(adata.X[[7, 3, 90]].toarray())
    np.testing.assert_array_equal(minibatch[ABOVE_ZERO_KEY], expected)
    rows.x.data[0] = 0  # of the first cell: stored, yet not above zero
    assert ABOVE_ZERO_KEY not in rows[[0]]
    assert ABOVE_ZERO_KEY in rows[[1]]
    twice = np.array([0.5, 0.5, 2.0], np.float32), np.array([1, 1, 3]), np.array([0, 3])
    rows.x = sparse.csr_matrix(twice, shape=(1, 60))  # a value in two parts, so in two places
    assert ABOVE_ZERO_KEY not in rows[[0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_what_its_host_gives():
    on, off = (trained(on, accelerator="cuda", devices=1) for on in (True, False))
    for name, weights in on.module.state_dict().items():
        torch.testing.assert_close(weights, off.module.state_dict()[name], rtol=1e-3, atol=1e-4)
