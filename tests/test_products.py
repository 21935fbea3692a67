"""Products through oneDNN against PyTorch's own."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from scdisentangle import _products
from scdisentangle._products import Linear, _mkl_may_be_slow


@pytest.fixture(autouse=True)
def any_layer_is_large_and_no_cpu_is_of_intel(monkeypatch):
    monkeypatch.setattr(_products, "LARGE", 0)
    monkeypatch.setattr(_products, "_mkl_may_be_slow", lambda: True)


@pytest.mark.parametrize(
    ("cpu", "has_mkl", "expected"),
    [
        ({"cpu_name": "Intel Xeon"}, True, False),
        ({"cpu_name": "AMD EPYC"}, True, True),
        ({}, True, True),
        (None, True, True),  # an older PyTorch does not say
        ({"cpu_name": "Neoverse N1"}, False, False),
        (None, False, False),
    ],
)
def test_mkl_is_left_where_it_is_slow(monkeypatch, cpu, has_mkl, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu, raising=False)
    if cpu is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    assert _mkl_may_be_slow.__wrapped__() is expected


def test_where_mkl_is_not_slow_products_are_those_of_pytorch(monkeypatch):
    monkeypatch.setattr(_products, "_mkl_may_be_slow", lambda: False)
    monkeypatch.setattr(_products, "_product", lambda *args: pytest.fail("oneDNN was used"))
    own, x = Linear(7, 5), torch.randn(13, 7)
    expected = nn.functional.linear(x, own.weight, own.bias)
    torch.testing.assert_close(own(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_cells", [0, 1, 37])
@pytest.mark.parametrize(("n_in", "n_out"), [(53, 11), (11, 53)])
def test_values_and_gradients_are_those_of_the_dense_layer_in_double_precision(
    bias, n_cells, n_in, n_out
):
    torch.manual_seed(0)
    own = Linear(n_in, n_out, bias=bias)
    reference = nn.Linear(n_in, n_out, bias=bias).double()
    reference.load_state_dict(own.state_dict())
    x = torch.randn(n_cells, n_in, requires_grad=True)
    x_reference = x.detach().double().requires_grad_()
    outputs, expected = own(x), reference(x_reference)
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(n_cells, n_out)
    (outputs * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad.double(), x_reference.grad, rtol=1e-5, atol=1e-5)
    for mine, other in zip(own.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.double(), other.grad, rtol=1e-5, atol=1e-5)


def test_a_gradient_of_a_gradient_is_that_of_the_dense_layer():
    torch.manual_seed(0)
    own = Linear(7, 5)
    reference = nn.Linear(7, 5).double()
    reference.load_state_dict(own.state_dict())
    x = torch.randn(13, 7)
    penalties = []
    for layer, given in ((own, x), (reference, x.double())):
        given.requires_grad_()
        (slope,) = torch.autograd.grad(layer(given).pow(3).sum(), given, create_graph=True)
        penalties.append(torch.autograd.grad(slope.square().sum(), [given, layer.weight]))
    for mine, other in zip(*penalties, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-4)


def test_no_gradient_is_taken_for_an_input_that_needs_none():
    x = torch.randn(13, 7)
    Linear(7, 5)(x).sum().backward()
    assert x.grad is None


def test_other_types_and_shapes_go_through_pytorch():
    torch.manual_seed(0)
    own = Linear(7, 5)
    drawn = torch.randn(2, 13, 7)
    torch.testing.assert_close(own(drawn)[1], drawn[1] @ own.weight.T + own.bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert own(drawn[0]).dtype == torch.bfloat16
    assert own.double()(drawn.double()).dtype == torch.float64


def test_directional_derivatives_are_those_of_the_layer():
    torch.manual_seed(0)
    own = Linear(7, 5)
    x, direction = torch.randn(2, 13, 7)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(own(forward_ad.make_dual(x, direction))).tangent
    torch.testing.assert_close(tangent, direction @ own.weight.T)


@pytest.mark.parametrize("error", [AttributeError, TypeError, RuntimeError])
def test_a_pytorch_without_the_operator_takes_its_own_products(monkeypatch, error):
    def refuse(*args):
        raise error

    own, x = Linear(7, 5), torch.randn(13, 7)
    expected = nn.functional.linear(x, own.weight, own.bias)
    monkeypatch.setattr(_products, "_product", refuse)
    _products._is_offered.cache_clear()
    try:
        torch.testing.assert_close(own(x), expected, rtol=0, atol=0)
    finally:
        _products._is_offered.cache_clear()


@pytest.mark.filterwarnings("ignore:TF32")
def test_the_switch_of_pytorch_holds(monkeypatch):
    assert _products._is_offered()
    monkeypatch.setattr(_products, "_product", lambda *args: pytest.fail("oneDNN was used"))
    with torch.backends.mkldnn.flags(enabled=False):
        Linear(7, 5)(torch.randn(13, 7))


def test_small_layers_go_through_pytorch(monkeypatch):
    calls = []
    product = _products._product
    monkeypatch.setattr(_products, "_product", lambda *args: calls.append(1) or product(*args))
    monkeypatch.setattr(_products, "LARGE", 35)
    Linear(7, 5)(torch.randn(13, 7))
    assert calls
    calls.clear()
    Linear(7, 4)(torch.randn(13, 7))
    assert not calls
