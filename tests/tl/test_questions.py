import numpy as np
import pandas as pd
import pytest

from scdisentangle.tl._probes import predict_held_out
from scdisentangle.tl._questions import Question, answers_table, ask, permutation_p_value


def test_p_values_are_uniform_where_the_code_says_nothing():
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(80):
        found = predict_held_out(rng.normal(size=(90, 3)), rng.integers(0, 2, 90), seed=seed)
        null = found.null(99, seed)
        p_values.append(permutation_p_value(found.score().balanced_accuracy, null))
    assert np.mean(np.array(p_values) <= 0.05) <= 0.13
    assert 0.35 < np.mean(p_values) < 0.75


def test_the_null_of_one_probe_is_centred_on_chance_and_of_two_above_it():
    found = predict_held_out(*two_clouds(np.random.default_rng(1), distance=1.0))
    same = found._replace(neighbors=found.logistic)
    assert same.null(500).mean() == pytest.approx(0.5, abs=0.01)
    assert found.null(500).mean() > same.null(500).mean()
    assert permutation_p_value(found.score().balanced_accuracy, found.null(500)) < 0.01


def two_clouds(rng, distance, n=200):
    y = rng.integers(0, 2, n)
    x = rng.normal(size=(n, 2))
    x[:, 0] += distance * y
    return x, y


def test_confusion_counts_true_classes_in_rows():
    rng = np.random.default_rng(2)
    y = np.array(["a"] * 60 + ["b"] * 40 + ["c"] * 50)
    x = rng.normal(size=(150, 2)) + 10 * (y == "c")[:, None]
    confusion = predict_held_out(x, y).confusion()
    assert confusion.sum(axis=1).to_dict() == {"a": 60, "b": 40, "c": 50}
    assert confusion.at["c", "c"] == 50
    assert confusion.loc["a", "b"] > 10


def test_means_over_groups():
    rng = np.random.default_rng(6)
    x, y = two_clouds(rng, 3.0, 300)
    group = np.repeat(["g", "h", "i"], 100)
    x[group == "h"] = rng.normal(size=(100, 2))
    columns = {"batch": pd.Series(y.astype(str)), "labels": pd.Series(group)}
    answers, left_out = ask(
        [Question("z", "batch", "labels")],
        {"z": x},
        columns,
        min_cells=10,
        max_cells=None,
        seed=0,
    )
    assert not left_out
    table = answers_table(answers, n_permutations=50).set_index("within")
    assert list(table.index) == ["mean over labels", "g", "h", "i"]
    for column in ("balanced_accuracy", "luck"):
        mean = table.loc[["g", "h", "i"], column].mean()
        assert table.at["mean over labels", column] == pytest.approx(mean)
    assert table.at["mean over labels", "p_value"] == pytest.approx(1 / 51)
    assert table.at["h", "p_value"] > 0.1
    assert table.at["mean over labels", "upper"] < table.loc[["g", "h", "i"], "upper"].mean()


def test_groups_of_one_size_have_nulls_of_their_own():
    """The variance of a mean of eight independent nulls is an eighth of theirs."""
    rng = np.random.default_rng(5)
    x, y = two_clouds(rng, 3.0, 400)
    group = np.repeat(list("abcdefgh"), 50)
    columns = {"batch": pd.Series(y.astype(str)), "labels": pd.Series(group)}
    answers, _ = ask(
        [Question("z", "batch", "labels")], {"z": x}, columns, min_cells=5, max_cells=None, seed=0
    )
    table = answers_table(answers, n_permutations=2000).set_index("within")
    width = (table["upper"] - table["luck"]).pow(2)
    assert width["mean over labels"] == pytest.approx(width[list("abcdefgh")].mean() / 8, rel=0.2)


def test_a_mean_is_of_all_cells_and_of_the_most_classes():
    """Cells without a target or a group are in none."""
    rng = np.random.default_rng(4)
    target = pd.Series(np.r_[np.tile(["x", "y"], 30), np.tile(["x", "y", "z"], 30)], dtype=object)
    group = pd.Series(np.repeat(["g", "h"], [60, 90]), dtype=object)
    target[:4], group[146:] = np.nan, np.nan
    answers, _ = ask(
        [Question("z", "batch", "labels")],
        {"z": rng.normal(size=(150, 2))},
        {"batch": target, "labels": group},
        min_cells=5,
        max_cells=None,
        seed=0,
    )
    table = answers_table(answers, n_permutations=30).set_index("within")
    assert table["n_cells"].to_dict() == {"mean over labels": 142, "g": 56, "h": 86}
    assert table["n_classes"].to_dict() == {"mean over labels": 3, "g": 2, "h": 3}
    rng = np.random.default_rng(0)
    for name, answer in zip(("g", "h"), answers, strict=True):
        null = answer.held_out.null(30, rng)
        assert table.at[name, "upper"] == pytest.approx(np.quantile(null, 0.95))
        assert table.at[name, "luck"] == pytest.approx(null.mean())


def test_p_value_counts_the_observed_one():
    assert permutation_p_value(1.0, np.zeros(99)) == 0.01
    assert permutation_p_value(0.0, np.zeros(99)) == 1.0


def test_what_is_as_good_as_the_observed_counts_for_the_null():
    """Three of nine, one of them by rounding only, and the observed one: 4 of 10."""
    null = np.array([0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.5, 0.6, 0.1 + 0.2 + 0.1 - 1e-13])
    assert permutation_p_value(0.4, null) == pytest.approx(0.4)
