"""Every mixer of the shelf keeps every promise of the mixer battery; faults are noticed."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seqrl.layers.aaren import CHUNK, Aaren
from seqrl.layers.mixer import MIXERS, Mixer, Place, build_mixer, take_tokens
from seqrl.layers.rnn import GRUMixer, LSTMMixer
from seqrl.layers.stack import residual_stack
from seqrl.testing import mixer_battery as battery
from seqrl.testing.mixer_battery import CHECKS, stepped, tokens


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", [*sorted(MIXERS), "conv:proj=true,dropout=0"])
def test_battery(name: str, check: Any) -> None:
    check(partial(build_mixer, name))


# --- the checks find what they look for ---------------------------------------------------------


class Good(Mixer):
    """An exponential average, to be broken in one way after another."""

    def __init__(self, place: Place):
        super().__init__()
        self.mix = nn.Linear(place.width, place.width)
        self.rate = 0.7

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> Mixer:
        return cls(place)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        h = x.new_zeros(x.shape[0], x.shape[2]) if state is None else state["h"]
        out = []
        for u in self.mix(x).unbind(1):
            h = self.rate * h + u
            out.append(h)
        return torch.stack(out, 1), None if state is None else {"h": h}

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        h = self.rate * state["h"] + self.mix(x)
        return h, {"h": h}

    def initial_state(self, rows: int) -> Any:
        return {"h": self.mix.weight.new_zeros(rows, self.mix.out_features)}


class LooksAhead(Good):
    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state)
        return y + 1e-3 * x.roll(-1, 1), after


class StepsOtherwise(Good):
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = super().step(x, state)
        return y * 1.001, after


class Forgets(Good):
    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, _ = super().forward(x, state)
        return y, None if state is None else self.initial_state(x.shape[0])


class ResetsAll(Good):
    def reset(self, state: Any, rows: Tensor) -> Any:
        return self.initial_state(len(rows))


class ResetsNone(Good):
    def reset(self, state: Any, rows: Tensor) -> Any:
        return state


class ClaimsAWindow(Good):
    unlimited = False


class SharesState(Good):
    def initial_state(self, rows: int) -> Any:
        return {**super().initial_state(rows), "t": torch.zeros(1)}

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = super().step(x, state)
        return y, {**after, "t": state["t"]}


class HasIdleWeight(Good):
    def __init__(self, place: Place):
        super().__init__(place)
        self.idle = nn.Parameter(torch.ones(3))


class StopsGradient(Good):
    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state)
        return y + (0.1 * x).square() - (0.1 * x.detach()).square() * 0.5, after


class Explodes(Good):
    def __init__(self, place: Place):
        super().__init__(place)
        self.rate = 1.4


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__.removeprefix("check_"))
def test_a_strangers_mixer_passes(check: Any) -> None:
    check(Good.for_stack)


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (LooksAhead, "causality", "changes earlier outputs"),
        (LooksAhead, "causal_gradients", "gradient to later tokens"),
        (StepsOtherwise, "step", "step and forward"),
        (Forgets, "pieces", "pieces cut at"),
        (ResetsAll, "reset", "moved its neighbours"),
        (ResetsNone, "reset", "differs from a fresh one"),
        (ClaimsAWindow, "window", "last 12 tokens alone"),
        (SharesState, "shapes", "state has a tensor"),
        (HasIdleWeight, "parameters", "idle"),
        (StopsGradient, "gradcheck", "gradients of a whole sequence"),
        (Explodes, "grown", "not finite"),
    ],
)
def test_a_broken_mixer_is_caught(broken: type[Good], check: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        getattr(battery, f"check_{check}")(broken.for_stack)


# --- outputs of some tokens alone ---------------------------------------------------------------

READERS = {
    "every third": slice(1, None, 3),
    "every second": slice(0, None, 2),
    "the first seven": slice(0, 7),
    "positions": torch.tensor([9, 0, 4]),
    "a row's own": torch.tensor([[0, 10], [3, 3], [7, 2], [10, 1]]),
}


@pytest.mark.parametrize("readers", READERS.values(), ids=READERS)
@pytest.mark.parametrize("name", [*sorted(MIXERS), "conv:proj=true,dropout=0", "conv:period=2"])
def test_reading_some_tokens_gives_the_whole_computations_values(name: str, readers: Any) -> None:
    """A stack's outputs, gradients and states, from the start and from a carried state."""
    torch.manual_seed(0)
    place = battery.PLACE
    mixers = [build_mixer(name, place) for _ in range(2)]
    stack = residual_stack(mixers, place.width).double()
    x, before = tokens(dtype=torch.float64).requires_grad_(), tokens(dtype=torch.float64, seed=2)
    _, lived_in = stack(before, stack.initial_state(len(x)))
    for state in (None, lived_in):
        whole, want_after = stack(x, battery.copied(state))
        got, after = stack(x, battery.copied(state), readers)
        want = take_tokens(whole, readers)
        assert got.shape == want.shape
        assert battery.gap(want, got) < 1e-12
        for a, b in zip(battery.leaves(want_after), battery.leaves(after), strict=True):
            assert torch.equal(a, b)
        direction = torch.randn_like(want)
        inputs = (x, *stack.parameters())
        expected = torch.autograd.grad(want, inputs, direction, retain_graph=True)
        found = torch.autograd.grad(got, inputs, direction, retain_graph=True)
        for a, b in zip(expected, found, strict=True):
            assert float((a - b).abs().max()) < 1e-12 * max(1.0, float(a.abs().max()))
    assert torch.equal(stack.read(x, readers), stack(x, None, readers)[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["conv", "gru"])
def test_the_last_block_works_for_the_readers_alone(name: str) -> None:
    stack = residual_stack([build_mixer(name, battery.PLACE) for _ in range(2)], 16)
    seen: list[tuple[int, ...]] = []
    for block in stack.blocks:
        block.mlp.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    stack.read(tokens(), slice(1, None, 3))
    assert seen == [(4, 11, 16), (4, 4, 16)]
    if name == "conv":
        mixer = stack.blocks[-1].mixer
        assert torch.allclose(
            mixer.read(tokens(), slice(1, None, 3))[0], mixer(tokens())[0][:, 1::3], atol=1e-6
        )


# --- Aaren -------------------------------------------------------------------------------------


def written_out(mixer: Aaren, x: Tensor) -> Tensor:
    """Softmax over every prefix, head by head, with keys."""
    b, n, _ = x.shape
    keys = mixer.key(x).view(b, n, mixer.heads, mixer.head)
    values = mixer.value(x).view(b, n, mixer.heads, mixer.head)
    scores = torch.einsum("he,bnhe->bnh", mixer.query, keys) / math.sqrt(mixer.head)
    outs = []
    for t in range(n):
        weights = scores[:, : t + 1].softmax(1)
        outs.append(torch.einsum("bnh,bnhe->bhe", weights, values[:, : t + 1]).flatten(1))
    return mixer.out(torch.stack(outs, 1))


def loud(heads: int = 2, scale: float = 20.0) -> Aaren:
    """Scores far apart, or every weight would be about the same."""
    torch.manual_seed(0)
    mixer = Aaren(8, heads).double()
    mixer.key.weight.data.mul_(scale / 0.5)
    return mixer


@torch.no_grad()
@pytest.mark.parametrize("length", [7, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
def test_aaren_is_attention_over_prefixes(length: int) -> None:
    mixer = loud()
    x = torch.randn(2, length, 8, dtype=torch.float64)
    want = written_out(mixer, x)
    assert float((mixer(x)[0] - want).abs().max()) < 1e-12
    assert float((stepped(mixer, x)[0] - want).abs().max()) < 1e-12


def test_aaren_state_is_that_of_the_paper() -> None:
    mixer = loud(1)
    x = torch.randn(1, 37, 8, dtype=torch.float64)
    with torch.no_grad():
        s = mixer._scores(x)[0, :, 0]
        values = mixer.value(x)[0]
        state = mixer(x, mixer.initial_state(1))[1]
        m, u, w = -math.inf, 0.0, torch.zeros(8, dtype=torch.float64)
        for i in range(37):
            top = max(m, float(s[i]))
            u = u * math.exp(m - top) + math.exp(float(s[i]) - top)
            w = w * math.exp(m - top) + math.exp(float(s[i]) - top) * values[i]
            m = top
    assert abs(float(state["m"]) - m) < 1e-12
    assert abs(float(state["u"]) - u) < 1e-9
    assert float((state["o"][0, 0] - w / u).abs().max()) < 1e-12


def test_aaren_survives_huge_scores_forward_and_backward() -> None:
    mixer = Aaren(8, 2)
    x = torch.randn(2, 150, 8)
    with torch.no_grad():  # one direction of the input decides the score: +-1e4
        mixer.query.fill_(1.0)
        mixer.key.weight.zero_()
        mixer.key.weight[:, 0] = 1e4 / math.sqrt(mixer.head)
        x[:, :, 0] = torch.tensor([-1.0, 1.0]).repeat(75)
    assert float(mixer._scores(x).detach().abs().max()) == pytest.approx(1e4, rel=1e-4)
    y, _ = mixer(x)
    y.square().sum().backward()
    assert bool(torch.isfinite(y).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in mixer.parameters())
    with torch.no_grad():
        assert float((stepped(mixer, x)[0] - y).abs().max()) < 1e-4


@torch.no_grad()
def test_aaren_padding_leaves_state_and_outputs_alone() -> None:
    mixer = loud()
    x = torch.randn(3, 90, 8, dtype=torch.float64)
    mask = torch.ones(3, 90, dtype=torch.bool)
    mask[0, :70] = False  # more than a chunk of padding first
    mask[1, 10:20] = False
    mask[2] = False
    y, state = mixer(x, mixer.initial_state(3), mask)
    assert torch.allclose(y[0, 70:], mixer(x[:1, 70:])[0][0], atol=1e-12)
    kept = torch.cat([x[1:2, :10], x[1:2, 20:]], 1)
    want, after = mixer(kept, mixer.initial_state(1))
    assert torch.allclose(y[1, 20:], want[0, 10:], atol=1e-12)
    assert torch.allclose(state["u"][1], after["u"][0], rtol=1e-12)
    fresh = mixer.initial_state(1)
    assert all(torch.equal(state[k][2:], fresh[k]) for k in fresh), "padding alone made a state"
    again, unmoved = mixer(x, dict(state), torch.zeros(3, 90, dtype=torch.bool))
    assert bool(torch.isfinite(again).all())
    for k in state:
        assert torch.allclose(unmoved[k], state[k], rtol=1e-12), k


def test_aaren_padding_gives_no_nan_gradients() -> None:
    mixer = Aaren(8, 2)
    x = torch.randn(2, 150, 8, requires_grad=True)
    mask = torch.ones(2, 150, dtype=torch.bool)
    mask[:, :80] = False
    y, _ = mixer(x, None, mask)
    y[:, 80:].sum().backward()
    assert bool(torch.isfinite(x.grad).all())
    assert float(x.grad[:, :80].abs().max()) == 0
    assert all(bool(torch.isfinite(p.grad).all()) for p in mixer.parameters())


# --- recurrent layers ---------------------------------------------------------------------------


@torch.no_grad()
def test_lstm_and_gru_are_the_librarys() -> None:
    x = tokens()
    for mixer, cell in ((LSTMMixer(16), nn.LSTM), (GRUMixer(16), nn.GRU)):
        twin = cell(16, 16, batch_first=True)
        twin.load_state_dict(mixer.cell.state_dict())
        assert float((mixer(x)[0] - twin(x)[0]).abs().max()) < 1e-6
        assert float((stepped(mixer, x)[0] - twin(x)[0]).abs().max()) < 1e-6
