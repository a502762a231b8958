"""The head that gives losses in place of logits."""

import pytest
import torch
import torch.nn.functional as F

from training import loss
from training.loss import TargetHead
from training.loss_scale import LossScale


@pytest.fixture
def head() -> TargetHead:
    torch.manual_seed(0)
    return TargetHead(torch.nn.Linear(8, 50, bias=False))


@pytest.mark.parametrize("extras", [{}, {"label_smoothing": 0.1}, {"label_smoothing": 0.1, "z_loss": 0.01}])
def test_the_sum_and_its_gradients_equal_those_of_one_plain_cross_entropy(
    extras: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "POSITIONS_AT_A_TIME", 4)  # so that 10 positions are 3 chunks
    head = TargetHead(torch.nn.Linear(8, 50, bias=True), **extras)
    inputs = (torch.randn(10, 8, requires_grad=True), head.weight, head.bias)
    labels = torch.randint(50, (10,))
    total = head(inputs[0], labels, "loss_sum")
    gradients = torch.autograd.grad(3 * total, inputs)
    logits = F.linear(*inputs)
    plain = F.cross_entropy(
        logits, labels, reduction="sum", label_smoothing=extras.get("label_smoothing", 0.0)
    )
    plain = plain + extras.get("z_loss", 0.0) * logits.logsumexp(-1).square().sum()
    expected = torch.autograd.grad(3 * plain, inputs)
    assert total.item() == pytest.approx(plain.item(), rel=1e-6)
    for got, want in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_in_16_bits_rows_that_fill_up_a_chunk_add_nothing() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 50, bias=True, dtype=torch.bfloat16)
    inputs = (torch.randn(70, 8, dtype=torch.bfloat16, requires_grad=True), linear.weight, linear.bias)
    labels = torch.randint(50, (70,))
    total = TargetHead(linear)(inputs[0], labels, "loss_sum")
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    plain = F.cross_entropy(F.linear(*exact), labels, reduction="sum")
    assert total.item() == pytest.approx(plain.item(), rel=1e-3)
    gradients = zip(torch.autograd.grad(total, inputs), torch.autograd.grad(plain, exact), strict=True)
    for got, want in gradients:
        assert (got.double() - want).norm() < 0.01 * want.norm()


def test_a_frozen_head_passes_the_gradient_on(head: TargetHead) -> None:
    head.requires_grad_(False)
    hidden, labels = torch.randn(5, 8, requires_grad=True), torch.randint(50, (5,))
    head(hidden, labels, "loss_sum").backward()
    plain = F.cross_entropy(F.linear(hidden, head.weight), labels, reduction="sum")
    torch.testing.assert_close(hidden.grad, *torch.autograd.grad(plain, hidden))
    assert head.weight.grad is None


def test_a_second_backward_is_an_error(head: TargetHead) -> None:
    total = head(torch.randn(5, 8, requires_grad=True), torch.randint(50, (5,)), "loss_sum")
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_small_slopes_do_not_vanish_in_fp16() -> None:
    """Probabilities of 1e-8 are zero in fp16; with a loss scale they count."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(8, 4096, bias=False, dtype=torch.float16)
    scale = LossScale.of("dynamic")
    head = TargetHead(linear, loss_scale=scale)
    hidden = (torch.randn(4, 8) * 40).half().requires_grad_()
    # What a model near its end gives: every other probability is small.
    labels = F.linear(hidden, head.weight).argmax(-1)
    total = head(hidden, labels, "loss_sum")
    (gradient,) = torch.autograd.grad(total * (scale.scale / 4), head.weight)
    weight = head.weight.detach().double().requires_grad_()
    plain = F.cross_entropy(F.linear(hidden.double(), weight), labels, reduction="sum")
    (expected,) = torch.autograd.grad(plain * (scale.scale / 4), weight)
    small = (expected.abs() > 1e-5) & (expected.abs() < 1e-3)
    assert small.sum() > 500
    torch.testing.assert_close(gradient.double()[small], expected[small], rtol=0.1, atol=2e-6)


def test_no_targets_give_0_with_a_gradient_for_every_weight(head: TargetHead) -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    total = head(hidden, torch.zeros(0, dtype=torch.int64), "loss_sum")
    (gradient,) = torch.autograd.grad(total, head.weight)
    assert total.item() == 0
    assert gradient.shape == (50, 8)
    assert not gradient.any()


def test_token_losses_add_up_to_the_sum(head: TargetHead) -> None:
    hidden, labels = torch.randn(5, 8), torch.randint(50, (5,))
    losses, hits = head(hidden, labels, "token_losses")
    assert losses.sum().item() == pytest.approx(head(hidden, labels, "loss_sum").item())
    assert hits.tolist() == (F.linear(hidden, head.weight).argmax(-1) == labels).tolist()


def test_label_smoothing_and_z_loss_are_those_of_their_definitions(
    head: TargetHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "POSITIONS_AT_A_TIME", 2)
    hidden, labels = torch.randn(5, 8), torch.randint(50, (5,))
    logits = F.linear(hidden, head.weight).double()
    log_probs = logits.log_softmax(-1)
    smoothed = 0.9 * -log_probs[range(5), labels].sum() + 0.1 / 50 * -log_probs.sum()
    z = logits.exp().sum(-1).log().square().sum()
    head.label_smoothing, head.z_loss = 0.1, 0.01
    assert head(hidden, labels, "loss_sum").item() == pytest.approx((smoothed + 0.01 * z).item(), rel=1e-5)
    assert head(hidden[:0], labels[:0], "loss_sum").item() == 0
    plain, _ = head(hidden, labels, "token_losses")
    assert plain.sum().item() == pytest.approx(-log_probs[range(5), labels].sum().item(), rel=1e-5)
