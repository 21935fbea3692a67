"""One seed, one result, whatever loads the data and whatever runs beside it; nothing left open."""

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scvi
import torch

from scdisentangle import DisentangleModel, data

LINUX_FILES = "/proc/self/fd"


def latents(seed, objective="contrastive", epochs=2, **kwargs):
    torch.set_num_threads(1)
    scvi.settings.seed = seed
    adata = data.simulated(n_cells=150, n_genes=50)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=16, objective=objective)
    model.train(epochs, batch_size=32, enable_progress_bar=False, **kwargs)
    return model.get_latent_representation(representation="joint")


@pytest.fixture(scope="module")
def expected():
    return {seed: latents(seed) for seed in (0, 1)}


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_the_number_of_workers_changes_nothing(expected, num_workers):
    again = latents(0, datasplitter_kwargs={"num_workers": num_workers})
    np.testing.assert_array_equal(again, expected[0])


def test_the_sparse_loader_changes_nothing(expected):
    np.testing.assert_allclose(latents(0, load_sparse_tensor=True), expected[0], atol=1e-5)


@pytest.mark.parametrize("objective", ["mutual_information", "gradient_penalty", "local_batch_mmd"])
def test_objectives_that_draw_or_fit_are_reproducible_too(objective):
    np.testing.assert_array_equal(latents(3, objective), latents(3, objective))


IN_A_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy, test_load
numpy.save(sys.argv[2], test_load.latents(int(sys.argv[3])))
"""


def test_processes_at_once_give_what_each_gives_alone(expected, tmp_path):
    here = os.path.dirname(__file__)
    running = {
        seed: subprocess.Popen(
            [sys.executable, "-c", IN_A_PROCESS, here, str(tmp_path / f"{seed}.npy"), str(seed)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for seed in expected
    }
    for seed, process in running.items():
        assert process.wait() == 0
        np.testing.assert_array_equal(np.load(tmp_path / f"{seed}.npy"), expected[seed])


def test_threads_at_once_train_their_own_models():
    """They share PyTorch's random numbers, so that the codes are not those of a run alone."""
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(latents, range(3)))
    for z in found:
        assert z.shape == (150, 38)
        assert np.isfinite(z).all()
    assert not np.allclose(found[0], found[1])


def test_two_hundred_batches():
    adata = data.simulated(n_cells=600, n_genes=50, n_batches=200)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=16)
    model.train(2, enable_progress_bar=False)
    assert np.isfinite(model.get_latent_representation(representation="joint")).all()
    assert model.predict_batch(soft=True).shape == (600, 200)


@pytest.mark.skipif(not os.path.isdir(LINUX_FILES), reason="open files are counted on Linux")
def test_no_file_is_left_open(tmp_path, expected):
    gc.collect()  # what earlier tests left is not to be closed in between
    before = len(os.listdir(LINUX_FILES))
    for i in range(3):
        latents(i, checkpoint=tmp_path / f"state{i}")
    adata = data.simulated(n_cells=60, n_genes=30)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=8)
    model.train(1, enable_progress_bar=False)
    for i in range(3):
        model.save(tmp_path / f"model{i}", save_anndata=True)
        DisentangleModel.load(tmp_path / f"model{i}")
    assert len(os.listdir(LINUX_FILES)) == before
