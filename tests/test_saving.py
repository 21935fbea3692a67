"""Files and folders: complete or absent, never followed, never run."""

import datetime
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from scdisentangle import DisentangleModel, InputError, _saving, data


@pytest.fixture(scope="module")
def model():
    adata = data.simulated(n_cells=60, n_genes=30, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch", labels_key="celltype")
    model = DisentangleModel(adata, n_hidden=8)
    model.train(1, enable_progress_bar=False)
    return model


@pytest.fixture
def saved(model, tmp_path):
    model.save(tmp_path / "model", save_anndata=True)
    return tmp_path / "model"


def codes(model):
    return model.get_latent_representation()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["with a space", "Zellen-µ-細胞", "a.b"])
def test_any_name_of_a_folder(model, tmp_path, name):
    model.save(tmp_path / "new" / name, save_anndata=True)
    assert files(tmp_path / "new") == [name]
    assert files(tmp_path / "new" / name) == ["adata.h5ad", "model.pt"]
    np.testing.assert_allclose(codes(DisentangleModel.load(tmp_path / "new" / name)), codes(model))
    assert DisentangleModel.load_registry(tmp_path / "new" / name)["model_name"]


def test_options_that_the_caller_changes_later_are_saved_as_they_were(tmp_path):
    adata = data.simulated(n_cells=60, n_genes=30, seed=0)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    objective = {"contrastive": {"temperature": 0.1}}
    model = DisentangleModel(adata, n_hidden=8, objective=objective)
    objective["contrastive"]["temperature"] = 0.9
    objective["mutual_information"] = 1.0
    model.train(1, enable_progress_bar=False)
    model.save(tmp_path / "model", save_anndata=True)
    loaded = DisentangleModel.load(tmp_path / "model")
    (only,) = loaded.module.disentanglement.objectives.values()
    assert only.temperature == 0.1


def test_two_models_in_one_folder_by_prefix(model, tmp_path):
    model.save(tmp_path / "models", prefix="a_")
    model.save(tmp_path / "models", prefix="b_", overwrite=True)
    assert files(tmp_path / "models") == ["a_model.pt", "b_model.pt"]
    with pytest.raises(InputError, match="with prefix=, one of 'a_', 'b_'.*pass the loaded model"):
        DisentangleModel.load_query_data(model.adata.copy(), str(tmp_path / "models"))
    loaded = DisentangleModel.load(tmp_path / "models", model.adata.copy(), prefix="b_")
    np.testing.assert_allclose(codes(loaded), codes(model))


def test_an_existing_folder_is_left_as_it_is(model, saved):
    before = (saved / "model.pt").read_bytes()
    with pytest.raises(InputError, match=r"already exists.*overwrite=True"):
        model.save(saved)
    assert (saved / "model.pt").read_bytes() == before


