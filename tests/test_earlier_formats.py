"""What files of earlier formats say in the words of today."""

import numpy as np
import pytest
import torch

from scdisentangle._earlier_formats import FILE_FORMAT, format_of, upgraded

OF_TODAY = {
    "axes.root": torch.eye(2),
    "encoder.components.weight": torch.ones(4, 3),
    "encoder.nio_head.mean.weight": torch.ones(2, 7),
    "encoder.shortcut": torch.tensor(0.375),
}
NAMED = {"n_hidden": 7}
LIKELIHOOD = {"code_loss": "likelihood"}
SIZES = {"counts_per_size_factor": 1.0}


def content(written, without=(), options=NAMED, **attributes):
    if written > 1:
        attributes["file_format_"] = written
    attributes["init_params_"] = {"non_kwargs": {}, "kwargs": {"module_kwargs": options}}
    weights = {name: values for name, values in OF_TODAY.items() if name not in without}
    return {"attr_dict": attributes, "model_state_dict": weights, "var_names": ["a"]}


@pytest.mark.parametrize(
    ("written", "without", "added"),
    [
        (1, [], {"spherical": False, "n_hidden_nio": 7, **SIZES, **LIKELIHOOD}),
        (4, [], {"n_hidden_nio": 7, **SIZES, **LIKELIHOOD}),
        (7, [], {**SIZES, **LIKELIHOOD}),
        (10, [], LIKELIHOOD),
        (12, [], {}),
        (10, ["encoder.components.weight"], {"n_components": 0, **LIKELIHOOD}),
        (10, ["axes.root"], {"axes": False, **LIKELIHOOD}),
    ],
)
def test_options_that_had_another_default_are_named(written, without, added):
    of_then = content(written, without)
    today = upgraded(of_then)
    assert today["attr_dict"]["init_params_"]["kwargs"]["module_kwargs"] == NAMED | added
    assert format_of(today) == FILE_FORMAT
    assert (format_of(of_then), NAMED) == (written, {"n_hidden": 7})  # as they were


def test_what_was_asked_for_stays():
    today = upgraded(content(10, options={"code_loss": "squared_error"}))
    assert today["attr_dict"]["init_params_"]["kwargs"]["module_kwargs"] == {
        "code_loss": "squared_error"
    }


@pytest.mark.parametrize(("without", "weight"), [([], 0.375), (["encoder.shortcut"], 0.25)])
def test_the_weight_of_the_first_components(without, weight):
    weights = upgraded(content(11, without))["model_state_dict"]
    assert weights["encoder.shortcut"] == weight


def test_labelled_cells_of_no_known_batch():
    labelled = np.ones((3, 2)), np.array(["a", "b", "b"])
    today = upgraded(content(9, labelled_codes_=labelled))
    *same, batch = today["attr_dict"]["labelled_codes_"]
    assert all(map(np.array_equal, same, labelled))
    assert batch.tolist() == ["", "", ""]
