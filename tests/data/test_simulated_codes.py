import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from scdisentangle import InputError
from scdisentangle.data import simulated_codes

N = 12_000


def told(code, target, classifier=None):
    """Balanced accuracy on the other half of the cells, 0 for a guess and 1 for certainty."""
    classifier = classifier or KNeighborsClassifier(75)
    half = len(target) // 2
    named = classifier.fit(code[:half], target[:half]).predict(code[half:])
    chance = 1 / len(np.unique(target))
    return (balanced_accuracy_score(target[half:], named) - chance) / (1 - chance)


@pytest.mark.parametrize("leak", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mechanism", ["share", "shift", "parity"])
def test_z_bio_gives_away_as_much_as_asked(mechanism, leak):
    adata = simulated_codes(N, 2, 3, leak=leak, mechanism=mechanism)
    one_type = adata[adata.obs["celltype"] == "type_1"]
    code, batch = one_type.obsm["X_disentangle"], one_type.obs["batch"].astype(str).to_numpy()
    assert told(code, batch) == pytest.approx(leak, abs=0.06)
    linear = told(code, batch, LinearDiscriminantAnalysis())
    if mechanism == "parity":
        assert linear < 0.15
    else:
        assert linear == pytest.approx(leak, abs=0.06)


def test_more_batches_and_only_some_types():
    adata = simulated_codes(N, 3, 3, leak=0.6, n_leaking=1)
    for name, leak in {"type_0": 0.6, "type_1": 0.0}.items():
        cells = adata[adata.obs["celltype"] == name]
        batch = cells.obs["batch"].astype(str).to_numpy()
        assert told(cells.obsm["X_disentangle"], batch) == pytest.approx(leak, abs=0.06)


def test_biology_is_lost_merged_or_in_z_nio_as_asked():
    adata = simulated_codes(N, 2, 4, biology_in_nio=0.4, lost=0.25)
    celltype = adata.obs["celltype"].astype(str).to_numpy()
    assert told(adata.obsm["X_disentangle_batch"], celltype) == pytest.approx(0.4, abs=0.04)
    assert told(adata.obsm["X_disentangle"], celltype) == pytest.approx(0.75, abs=0.04)
    assert told(adata.obsm["X_pca"], celltype) > 0.98
    merged = simulated_codes(2000, 2, 4, n_merged=2)
    centres = [
        merged[merged.obs["celltype"] == f"type_{t}"].obsm["X_disentangle"].mean(axis=0)
        for t in range(3)
    ]
    assert np.linalg.norm(centres[0] - centres[1]) < 0.5
    assert np.linalg.norm(centres[0] - centres[2]) == pytest.approx(6, abs=0.5)


@pytest.mark.parametrize(
    ("composition", "batches_of_last_type"), [("balanced", 2), ("private", 1), ("confounded", 1)]
)
def test_compositions(composition, batches_of_last_type):
    obs = simulated_codes(1000, 2, 4, composition=composition).obs
    batches = obs.groupby("celltype", observed=True)["batch"].nunique()
    assert batches["type_3"] == batches_of_last_type
    assert batches["type_0"] == (1 if composition == "confounded" else 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"leak": 1.5}, "leak=1.5 must be a number from 0 to 1"),
        ({"n_batches": 2.5}, "n_batches=2.5 must be a whole number"),
        ({"n_merged": 99}, "n_merged=99 must be a number of types, from 0 to"),
        ({"n_leaking": -1}, "n_leaking=-1 must be a number of types"),
        (
            {"n_types": 2, "n_batches": 3, "composition": "confounded"},
            "n_types=2 is fewer than n_batches=3",
        ),
        ({"mechanism": "shift", "n_batches": 3}, "for two batches, got n_batches=3"),
        ({"n_types": 1}, "at least two batches and two types"),
        ({"composition": "balancd"}, "Did you mean 'balanced'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        simulated_codes(100, **arguments)
