"""The promises every sequence mixer keeps, as checks that need nothing but a way to build one.

A mixer of the shelf is tested by being on it; for your own, run::

    from seqrl.testing.mixer_battery import CHECKS
    for check in CHECKS:
        check(MyMixer.for_stack)

Anything that makes a mixer from a :class:`seqrl.layers.mixer.Place` will do. Each check raises
AssertionError with what was broken. Tolerances are the mixer's own (``Mixer.tolerance``), relative
to the largest output. Shapes: B rows, L tokens, D width, W tokens of the place's window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from seqrl.layers.mixer import Mixer, Place
from seqrl.layers.state import map_states, take_rows

Make = Callable[[Place], Mixer]

PLACE = Place(width=16, heads=2, window=12, period=3, layer=0, layers=2)
"""Where the mixers stand in these checks."""

ROWS, TOKENS = 4, 11


def made(make: Make, dtype: torch.dtype = torch.float32) -> Mixer:
    """A mixer with weights that are always the same, in evaluation mode."""
    torch.manual_seed(0)
    return make(PLACE).to(dtype).eval()


def tokens(
    rows: int = ROWS, length: int = TOKENS, dtype: torch.dtype = torch.float32, seed: int = 1
) -> Tensor:
    """Random tokens ``[B, L, D]``."""
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(rows, length, PLACE.width, generator=draws, dtype=torch.float64).to(dtype)


def copied(state: Any) -> Any:
    """A state in memory of its own: stepping may write into the one it is given."""
    return map_states(lambda t: t.detach().clone(), state)


def leaves(state: Any) -> Iterator[Tensor]:
    """The tensors of a state."""
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state.values() if isinstance(state, dict) else state:
            yield from leaves(part)


def stepped(mixer: Mixer, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """Outputs ``[B, L, D]`` of stepping through ``x``, and the state after it."""
    state = mixer.initial_state(x.shape[0]) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value of ``a``."""
    return float((a - b).detach().abs().max() / a.detach().abs().max().clamp_min(1e-30))


def _within(found: float, allowed: float, what: str) -> None:
    assert found <= allowed, f"{what}: relative difference {found:.1e}, allowed {allowed:.1e}"


# --- the checks --------------------------------------------------------------------------------


def check_shapes(make: Make) -> None:
    """Outputs look like inputs; no state for none; every state tensor has a row for each row."""
    mixer, x = made(make), tokens()
    y, none = mixer(x)
    assert y.shape == x.shape, f"{tuple(x.shape)} became {tuple(y.shape)}"
    assert none is None, "a state came out where none went in"
    fresh = mixer.initial_state(ROWS)
    _, after = mixer(x, copied(fresh))
    out, stepped_once = mixer.step(x[:, 0], copied(fresh))
    assert out.shape == x[:, 0].shape, f"a step gave {tuple(out.shape)}"
    for name, state in (("fresh", fresh), ("carried", after), ("stepped", stepped_once)):
        for leaf in leaves(state):
            assert leaf.shape[:1] == (ROWS,), f"{name} state has a tensor {tuple(leaf.shape)}"
    for a, b, c in zip(leaves(fresh), leaves(after), leaves(stepped_once), strict=True):
        assert a.shape == b.shape == c.shape, "a state tensor changes its shape"
        assert a.dtype == b.dtype == c.dtype, "a state tensor changes its type"


