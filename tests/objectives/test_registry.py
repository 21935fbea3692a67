from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scdisentangle import InputError
from scdisentangle.objectives import OBJECTIVES, build_objectives

SIZES = {"n_latent_bio": 5, "n_latent_nio": 5, "n_batch": 3}
UNBIASED = {"mmd", "batch_mmd", "local_batch_mmd", "hsic", "cka", "batch_hsic"}
SPECS = [*OBJECTIVES, *({name: {"estimator": "unbiased"}} for name in sorted(UNBIASED))]
MINIBATCHES = {
    "three batches": torch.arange(24) % 3,
    "a batch of one cell": torch.tensor([0] * 9 + [1]),
    "one batch": torch.zeros(12, dtype=torch.long),
    "only batches of one cell": torch.tensor([0, 1, 2]),
    "one cell": torch.zeros(1, dtype=torch.long),
}


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("identical", [False, True], ids=["distinct", "identical"])
@pytest.mark.parametrize("minibatch", MINIBATCHES)
def test_value_and_gradient_are_finite(make_codes, spec, minibatch, identical):
    batch = MINIBATCHES[minibatch]
    n = len(batch)
    z_bio, z_nio, x = torch.randn(n, 5), torch.randn(n, 5), torch.rand(n, 20)
    if identical:
        z_bio, z_nio, x = (t[:1].repeat(n, 1) for t in (z_bio, z_nio, x))
    z_bio.requires_grad_()
    z_nio.requires_grad_()
    codes = make_codes(n=n, batch=batch, z_bio=z_bio, z_nio=z_nio, x=x)
    loss = build_objectives(spec, **SIZES)
    total = sum(loss(codes).values())
    gradients = torch.autograd.grad(total, [z_bio, z_nio], allow_unused=True)
    assert total.shape == () and torch.isfinite(total)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)
    assert torch.isfinite(loss.estimator_loss(codes))


@pytest.mark.parametrize("name", ["batch_mmd", "batch_hsic", "local_batch_mmd", "local_batch_hsic"])
@pytest.mark.parametrize("minibatch", ["one batch", "one cell"])
def test_a_single_batch_gives_zero(make_codes, name, minibatch):
    batch = MINIBATCHES[minibatch]
    codes = make_codes(n=len(batch), batch=batch)
    value = build_objectives(name, **SIZES)(codes)[name]
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6)
    assert codes.z_bio.grad.abs().max().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gives_its_value_where_gradients_are_off(make_codes, name, mode):
    loss = build_objectives(name, **SIZES)
    torch.manual_seed(1)
    codes = make_codes()
    expected = loss(codes)[name].item()
    with mode():
        torch.manual_seed(1)
        factor = torch.ones(40, 20)  # made in the same mode, as the module's tensors are
        codes = make_codes(
            z_bio=codes.z_bio * 1.0,
            z_nio=codes.z_nio * 1.0,
            batch=codes.batch * 1,
            x=codes.x * 1.0,
            encode_bio=codes.encode_bio,
            decode=lambda bio, nio, decode=codes.decode: decode(bio, nio) * factor,
        )
        value = loss(codes)[name]
    assert not value.requires_grad
    assert torch.isfinite(value)
    if name not in ("gradient_penalty", "contrastive"):  # these draw at random
        assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_estimator_and_codes_learn_apart(make_codes, name):
    loss = build_objectives(name, **SIZES)
    codes = make_codes()
    estimator = list(loss.estimator_parameters())
    assert loss.has_estimators == bool(estimator)
    assert loss.has_estimators == (name in ("mutual_information", "gradient_penalty"))
    loss(codes)[name].backward()
    assert all(parameter.grad is None for parameter in estimator)
    if estimator:
        codes.z_bio.grad = codes.z_nio.grad = None
        loss.estimator_loss(codes).backward()
        assert codes.z_bio.grad is None and codes.z_nio.grad is None
        assert all(parameter.grad is not None for parameter in estimator)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_tensor_is_cells_by_cells_by_dimensions(make_codes, name):
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor):
                    self.size = max(self.size, tensor.numel())
            return result

    n, d = 64, 20
    codes = make_codes(n=n, n_bio=d, n_nio=d)
    loss = build_objectives(name, n_latent_bio=d, n_latent_nio=d, n_batch=3)
    with Largest() as largest:
        loss(codes)[name].backward()
    assert 0 < largest.size <= 4 * n * n  # both codes together give (2n, 2n)


