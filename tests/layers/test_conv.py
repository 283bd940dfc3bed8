"""The convolution mixer of Decision ConvFormer against the release's computation written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.layers.conv import ThreeFilterConv
from seqrl.layers.mixer import Place, build_mixer


def dense(mixer: ThreeFilterConv, x: Tensor) -> Tensor:
    """Every filter at every position by the library's convolution, then one kept a position."""
    n, d, k = x.shape[1], x.shape[2], mixer.kernel
    padded = F.pad(x.transpose(1, 2), (k - 1, 0))
    outs = [
        F.conv1d(padded, mixer.weight[j].unsqueeze(1), mixer.bias[j], groups=d).transpose(1, 2)
        for j in range(mixer.period)
    ]
    return torch.stack([outs[p % mixer.period][:, p] for p in range(n)], 1)


def mixer_of(period: int = 3, kernel: int = 6, width: int = 8, **options) -> ThreeFilterConv:
    torch.manual_seed(0)
    return ThreeFilterConv(width, period, kernel, **options)


@pytest.mark.parametrize("period", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 6, 9])
@pytest.mark.parametrize("length", [1, 2, 5, 24])
def test_strided_build_equals_the_dense_one(period: int, kernel: int, length: int) -> None:
    mixer = mixer_of(period, kernel)
    x = torch.randn(3, length, 8, requires_grad=True)
    y, want = mixer(x)[0], dense(mixer, x)
    assert float((y - want).detach().abs().max()) < 1e-6
    direction = torch.randn_like(y)
    inputs = (x, mixer.weight, mixer.bias)
    for a, b in zip(
        torch.autograd.grad(y, inputs, direction),
        torch.autograd.grad(want, inputs, direction, allow_unused=True),
        strict=True,
    ):
        b = torch.zeros_like(a) if b is None else b
        assert float((a - b).abs().max()) < 1e-5


@pytest.mark.parametrize("period", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 6, 9])
@pytest.mark.parametrize("length", [3, 5, 24])
def test_the_tokens_of_one_type_alone(period: int, kernel: int, length: int) -> None:
    mixer = mixer_of(period, kernel)
    x = torch.randn(3, length, 8, requires_grad=True)
    inputs = (x, mixer.weight, mixer.bias)
    for j in range(period):
        y, want = mixer.read(x, slice(j, None, period))[0], mixer(x)[0][:, j::period]
        assert torch.equal(y, want)
        direction = torch.randn_like(y)
        for a, b in zip(
            torch.autograd.grad(y, inputs, direction),
            torch.autograd.grad(want, inputs, direction),
            strict=True,
        ):
            assert float((a - b).abs().max()) < 1e-5
    for readers in (slice(0, None, period + 1), slice(0, 2, period), torch.tensor([2, 0])):
        assert torch.equal(mixer.read(x, readers)[0], mixer(x)[0][:, readers])


@torch.no_grad()
def test_the_formula_by_hand() -> None:
    mixer = mixer_of(3, 3, width=2)
    x = torch.randn(1, 7, 2)
    y = mixer(x)[0]
    for p in range(7):
        j = p % 3
        for c in range(2):
            want = float(mixer.bias[j, c])
            for lag in range(3):
                if p >= lag:
                    want += float(mixer.weight[j, c, 2 - lag]) * float(x[0, p - lag, c])
            assert float(y[0, p, c]) == pytest.approx(want, abs=1e-6)


@torch.no_grad()
def test_a_types_filter_serves_that_type_alone() -> None:
    mixer = mixer_of()
    x = torch.randn(2, 15, 8)
    before = mixer(x)[0]
    mixer.weight[2] = 0
    mixer.bias[2] = 0
    after = mixer(x)[0]
    for j in (0, 1):
        assert torch.equal(before[:, j::3], after[:, j::3])
    assert float(after[:, 2::3].abs().max()) == 0


def test_starts_as_the_librarys_convolution() -> None:
    mixer = mixer_of(kernel=6, width=128)
    bound = 6**-0.5
    for p in (mixer.weight.detach(), mixer.bias.detach()):
        assert float(p.abs().max()) <= bound
        assert float(p.abs().max()) > 0.95 * bound
        assert abs(float(p.mean())) < 0.05
    assert sum(p.numel() for p in mixer.parameters()) == 3 * (128 * 6 + 128)


@torch.no_grad()
def test_rows_at_different_types_go_on_from_their_own() -> None:
    """A row reset in the middle of a step's tokens starts at type 0, the other goes on."""
    mixer = mixer_of()
    x = torch.randn(2, 11, 8)
    _, state = mixer(x[:, :4], mixer.initial_state(2))
    state = mixer.reset(state, torch.tensor([False, True]))
    assert state["phase"].tolist() == [1, 0]
    y, after = mixer(x[:, 4:], state)
    assert torch.allclose(y[0], mixer(x[:1])[0][0, 4:], atol=1e-6)
    assert torch.allclose(y[1], mixer(x[1:, 4:])[0][0], atol=1e-6)
    assert after["phase"].tolist() == [2, 1]


@torch.no_grad()
@pytest.mark.parametrize("start", [0, 2])
def test_a_steps_tokens_at_once(start: int) -> None:
    mixer = mixer_of(proj=True).eval()
    x = torch.randn(2, 5 + start + 3, 8)
    want, state = mixer(x, mixer.initial_state(2))
    assert int(state["phase"][0]) == (start + 2) % 3
    y, past = mixer.few(x[:, -3:], x[:, start : start + 5], (start + 5) % 3)
    assert torch.allclose(y, want[:, -3:], atol=1e-6)
    assert torch.equal(past, state["past"])


@torch.no_grad()
def test_masked_tokens_are_what_lies_before_the_start() -> None:
    mixer = mixer_of()
    x = torch.randn(2, 9, 8)
    for pad in (3, 6):
        for content in (0.0, -10.0, 1e6):
            padded = torch.cat([torch.full((2, pad, 8), content), x], 1)
            mask = torch.arange(pad + 9) >= pad
            y, _ = mixer(padded, None, mask.expand(2, -1))
            assert torch.allclose(y[:, pad:], mixer(x)[0], atol=1e-6)
    assert not torch.allclose(mixer(padded)[0][:, 6:], mixer(x)[0], atol=1e-2)


def test_projection_and_its_dropout() -> None:
    mixer = build_mixer("conv:kernel=4,proj=true,dropout=0.5", Place(8, period=2))
    assert isinstance(mixer, ThreeFilterConv)
    assert (mixer.period, mixer.kernel) == (2, 4)
    assert sum(p.numel() for p in mixer.parameters()) == 2 * (8 * 4 + 8) + 8 * 8 + 8
    with torch.no_grad():
        mixer.proj.weight.copy_(torch.eye(8))
        x = torch.randn(64, 6, 8)
        plain = dense(mixer, x)
        assert torch.allclose(mixer.eval()(x)[0], plain, atol=1e-6)
        dropped = (mixer.train()(x)[0] == 0).float().mean()
    assert abs(float(dropped) - 0.5) < 0.05


@pytest.mark.parametrize("options", [{"kernel": 0}, {"period": 0}])
def test_impossible_sizes_are_refused(options: dict) -> None:
    with pytest.raises(SeqrlError, match="must be at least 1"):
        ThreeFilterConv(8, **options)