@torch.no_grad()
def check_causality(make: Make) -> None:
    """A changed token changes no earlier output."""
    mixer, x = made(make), tokens()
    base = mixer(x)[0]
    for t in (1, TOKENS // 2, TOKENS - 1):
        moved = x.clone()
        moved[:, t] += 1
        after = mixer(moved)[0]
        scale = base.abs().max()
        found = float((base[:, :t] - after[:, :t]).abs().max() / scale)
        _within(found, mixer.tolerance["causality"], f"token {t} changes earlier outputs")
        assert not torch.equal(base[:, t], after[:, t]), f"token {t} does not reach its own output"


def check_causal_gradients(make: Make) -> None:
    """The gradient of an output with respect to later tokens is zero."""
    mixer, x = made(make, torch.float64), tokens(dtype=torch.float64).requires_grad_()
    y = mixer(x)[0]
    for t in (0, TOKENS // 2):
        (g,) = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        found = float(g[:, t + 1 :].abs().max() / g.abs().max())
        _within(found, mixer.tolerance["causality"], f"output {t} has a gradient to later tokens")
        assert float(g[:, t].abs().max()) > 0, f"output {t} has no gradient to its own token"


@torch.no_grad()
def check_step(make: Make) -> None:
    """Stepping gives what a whole sequence gives, in float32 and float64."""
    for dtype, name in ((torch.float32, "step"), (torch.float64, "step64")):
        mixer = made(make, dtype)
        x = tokens(length=3 * PLACE.window, dtype=dtype)
        found = gap(mixer(x)[0], stepped(mixer, x)[0])
        _within(found, mixer.tolerance[name], f"step and forward in {dtype}")


@torch.no_grad()
def check_pieces(make: Make) -> None:
    """A sequence in pieces with a carried state gives what the whole one gives, then goes on."""
    draws = torch.Generator().manual_seed(5)
    for dtype, name in ((torch.float32, "chunk"), (torch.float64, "step64")):
        mixer, length = made(make, dtype), 3 * PLACE.window
        x = tokens(length=length, dtype=dtype)
        whole = mixer(x)[0]
        for _ in range(4):
            cuts = (torch.randperm(length - 1, generator=draws)[:3] + 1).sort().values
            state, parts = mixer.initial_state(ROWS), []
            for piece in torch.tensor_split(x, cuts, 1)[:-1]:
                y, state = mixer(piece, state)
                parts.append(y)
            # The last piece token by token: the state serves both ways of going on.
            parts.append(stepped(mixer, x[:, int(cuts[-1]) :], state)[0])
            found = gap(whole, torch.cat(parts, 1))
            _within(found, mixer.tolerance[name], f"pieces cut at {cuts.tolist()} in {dtype}")


@torch.no_grad()
def check_long(make: Make) -> None:
    """The same for a sequence long enough to be worked on in chunks."""
    mixer, x = made(make), tokens(2, 300)
    whole = mixer(x)[0]
    first, state = mixer(x[:, :130], mixer.initial_state(2))
    second, state = mixer(x[:, 130:299], state)
    last, _ = mixer.step(x[:, 299], state)
    found = gap(whole, torch.cat([first, second, last.unsqueeze(1)], 1))
    _within(found, 10 * mixer.tolerance["chunk"], "300 tokens in pieces")


@torch.no_grad()
def check_reset(make: Make) -> None:
    """Reset rows go on as fresh ones, bit for bit; the others as if nothing had happened."""
    mixer, x = made(make), tokens()
    rows = torch.tensor([True, False, True, False])
    _, state = stepped(mixer, tokens(seed=2))
    again, _ = stepped(mixer, x, mixer.reset(copied(state), rows))
    fresh, _ = stepped(mixer, x)
    onward, _ = stepped(mixer, x, copied(state))
    assert torch.equal(again[rows], fresh[rows]), "a reset row differs from a fresh one"
    assert torch.equal(again[~rows], onward[~rows]), "resetting a row moved its neighbours"
    assert not torch.equal(onward, fresh), "the state carries nothing"
    # Rows of different age in one piece.
    y, _ = mixer(x, mixer.reset(copied(state), rows))
    mixed = torch.where(rows[:, None, None], fresh, onward)
    _within(gap(mixed, y), mixer.tolerance["chunk"], "a piece with rows of different age")


@torch.no_grad()
def check_rows(make: Make) -> None:
    """A row gives alone what it gives among others."""
    mixer, x = made(make), tokens()
    y, state = stepped(mixer, x)
    for i in (0, ROWS - 1):
        alone, own = stepped(mixer, x[i : i + 1])
        _within(gap(y[i : i + 1], alone), mixer.tolerance["step"], f"row {i} alone")
        picked = take_rows(copied(state), slice(i, i + 1))
        a, _ = mixer.step(x[i : i + 1, 0], picked)
        b, _ = mixer.step(x[i : i + 1, 0], own)
        _within(gap(a, b), mixer.tolerance["step"], f"the state of row {i} taken out")


def check_bf16(make: Make) -> None:
    """Outputs and gradients stay finite under bf16 autocast, states carried or not."""
    mixer = made(make).train()
    x = tokens().requires_grad_()
    for state in (None, mixer.initial_state(ROWS)):
        mixer.zero_grad()
        x.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = mixer(x, state)
            loss = y.float().square().sum()
        loss.backward()
        assert bool(torch.isfinite(loss)), "an output is not finite"
        for name, g in [("x", x.grad), *((n, p.grad) for n, p in mixer.named_parameters())]:
            assert g is None or bool(torch.isfinite(g).all()), f"gradient of {name} is not finite"


def check_gradcheck(make: Make) -> None:
    """Analytic gradients of tokens and parameters are the numeric ones, through a state as well.

    A mixer whose carried state has no graph (a detached memory) is checked on the new tokens only.
    """
    mixer = made(make, torch.float64).train()
    with torch.no_grad():  # away from starts at zero or one, where errors hide
        for i, p in enumerate(mixer.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)), alpha=0.05)
    names, params = zip(*mixer.named_parameters(), strict=True)
    kept = tuple(p.detach().clone().requires_grad_() for p in params)

    def whole(x: Tensor, *values: Tensor) -> Tensor:
        return _called(mixer, names, values, x, None)[0]

    def in_pieces(x: Tensor, *values: Tensor) -> Tensor:
        state = mixer.initial_state(2)
        first, state = _called(mixer, names, values, x[:, :3], state)
        second, _ = _called(mixer, names, values, x[:, 3:], state)
        return torch.cat([first, second], 1)

    def onward(x: Tensor, *values: Tensor) -> Tensor:
        return _called(mixer, names, values, x, copied(lived_in))[0]

    x = tokens(2, 5, torch.float64).requires_grad_()
    _gradients_agree(whole, (x, *kept), "a whole sequence")
    _, lived_in = mixer(x[:, :3], mixer.initial_state(2))
    if any(leaf.requires_grad for leaf in leaves(lived_in)):
        _gradients_agree(in_pieces, (x, *kept), "two pieces")
    else:
        _gradients_agree(onward, (x, *kept), "a piece after a detached state")