def test_overwriting_spares_other_files(model, saved):
    (saved / "notes.txt").write_text("mine")
    model.save(saved, overwrite=True)
    assert files(saved) == ["adata.h5ad", "model.pt", "notes.txt"]
    assert files(saved.parent) == ["model"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_link_is_not_followed(model, tmp_path, overwrite):
    target = tmp_path / "elsewhere"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(InputError, match="symbolic link.*elsewhere"):
        model.save(tmp_path / "link", overwrite=overwrite)
    assert files(target) == []


def test_a_link_inside_the_folder_is_replaced_and_not_written_through(model, saved):
    precious = saved.parent / "precious.txt"
    precious.write_text("thesis")
    (saved / "model.pt").unlink()
    (saved / "model.pt").symlink_to(precious)
    model.save(saved, overwrite=True)
    assert precious.read_text() == "thesis"
    assert not (saved / "model.pt").is_symlink()


SAVE_WITHOUT_SPACE = """
import resource, signal, sys, torch
from scdisentangle import DisentangleModel
model = DisentangleModel.load(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    model.save(sys.argv[1], overwrite=True, save_anndata=sys.argv[2] == "data")
except OSError as error:
    print("OSError:", error)
"""


@pytest.mark.parametrize("what", ["data", "model"])
def test_no_space_is_an_error_and_leaves_the_old_files(model, saved, what):
    """A limit on the size of files, which the system enforces, stands for the full disk."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    assert min(map(len, before.values())) > 20_000
    done = subprocess.run(
        [sys.executable, "-c", SAVE_WITHOUT_SPACE, str(saved), what],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "OSError:" in done.stdout, done.stderr
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert files(saved.parent) == ["model"]


SAVE_AND_DIE = """
import os, signal, sys
from scdisentangle import DisentangleModel, _saving
model = DisentangleModel.load(sys.argv[1])
_saving.flush = lambda path: os.kill(os.getpid(), signal.SIGKILL)
model.save(sys.argv[1], overwrite=True, save_anndata=True)
"""


def test_killed_while_saving(model, saved):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    done = subprocess.run([sys.executable, "-c", SAVE_AND_DIE, str(saved)], check=False)
    assert done.returncode == -9
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    model.save(saved, overwrite=True)
    np.testing.assert_allclose(codes(DisentangleModel.load(saved)), codes(model))


def test_many_that_save_to_one_place_leave_a_whole_model(model, tmp_path):
    def save(_):
        try:
            model.save(tmp_path / "model", overwrite=True)
            return None
        except OSError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(save, range(24))) == [None] * 24
    assert files(tmp_path) == ["model"]
    loaded = DisentangleModel.load(tmp_path / "model", model.adata.copy())
    np.testing.assert_allclose(codes(loaded), codes(model))


def test_of_two_that_create_a_folder_one_is_told(model, tmp_path, monkeypatch):
    folder = tmp_path / "model"

    def overtaken(path):
        folder.mkdir()
        (folder / "model.pt").write_text("of the other")

    monkeypatch.setattr(_saving, "flush", overtaken)
    with pytest.raises(InputError, match="another process"):
        model.save(folder)
    assert (folder / "model.pt").read_text() == "of the other"
    assert files(tmp_path) == ["model"]


class Evil:
    def __reduce__(self):
        return os.system, ("echo > $EVIL_MARK",)


def with_content(saved, change):
    content = torch.load(saved / "model.pt", weights_only=False)
    change(content)
    torch.save(content, saved / "model.pt")


@pytest.mark.parametrize("where", ["top", "state", "attributes", "plain pickle"])
def test_code_in_a_file_is_not_run(saved, tmp_path, monkeypatch, where):
    mark = tmp_path / "ran"
    monkeypatch.setenv("EVIL_MARK", str(mark))
    if where == "plain pickle":
        (saved / "model.pt").write_bytes(pickle.dumps(Evil()))
    else:
        into = {"top": (), "state": ("model_state_dict",), "attributes": ("attr_dict",)}[where]

        def change(content):
            for key in into:
                content = content[key]
            content["evil"] = Evil()

        with_content(saved, change)
    query = data.simulated(n_cells=20, n_genes=30)
    for load in (
        DisentangleModel.load,
        DisentangleModel.load_registry,
        DisentangleModel.view_setup_args,
        partial(DisentangleModel.load_query_data, query),
        partial(DisentangleModel.prepare_query_anndata, query),
        partial(DisentangleModel.prepare_query_mudata, query),
    ):
        with pytest.raises(InputError, match=r"system.*may run code|is not a model file"):
            load(saved)
    assert not mark.exists()
    if where != "plain pickle":
        torch.load(saved / "model.pt", weights_only=False)
        assert mark.exists()  # the file was able to


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short(saved, share):
    whole = (saved / "model.pt").read_bytes()
    (saved / "model.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"model\.pt is not a model file, or is cut short"):
        DisentangleModel.load(saved)


def test_data_cut_short(saved):
    whole = (saved / "adata.h5ad").read_bytes()
    (saved / "adata.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be loaded"):
        DisentangleModel.load(saved)


@pytest.mark.parametrize("content", [{"a": torch.ones(2)}, torch.ones(3), {"attr_dict": {}}])
def test_a_file_of_something_else(saved, content):
    torch.save(content, saved / "model.pt")
    with pytest.raises(InputError, match="no model of scvi-tools"):
        DisentangleModel.load(saved)


def test_a_model_of_another_class(saved):
    with_content(saved, lambda c: c["attr_dict"]["registry_"].update(model_name="SCVI"))
    with pytest.raises(InputError, match="is a SCVI, not a DisentangleModel"):
        DisentangleModel.load(saved)


def test_a_file_of_a_newer_version(saved):
    with_content(saved, lambda c: c["attr_dict"].update(file_format_=_saving.FILE_FORMAT + 1))
    with pytest.raises(
        InputError, match=rf"newer version.*file format {_saving.FILE_FORMAT + 1}.*Update"
    ):
        DisentangleModel.load(saved)


@pytest.mark.parametrize("minified", [False, True])
def test_a_file_from_before_squared_error_trained_codes_by_default(tmp_path, minified):
    adata = data.simulated(n_cells=60, n_genes=30)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=8, code_loss="likelihood")
    model.train(1, enable_progress_bar=False)
    expected = codes(model)
    if minified:
        mean, variance = model.get_latent_representation(return_dist=True)
        adata.obsm["X_latent_qzm"], adata.obsm["X_latent_qzv"] = mean, variance
        model.minify_adata()
    model.save(tmp_path / "model", save_anndata=True)

    def of_then(content):
        content["attr_dict"]["file_format_"] = 10
        del content["attr_dict"]["init_params_"]["kwargs"]["module_kwargs"]["code_loss"]

    with_content(tmp_path / "model", of_then)
    loaded = DisentangleModel.load(tmp_path / "model")
    np.testing.assert_allclose(codes(loaded), expected, atol=1e-6)
    assert loaded.minified_data_type == model.minified_data_type
    assert loaded.module.code_loss == "likelihood"
    assert loaded.module.lambda_dis == pytest.approx(0.3)
    assert not loaded.module.training
    loaded.save(tmp_path / "again", save_anndata=True)
    again = DisentangleModel.load(tmp_path / "again")
    assert again.module.code_loss == "likelihood"
    np.testing.assert_allclose(codes(again), expected, atol=1e-6)
    if not minified:
        again.train(1, enable_progress_bar=False)
        assert again.history["reconstruction_loss_train"].notna().all(axis=None)


def test_a_file_from_before_the_weight_of_the_first_components_was_in_it(tmp_path):
    """It was a quarter."""
    adata, saved = data.simulated(n_cells=60, n_genes=30), tmp_path / "model"
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=8)
    model.train(1, enable_progress_bar=False)
    of_today = codes(model)
    model.save(saved, save_anndata=True)
    model.module.encoder.shortcut.fill_(0.25)
    of_then = codes(model)
    assert not np.allclose(of_then, of_today, atol=1e-3)

    def without(content):
        content["attr_dict"]["file_format_"] = 11
        del content["model_state_dict"]["encoder.shortcut"]

    with_content(saved, without)
    loaded = DisentangleModel.load(saved)
    np.testing.assert_allclose(codes(loaded), of_then, atol=1e-6)
    loaded.save(saved, overwrite=True, save_anndata=True)
    np.testing.assert_allclose(codes(DisentangleModel.load(saved)), of_then, atol=1e-6)


@pytest.mark.parametrize(
    ("flow", "names"),
    [
        ("quantized", {"codes": "codebook.codes"}),
        ("variational", {"mean": "prior_nio_mean", "log_scale": "prior_nio_log_scale"}),
        ("free", {"means": "nio_means.means"}),
    ],
)
def test_a_query_from_before_tensors_of_z_nio_had_their_names(tmp_path, flow, names):
    """It gives what it gave, and goes on with the training of its own batch."""
    adata, saved = data.simulated(n_cells=90, n_genes=30), tmp_path / "query"
    is_new = (adata.obs["batch"] == "batch_2").to_numpy()
    reference = adata[~is_new].copy()
    DisentangleModel.setup_anndata(reference, batch_key="batch")
    model = DisentangleModel(reference, n_hidden=8, nio_flow=flow)
    model.train(1, enable_progress_bar=False)
    query = DisentangleModel.load_query_data(adata[is_new].copy(), model)
    query.train(1, enable_progress_bar=False)
    expected = query.get_latent_representation(representation="joint")
    query.save(saved, save_anndata=True)

    def of_then(content):
        content["attr_dict"]["file_format_"] = 12
        known = content["attr_dict"]["frozen_"]["known"]
        for tensors in (content["model_state_dict"], known):
            for name, once in names.items():
                if f"flow.{name}" in tensors:
                    tensors[once] = tensors.pop(f"flow.{name}")

    with_content(saved, of_then)
    loaded = DisentangleModel.load(saved)
    found = loaded.get_latent_representation(representation="joint")
    np.testing.assert_allclose(found, expected, atol=1e-6)
    before = loaded.module.flow.of_batch.clone()
    loaded.train(2, enable_progress_bar=False)
    moved = (loaded.module.flow.of_batch != before).any(dim=1)
    assert moved.tolist() == [False, False, True]


def test_weights_that_do_not_fit(saved):
    with_content(saved, lambda c: c["model_state_dict"].pop("log_dispersion"))
    with pytest.raises(InputError, match=r"(?s)cannot be loaded.*log_dispersion"):
        DisentangleModel.load(saved)


def test_no_model_there(tmp_path):
    with pytest.raises(InputError, match=r"no model file.*nothing.*save\(\)"):
        DisentangleModel.load(tmp_path / "nothing", adata=False)


@pytest.mark.parametrize("activation", ["ReLU", "Sigmoid", "Softplus"])
def test_a_model_with_an_activation_of_its_own_loads(activation, tmp_path):
    adata = data.simulated(n_cells=60, n_genes=30)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    options = {"kl_weight_bio": 1.0, "var_activation": getattr(torch.nn, activation)()}
    model = DisentangleModel(adata, n_hidden=8, **options)
    model.train(1, enable_progress_bar=False)
    model.save(tmp_path / "model")
    loaded = DisentangleModel.load(tmp_path / "model", adata=adata)
    for found, expected in zip(
        loaded.get_latent_representation(return_dist=True),
        model.get_latent_representation(return_dist=True),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("activation", [torch.exp, lambda output: output.exp()])
def test_a_model_that_would_not_be_loaded_is_not_saved(tmp_path, activation):
    adata = data.simulated(n_cells=60, n_genes=30)
    DisentangleModel.setup_anndata(adata, batch_key="batch")
    model = DisentangleModel(adata, n_hidden=8, kl_weight_bio=1.0, var_activation=activation)
    with pytest.raises(InputError, match="would not be loaded.*var_activation.*Softplus"):
        model.save(tmp_path / "model")
    assert not any(tmp_path.iterdir())


def test_a_model_is_fetched_from_where_it_is_kept(model, saved, tmp_path):
    handler = partial(SimpleHTTPRequestHandler, directory=str(saved))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        loaded = DisentangleModel.load(
            tmp_path / "fetched",
            adata=model.adata,
            backup_url=f"http://127.0.0.1:{server.server_port}/model.pt",
        )
        server.shutdown()
    expected = model.get_latent_representation()
    np.testing.assert_array_equal(loaded.get_latent_representation(), expected)


SAVES = """
import sys
from scdisentangle import DisentangleModel
model = DisentangleModel.load(sys.argv[1])
for _ in range(10):
    model.save(sys.argv[2], overwrite=True)
"""


def test_two_processes_that_save_to_one_place_leave_a_whole_model(saved, model, tmp_path):
    target = tmp_path / "one place"
    command = [sys.executable, "-W", "ignore", "-c", SAVES, str(saved), str(target)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    loaded = DisentangleModel.load(target, adata=model.adata)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), model.get_latent_representation()
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "one place"]


def test_saving_data_that_stay_on_disk_leaves_them_where_they_are(model, tmp_path):
    model.adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    DisentangleModel.setup_anndata(backed, batch_key="batch")
    trained = DisentangleModel(backed, n_hidden=8)
    trained.train(1, enable_progress_bar=False)
    expected = codes(trained)
    for folder in ("first", "second"):
        trained.save(tmp_path / folder, save_anndata=True)
        assert backed.filename == tmp_path / "cells.h5ad"
        np.testing.assert_array_equal(codes(trained), expected)
        np.testing.assert_array_equal(codes(DisentangleModel.load(tmp_path / folder)), expected)
    np.testing.assert_array_equal(backed.to_memory().X.toarray(), model.adata.X.toarray())


@pytest.mark.parametrize(
    "batches",
    [
        pd.cut(np.arange(60), 3),
        [datetime.date(2020, 1, 1 + i % 2) for i in range(60)],
        pd.PeriodIndex(["2020-01", "2021-01"] * 30, freq="M"),
        pd.to_datetime(["2020-01-01", "2021-01-02"] * 30).tz_localize("UTC"),
        [Decimal(i % 2) for i in range(60)],
    ],
    ids=["intervals", "dates", "periods", "times", "decimals"],
)
def test_batches_of_any_type_are_saved(tmp_path, batches):
    adata = data.simulated(n_cells=60, n_genes=30, seed=0)
    adata.obs["on"] = batches
    DisentangleModel.setup_anndata(adata, batch_key="on")
    model = DisentangleModel(adata, n_hidden=8)
    model.train(1, enable_progress_bar=False)
    model.save(tmp_path / "model")
    loaded = DisentangleModel.load(tmp_path / "model", adata=adata)
    np.testing.assert_array_equal(codes(loaded), codes(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"save_kwargs": {"pickle_protocol": 5}}, "save_kwargs has 'pickle_protocol'"),
        ({"save_anndata": True}, "saves an AnnData or a MuData.*not there. Leave it out"),
    ],
)
def test_what_could_not_be_read_again_or_is_not_there_is_not_saved(saved, options, message):
    loaded = DisentangleModel.load(saved, adata=False)
    with pytest.raises(InputError, match=message):
        loaded.save(saved.parent / "other", **options)
    assert files(saved.parent) == ["model"]


def test_a_model_is_loaded_as_a_class_that_names_it(saved, model):
    class Other(DisentangleModel):
        pass

    with pytest.raises(InputError, match="not a Other"):
        Other.load(saved)
    loaded = Other.load(saved, allowed_classes_names_list=["DisentangleModel"])
    np.testing.assert_allclose(codes(loaded), codes(model), atol=1e-6)
