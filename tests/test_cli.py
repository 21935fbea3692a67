import functools
import subprocess
import sys
from importlib.metadata import version

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from scdisentangle import DisentangleModel, _integrate
from scdisentangle._cli import main
from scdisentangle.data import simulated

RESULTS = [
    "adata.h5ad",
    "history.csv",
    "latents.png",
    "losses.png",
    "model",
    "report.png",
    "scores.csv",
]


@pytest.fixture(scope="module")
def adata():
    adata = simulated(n_cells=120, n_genes=60, n_types=2, n_batches=2, seed=3)
    adata.obsm["X_pca"] = np.ones((120, 2))
    return adata


@pytest.fixture(scope="module")
def source(adata, tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "input.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def default_run(tmp_path_factory):
    """Without INPUT, on fewer simulated cells than the default has."""
    out = tmp_path_factory.mktemp("default") / "out"
    small = functools.partial(simulated, n_cells=200, n_genes=80, n_types=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_integrate.data, "simulated", small)
        torch.set_num_threads(2)
        assert main(["integrate", "-o", str(out), "--max-epochs", "2"]) == 0
        assert torch.get_num_threads() == 2
    return out


def run(source, out, *arguments):
    always = ["--batch-key", "batch", "--max-epochs", "1", "-o", str(out)]
    return main(["integrate", str(source), *always, *arguments])


def error_of(capsys):
    """The one line that a failure leaves behind."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_default_run_writes_everything(default_run):
    assert sorted(path.name for path in default_run.iterdir()) == RESULTS
    assert [path.name for path in default_run.parent.iterdir()] == ["out"]
    history = pd.read_csv(default_run / "history.csv", index_col="epoch")
    assert len(history) == 2
    assert {"train_loss", "noise_level", "reconstruction_loss_train"} <= set(history)


def test_default_run_scores(default_run):
    scores = pd.read_csv(default_run / "scores.csv")
    integration = scores[scores["kind"] == "integration"]
    assert set(integration["embedding"]) == {"X_unintegrated", "X_disentangle"}
    assert {"Total", "Total (no silhouette)", "KBET"} <= set(integration["metric"])
    leakage = scores[scores["kind"] == "leakage"]
    assert set(leakage["embedding"]) == {"X_unintegrated", "X_disentangle", "X_disentangle_batch"}
    assert {"all", "mean over labels", "type_0", "batch_1"} <= set(leakage["within"])
    assert scores["value"].between(0, 1).all()
    assert leakage["p_value"].between(0, 1, inclusive="right").all()
    stored = ad.read_h5ad(default_run / "adata.h5ad").uns["integration_scores"]
    total = integration.set_index(["embedding", "metric"])["value"]
    assert total["X_disentangle", "Total"] == pytest.approx(stored.loc["X_disentangle", "Total"])


def test_model_gives_the_latents_that_were_written(default_run):
    adata = ad.read_h5ad(default_run / "adata.h5ad")
    selected = adata[:, adata.var["highly_variable"].to_numpy()].copy()
    model = DisentangleModel.load(default_run / "model", selected)
    for representation, key in (("bio", "X_disentangle"), ("batch", "X_disentangle_batch")):
        again = model.get_latent_representation(representation=representation)
        np.testing.assert_allclose(adata.obsm[key], again, atol=1e-6)
    assert model.registry_["setup_args"]["labels_key"] is None


def test_input_keeps_its_genes_its_keys_and_is_not_scored_without_labels(
    source, adata, tmp_path, capsys
):
    assert run(source, tmp_path / "out", "--n-top-genes", "30", "--seed", "1") == 0
    written = ad.read_h5ad(tmp_path / "out" / "adata.h5ad")
    assert list(written.var_names) == list(adata.var_names)
    assert written.var["highly_variable"].sum() == 30
    assert list(written.obs) == list(adata.obs)
    assert (written.X != adata.X).nnz == 0
    np.testing.assert_array_equal(written.obsm["X_pca"], adata.obsm["X_pca"])
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert set(scores["kind"]) == {"leakage"}
    assert set(scores["metric"]) == {"batch from code", "cluster from code"}
    output = capsys.readouterr().out
    for step, name in enumerate(["Read", "Select", "Train", "Embed", "Score", "Draw", "Write"], 1):
        assert f"[{step}/7] {name}" in output
    assert " left)" in output
    assert "balanced accuracy" in output


def test_labels_do_not_reach_the_model(source, adata, tmp_path):
    """Labels, shuffled ones or none, too few cells for scib-metrics: the same latents."""
    few, shuffled = adata[:80].copy(), adata[:80].copy()
    labels = few.obs["celltype"].to_numpy(copy=True)
    shuffled.obs["celltype"] = np.random.default_rng(0).permutation(labels)
    with_labels = ["--label-key", "celltype"]
    runs = {"true": (few, with_labels), "shuffled": (shuffled, with_labels), "none": (few, [])}
    latents = {}
    for name, (cells, arguments) in runs.items():
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
        assert run(tmp_path / f"{name}.h5ad", tmp_path / name, *arguments) == 0
        obsm = ad.read_h5ad(tmp_path / name / "adata.h5ad").obsm
        latents[name] = np.hstack([obsm["X_disentangle"], obsm["X_disentangle_batch"]])
    for name in ("shuffled", "none"):
        np.testing.assert_array_equal(latents[name], latents["true"])


def test_the_seed_reaches_training(source, tmp_path):
    codes = {}
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert run(source, tmp_path / name, "--seed", seed) == 0
        codes[name] = ad.read_h5ad(tmp_path / name / "adata.h5ad").obsm["X_disentangle"]
    np.testing.assert_array_equal(codes["a"], codes["b"])
    assert not np.allclose(codes["a"], codes["c"])


def test_the_report_of_an_earlier_run_is_not_that_of_this_one(source, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(source, first) == 0
    adata = ad.read_h5ad(first / "adata.h5ad")
    assert "disentanglement" in adata.uns
    adata.obs["batch"] = "only"
    adata.write_h5ad(tmp_path / "one_batch.h5ad")
    assert run(tmp_path / "one_batch.h5ad", second) == 0
    assert "The codes were not scored" in capsys.readouterr().out
    assert not (second / "report.png").exists()
    assert "disentanglement" not in ad.read_h5ad(second / "adata.h5ad").uns


def test_too_few_cells_to_score_is_a_warning(adata, tmp_path, capsys):
    adata[:80].copy().write_h5ad(tmp_path / "few.h5ad")
    assert run(tmp_path / "few.h5ad", tmp_path / "out", "--label-key", "celltype") == 0
    assert "warning: Integration was not scored. Scoring needs more than 90 cells" in " ".join(
        capsys.readouterr().out.split()
    )


def test_objectives_reach_the_model(source, tmp_path):
    assert run(source, tmp_path / "two", "--objective", "hsic=0.5", "batch_mmd") == 0
    assert run(source, tmp_path / "none", "--objective", "none") == 0
    two, none = (pd.read_csv(tmp_path / name / "history.csv") for name in ("two", "none"))
    assert {"hsic_train", "batch_mmd_train"} <= set(two)
    assert not {"hsic_train", "batch_mmd_train", "local_batch_hsic_train"} & set(none)
    final = two.iloc[-1]
    assert final["hsic_weighted_train"] == pytest.approx(
        final["disentanglement_weight"] * 0.5 * final["hsic_train"], abs=1e-6
    )


def test_an_existing_folder_is_replaced_only_when_asked(source, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "scores.csv").write_text("precious")
    assert run(source, out) == 2
    error = error_of(capsys)
    assert str(out) in error
    assert "--overwrite" in error
    assert (out / "scores.csv").read_text() == "precious"
    assert run(source, out, "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == RESULTS
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_as_the_folder_is_not_followed(source, tmp_path, capsys):
    target = tmp_path / "earlier"
    target.mkdir()
    (target / "scores.csv").write_text("precious")
    (tmp_path / "out").symlink_to(target)
    assert run(source, tmp_path / "out", "--overwrite") == 2
    assert "is a symbolic link, and is not followed" in error_of(capsys)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert run(source, tmp_path / "dangling") == 2
    assert [path.name for path in target.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize("is_file", [True, False])
def test_overwrite_spares_what_no_run_has_written(source, tmp_path, capsys, is_file):
    out = tmp_path / "out"
    if is_file:
        out.write_text("thesis")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("thesis")
    assert run(source, out, "--overwrite") == 2
    assert "not the folder of an earlier run" in error_of(capsys)
    assert (out if is_file else out / "thesis.tex").read_text() == "thesis"


def test_a_failure_leaves_no_folder_and_the_old_one_as_it_was(
    source, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out"
    out.mkdir()
    (out / "scores.csv").write_text("old")
    monkeypatch.setattr(
        _integrate.tl, "umap", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    assert run(source, out, "--overwrite") == 2
    assert error_of(capsys) == "error: disk full"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (out / "scores.csv").read_text() == "old"


@pytest.mark.parametrize("step", ["disentanglement_report", "integration_scores", "umap"])
def test_a_score_or_picture_that_fails_costs_no_model(source, tmp_path, monkeypatch, capsys, step):
    def fail(*_, **__):
        raise KeyError("surprise")

    monkeypatch.setattr(_integrate.tl, step, fail)
    assert run(source, tmp_path / "out", "--label-key", "celltype") == 0
    assert "KeyError('surprise')" in capsys.readouterr().out
    assert DisentangleModel.load(tmp_path / "out" / "model", adata=False).is_trained_
    assert ad.read_h5ad(tmp_path / "out" / "adata.h5ad").obsm["X_disentangle"].shape == (120, 30)


def test_an_interruption_leaves_no_folder(source, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_integrate.pp, "select_genes", interrupt)
    monkeypatch.setattr(_integrate, "_embed", interrupt)
    monkeypatch.setattr(_integrate, "_train", interrupt)
    assert run(source, tmp_path / "out") == 130
    assert "interrupted" in error_of(capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--batch-key", "bach"], ["'bach' is not in adata.obs", "batch", "celltype", "capture"]),
        (["--label-key", "type"], ["'type' is not in adata.obs", "celltype"]),
        (["--layer", "raw"], ["'raw'", "adata.layers", "counts"]),
        (["--objective", "hsik"], ["hsik", "Did you mean 'hsic'"]),
    ],
)
def test_wrong_names(source, tmp_path, capsys, arguments, parts):
    assert run(source, tmp_path / "out", *arguments) == 2
    error = error_of(capsys)
    assert all(part in error for part in parts), error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("objectives", "named"), [(["hsik"], "'hsik'"), (["none", "hsic"], "'none'")]
)
def test_an_unknown_objective_is_refused_before_the_file_is_read(
    tmp_path, capsys, objectives, named
):
    unreadable = tmp_path / "unreadable.h5ad"
    unreadable.write_text("no")
    assert run(unreadable, tmp_path / "out", "--objective", *objectives) == 2
    assert f"--objective={named} is not an option" in error_of(capsys)


def test_an_objective_has_one_weight(source, tmp_path, capsys):
    assert run(source, tmp_path / "out", "--objective", "hsic=0.5", "hsic=0.2") == 2
    assert "names hsic more than once" in error_of(capsys)


def test_what_is_no_fault_of_the_input_keeps_its_traceback(source, tmp_path, monkeypatch):
    def broken(arguments):
        raise KeyError("a bug")

    monkeypatch.setattr("scdisentangle._cli.integrate", broken)
    with pytest.raises(KeyError, match="a bug"):
        run(source, tmp_path / "out")


def test_values_that_are_not_finite(adata, tmp_path, capsys):
    broken = adata.copy()
    broken.X.data[0] = np.nan
    broken.write_h5ad(tmp_path / "nan.h5ad")
    assert run(tmp_path / "nan.h5ad", tmp_path / "out") == 2
    assert "NaN" in error_of(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["nan.h5ad"]


@pytest.mark.parametrize("table", ["obs", "var"])
def test_a_file_that_could_not_be_written_is_refused_first(
    adata, source, tmp_path, monkeypatch, capsys, table
):
    reserved = adata.copy()
    getattr(reserved, table)["_index"] = 1
    monkeypatch.setattr(_integrate.ad, "read_h5ad", lambda _: reserved)
    assert run(source, tmp_path / "out") == 2
    assert "has a column '_index'" in error_of(capsys)


def test_data_that_cannot_be_written_cost_no_model(source, tmp_path, monkeypatch, capsys):
    def fail(*_args, **_kwargs):
        raise ValueError("no such encoding")

    monkeypatch.setattr(_integrate.ad.AnnData, "write_h5ad", fail)
    assert run(source, tmp_path / "out") == 0
    assert "The data were not written" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "out" / "model" / "model.pt").is_file()


def test_input_that_is_missing_or_not_an_h5ad(tmp_path, capsys):
    text = tmp_path / "text.h5ad"
    text.write_text("no")
    other = tmp_path / "other.h5ad"
    with h5py.File(other, "w") as file:
        file["numbers"] = [1, 2]
    for path, part in (
        (tmp_path / "none.h5ad", "there is no file"),
        (text, "cannot be read as .h5ad"),
        (other, "cannot be read as .h5ad"),
    ):
        assert run(path, tmp_path / "out") == 2
        error = error_of(capsys)
        assert part in error
        assert str(path) in error
    assert not (tmp_path / "out").exists()


def test_folder_to_write_in_is_missing(source, tmp_path, capsys):
    assert run(source, tmp_path / "no" / "out") == 2
    assert f"there is no folder {tmp_path / 'no'}" in error_of(capsys)


def test_input_needs_a_batch_key(source, tmp_path, capsys):
    assert main(["integrate", str(source), "-o", str(tmp_path / "out")]) == 2
    assert "--batch-key is needed" in error_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "COMMAND"),
        (["integrate"], "-o"),
        (["integrate", "-o", "x", "--max-epochs", "0"], "a whole number above zero, got 0"),
        (["integrate", "-o", "x", "--max-epochs", "ten"], "a whole number above zero, got ten"),
        (["integrate", "-o", "x", "--n-top-genes", "many"], "whole number above zero, got many"),
        (["integrate", "-o", "x", "--objective", "hsic=heavy"], "such as hsic=0.5"),
        (
            ["integrate", "-o", "x", "--objective", "hsic", "a.h5ad"],
            "name INPUT before --objective",
        ),
        (["integrate", "-o", "x", "--seed", "-1"], "--seed: must be a whole number from 0"),
    ],
)
def test_usage_errors(arguments, part, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert part in error_of(capsys)


def test_one_batch_is_a_warning(adata, tmp_path, capsys):
    one = adata.copy()
    one.obs["batch"] = "only"
    one.write_h5ad(tmp_path / "one.h5ad")
    assert run(tmp_path / "one.h5ad", tmp_path / "out") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "warning: There is one batch only" in output
    assert (tmp_path / "out" / "scores.csv").is_file()


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.strip() == version("scdisentangle")


def test_help_names_every_option_and_fails_not(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["integrate", "--help"])
    assert exit.value.code == 0
    shown = capsys.readouterr().out
    options = ("--out", "--overwrite", "--batch-key", "--label-key", "--layer", "--n-top-genes")
    for option in (*options, "--max-epochs", "--objective", "--seed", "INPUT.h5ad"):
        assert option in shown


def test_as_a_program():
    code = "import sys; from scdisentangle._cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "integrate", "nothing.h5ad", "--batch-key", "b", "-o", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: there is no file nothing.h5ad\n"


def test_the_package_is_run_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "scdisentangle", "--version"], check=True, capture_output=True
    )
    assert done.stdout.decode().strip() == version("scdisentangle")


def test_square_brackets_are_text(adata, tmp_path, capsys):
    cells = adata.copy()
    cells.obs["batch"] = cells.obs["batch"].astype(str)
    cells.obs.loc[cells.obs_names[0], "batch"] = "donor[/a]"
    cells.write_h5ad(tmp_path / "one[cd4].h5ad")
    assert run(tmp_path / "one[cd4].h5ad", tmp_path / "out[v2]") == 0
    said = "".join(capsys.readouterr().out.split())
    for text in ("one[cd4].h5ad", "out[v2]/", "donor[/a]"):
        assert text in said


def test_a_folder_in_place_of_a_file(tmp_path, capsys):
    assert run(tmp_path, tmp_path / "out") == 2
    assert "it is a folder" in error_of(capsys)


def test_cells_that_the_selection_of_genes_empties_are_told(tmp_path, capsys):
    counts = np.ones((60, 20), np.float32)
    counts[:, :10] *= np.random.default_rng(0).poisson(20, (60, 10))
    counts[3, :10] = 0  # the genes that vary
    adata = ad.AnnData(
        counts, obs=pd.DataFrame({"batch": ["a", "b"] * 30}, index=map(str, range(60)))
    )
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert run(tmp_path / "cells.h5ad", tmp_path / "out", "--n-top-genes", "5") == 2
    error = error_of(capsys)
    assert (
        "1 cells have no counts in the 5 selected genes: '3'. Select more, --n-top-genes" in error
    )