def _called(
    mixer: Mixer, names: tuple[str, ...], values: tuple[Tensor, ...], x: Tensor, state: Any
) -> tuple[Tensor, Any]:
    """The mixer with other parameters in place of its own."""
    own = dict(zip(names, values, strict=True))
    y, after = torch.func.functional_call(mixer, own, (x, state))
    return y, after


def _gradients_agree(fn: Callable[..., Tensor], inputs: tuple[Tensor, ...], what: str) -> None:
    """``gradcheck`` in random directions (``fast_mode``), which costs two evaluations an input."""
    torch.manual_seed(3)
    try:
        torch.autograd.gradcheck(fn, inputs, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)
    except RuntimeError as e:
        raise AssertionError(f"gradients of {what}: {str(e)[:500]}") from e


def check_parameters(make: Make) -> None:
    """Every parameter gets a gradient within three updates, and its groups hold it once."""
    mixer = made(make).train()
    trained = {n: p for n, p in mixer.named_parameters() if p.requires_grad}
    moved: set[str] = set()
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    for u in range(3):
        optimizer.zero_grad()
        x = tokens(length=2 * PLACE.window, seed=u)
        (mixer(x)[0] * tokens(length=2 * PLACE.window, seed=u + 9)).mean().backward()
        moved |= {
            n for n, p in trained.items() if p.grad is not None and float(p.grad.abs().sum()) > 0
        }
        optimizer.step()
    missing = set(trained) - moved
    assert not missing, f"no gradient in three updates: {sorted(missing)}"
    grouped = [id(p) for g in mixer.parameter_groups() for p in g["params"]]
    assert len(grouped) == len(set(grouped)), "a parameter is in two groups"
    assert set(grouped) <= {id(p) for p in trained.values()}, "a group holds no parameter of ours"


@torch.no_grad()
def check_window(make: Make) -> None:
    """A mixer that is not ``unlimited`` sees nothing older than W tokens, stepping or not."""
    mixer, w = made(make), PLACE.window
    if mixer.unlimited:
        return
    x = tokens(length=2 * w)
    want = mixer(x[:, w:])[0][:, -1]
    moved = torch.cat([tokens(length=w, seed=8), x[:, w:]], 1)
    for name, y in (
        ("forward", mixer(x)[0][:, -1]),
        ("step", stepped(mixer, x)[0][:, -1]),
        ("step after other tokens", stepped(mixer, moved)[0][:, -1]),
    ):
        _within(gap(want, y), mixer.tolerance["step"], f"{name} against the last {w} tokens alone")


@torch.no_grad()
def check_grown(make: Make) -> None:
    """A long life leaves outputs finite and the state no larger."""
    mixer, state = made(make), None
    for piece in range(4):
        y, state = stepped(mixer, tokens(2, 250, seed=piece), state)
        assert bool(torch.isfinite(y).all()), "an output is not finite"
    pairs = zip(leaves(state), leaves(mixer.initial_state(2)), strict=True)
    assert all(a.shape == b.shape for a, b in pairs), "the state grows"


CHECKS: tuple[Callable[[Make], None], ...] = (
    check_shapes,
    check_causality,
    check_causal_gradients,
    check_step,
    check_pieces,
    check_long,
    check_reset,
    check_rows,
    check_bf16,
    check_gradcheck,
    check_parameters,
    check_window,
    check_grown,
)
