"""What stands for the batch in z_nio, and what of a loss returns to it."""

import torch

from scdisentangle._nio_flows import NIO_FLOWS, Free, Quantized


def test_cells_come_to_the_code_of_their_batch_and_a_code_that_was_added_to_its_cells():
    book = Quantized(n_batch=3, n_latent=2)
    book.added(2, 2)
    z = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], requires_grad=True)
    batch = torch.tensor([0, 1, 2, 2])
    (len(z) * book.terms(z, batch)["commitment"]).backward()
    codes, cells = book.codes.detach(), z.detach()
    torch.testing.assert_close(z.grad, 2 * (cells - codes[batch]))
    assert not book.codes.grad[:2].any()
    torch.testing.assert_close(book.codes.grad[2], 2 * (2 * codes[2] - cells[2] - cells[3]))


def test_the_first_minibatch_gives_the_mean_of_its_batches():
    flow = Free(3, 4)
    z, batch = torch.randn(20, 4), torch.arange(20) % 2
    flow.follow(z, batch)
    expected = torch.stack([z[batch == b].mean(0) for b in (0, 1)])
    torch.testing.assert_close(flow.means[:2], expected)
    assert not flow.means[2].any()
    flow.follow(2 * z, batch)
    torch.testing.assert_close(flow.means[:2], 1.3 * expected)
    flow.added(n_learned=3, n_reference=1)
    flow.follow(z, batch)
    torch.testing.assert_close(flow.means[0], 1.3 * expected[0])
    torch.testing.assert_close(flow.means[1], (1.3 * 0.7 + 0.3) * expected[1])


def test_what_the_decoder_reads_sends_a_gradient_back_where_the_flow_says_so():
    returns = {}
    for name, flow in NIO_FLOWS.items():
        z = torch.ones(2, 3, requires_grad=True)
        read = flow(2, 3).as_read(z)
        assert torch.equal(read, z)
        returns[name] = read.requires_grad
    assert returns == {"quantized": False, "detached": False, "variational": True, "free": True}
