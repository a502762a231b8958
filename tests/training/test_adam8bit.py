"""AdamW with moments of 8 bits: the rounding, and what it comes to against float32."""

import pytest
import torch

from training import adam8bit
from training.adam8bit import BLOCK, Adam8bit, Moment, levels

DEVICE = torch.device("cpu")


@pytest.mark.parametrize("signed", [True, False])
def test_levels_lie_closer_the_smaller_they_are(signed: bool) -> None:
    found = levels(signed, DEVICE)
    assert len(found) == (255 if signed else 256)
    assert (found.diff() > 0).all()
    assert found[-1] == 1.0
    assert 0.0 in found
    if signed:
        assert torch.equal(found, -found.flip(0))
    large = found[found >= 0.1]
    assert (large.diff() / large[1:]).max() < 0.13


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("numel", [1, BLOCK, 3 * BLOCK + 5])
def test_what_is_read_and_written_again_stays(signed: bool, numel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(numel, generator=generator) * 10.0 ** torch.randint(
        -9, 3, (numel,), generator=generator
    )
    values = values if signed else values.abs()
    values[: numel // 3] = 0.0
    moment, again = (Moment(values, signed=signed) for _ in range(2))
    assert not moment.read(0, numel).any()
    moment.write(0, values)
    read = moment.read(0, numel)
    again.write(0, read)
    assert torch.equal(again.read(0, numel), read)
    assert not read[: numel // 3].any()
    assert torch.equal(moment.read(numel // 2, numel), read[numel // 2 :])


def test_the_error_is_small_for_what_matters_in_a_block() -> None:
    values = torch.randn(64 * BLOCK, generator=torch.Generator().manual_seed(0))
    moment = Moment(values, signed=True)
    moment.write(0, values)
    errors = (moment.read(0, len(values)) - values).abs()
    scales = values.view(64, BLOCK).abs().amax(1).repeat_interleave(BLOCK)
    assert (errors / scales).max() < 0.9 / 64 / 2 + 1e-6  # half of the widest gap, of 64 levels from 0.1 to 1
    assert (errors / values.abs()).median() < 0.02


def test_it_follows_adamw_on_gradients_of_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adam8bit, "ELEMENTS_AT_A_TIME", 2 * BLOCK)  # several pieces
    generator = torch.Generator().manual_seed(0)
    numel, lr = 5 * BLOCK + 7, 0.01
    sizes = 10.0 ** torch.empty(numel).uniform_(-4, 1, generator=generator)  # in each block
    start = torch.randn(numel, generator=generator)
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    settings = {"lr": lr, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizers = (Adam8bit([ours], **settings), torch.optim.AdamW([theirs], **settings))  # type: ignore[arg-type]
    for _ in range(30):
        gradient = (torch.randn(numel, generator=generator) + 0.5) * sizes
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).abs().mean()
    assert (ours - theirs).abs().mean() < 0.12 * moved  # seen: 0.092
    assert (ours - theirs).abs().max() < 30 * lr, (
        "no weight may be thrown far off by a second moment rounded to 0"
    )