def test_specifications(make_codes):
    assert build_objectives(None, **SIZES)(make_codes()) == {}
    assert build_objectives("hsic", **SIZES).weights == {"hsic": 1.0}
    spec = {"hsic": 0.2, "local_batch_hsic": {"weight": 0.05, "n_clusters": 4}, "cka": {}}
    loss = build_objectives(spec, **SIZES)
    assert loss.weights == {"hsic": 0.2, "local_batch_hsic": 0.05, "cka": 1.0}
    assert loss.objectives["local_batch_hsic"].n_clusters == 4


def test_values_are_raw(make_codes):
    codes = make_codes()
    light, heavy = (build_objectives({"hsic": w}, **SIZES)(codes)["hsic"] for w in (0.1, 10.0))
    assert light.item() == heavy.item()


def test_estimators_add_up(make_codes):
    codes = make_codes()
    loss = build_objectives({"mutual_information": 1.0, "gradient_penalty": 1.0}, **SIZES)
    parts = [objective.estimator_loss(codes) for objective in loss.objectives.values()]
    torch.testing.assert_close(loss.estimator_loss(codes), parts[0] + parts[1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hsicc", "Unknown objective 'hsicc'. Did you mean 'hsic'"),
        ({"hsic": {"estimatr": "biased"}}, "'estimatr'. Did you mean 'estimator'"),
        ({"local_batch_mmd": {"kernel_nam": 3}}, "Did you mean 'kernel_num'"),
        ({"hsic": {"n_batch": 3}}, "option 'n_batch'"),
        ({"hsic": {"estimator": "best"}}, "estimator='best'.*biased"),
        ({"contrastive": {"positives": "mm"}}, "positives='mm'.*mnn"),
        ({"hsic": -1.0}, "weight of the objective 'hsic'"),
        ({"hsic": float("nan")}, "weight of the objective 'hsic'"),
        ({"hsic": True}, "weight of the objective 'hsic'"),
        ({"mmd": {"sigma": 0.0}}, "sigma=0.0 must be a number above zero"),
        (
            {"contrastive": {"counterfactual": 1.5}},
            "counterfactual=1.5 must be a number from 0 to 1",
        ),
        ({"mmd": {"kernel_num": 2.5}}, "kernel_num=2.5 must be a whole number"),
        ({"local_batch_hsic": {"n_clusters": "ten"}}, "n_clusters='ten'"),
        (3, "None, a name, or a mapping"),
    ],
)
def test_errors_name_the_culprit_and_the_way_out(spec, message):
    with pytest.raises(InputError, match=message):
        build_objectives(spec, **SIZES)


@pytest.mark.parametrize(
    ("name", "network", "shapes"),
    [
        ("adversary", "classifier", [(7, 5), (7, 7), (3, 7)]),
        ("gradient_penalty", "classifier", [(7, 9), (7, 7), (3, 7)]),
        ("mutual_information", "network", [(7, 5), (7, 7), (8, 7)]),
    ],
)
def test_networks_of_objectives_are_as_wide_as_asked_for(name, network, shapes):
    sizes = {"n_latent_bio": 5, "n_latent_nio": 4, "n_batch": 3}
    loss = build_objectives({name: {"n_hidden": 7}}, **sizes)
    layers = getattr(loss.objectives[name], network)
    assert [tuple(p.shape) for p in layers.parameters() if p.ndim == 2] == shapes


def test_weights_may_be_numbers_of_numpy():
    loss = build_objectives({"hsic": np.int64(2), "cka": np.float32(0.5)}, **SIZES)
    assert loss.weights == {"hsic": 2.0, "cka": 0.5}


def test_a_weight_of_zero_is_a_weight():
    loss = build_objectives({"hsic": 0.0}, n_latent_bio=5, n_latent_nio=5, n_batch=3)
    assert loss.weights == {"hsic": 0.0}
