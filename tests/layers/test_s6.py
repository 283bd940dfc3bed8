"""The selective scan against a plain loop, and the S6 mixer around it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.layers import scan
from seqrl.layers.mixer import Place, build_mixer
from seqrl.layers.s6 import FEW, S6
from seqrl.layers.scan import selective_scan
from seqrl.optim import OptimConfig, build_optimizer


def plain_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence as written, one token after the other (``unbind``: an index would make the
    backward quadratic)."""
    h = u.new_zeros(u.shape[0], A.shape[1], u.shape[2]) if h0 is None else h0
    outs = []
    for ut, dtt, bt, ct in zip(u.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(dtt.unsqueeze(1) * A.t()) * h + (dtt * ut).unsqueeze(1) * bt.unsqueeze(2)
        outs.append((h * ct.unsqueeze(2)).sum(1))
    return torch.stack(outs, 1), h


def inputs(
    b: int, length: int, e: int, n: int, dtype: torch.dtype = torch.float64, step: float = 0.5
) -> list[Tensor]:
    """u, dt, A, B, C and h0, all of which want gradients."""
    draws = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, dtype=torch.float64).to(dtype)

    dt = F.softplus(normal(b, length, e)) * step
    values = [normal(b, length, e), dt, -normal(e, n).exp(), normal(b, length, n)]
    values += [normal(b, length, n), normal(b, n, e)]
    return [v.requires_grad_() for v in values]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 2 rows and chunks of 3 steps at E=3, N=4, so that all edges occur."""
    monkeypatch.setattr(scan, "STEP_ELEMENTS", 2 * 12)
    monkeypatch.setattr(scan, "CHUNK_ELEMENTS", 3 * 2 * 12)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("batch", "length"), [(2, 5), (3, 7), (1, 1), (2, 3)])
def test_scan_gradients_are_the_numeric_ones(batch: int, length: int) -> None:
    torch.autograd.gradcheck(selective_scan, inputs(batch, length, 3, 4))
    torch.autograd.gradcheck(lambda *x: selective_scan(*x)[1], inputs(batch, length, 3, 4))
    torch.autograd.gradcheck(lambda *x: selective_scan(*x)[0], inputs(batch, length, 3, 4)[:5])


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_scan_equals_the_plain_loop(dtype: torch.dtype, allowed: float) -> None:
    x = inputs(3, 300, 8, 16, dtype)
    results = []
    for fn in (plain_scan, selective_scan):
        y, last = fn(*x)
        weight = torch.arange(y.numel(), dtype=dtype).view_as(y).sin()
        grads = torch.autograd.grad((y * weight).sum() + last.square().sum(), x)
        results.append([y, last, *grads])
    for name, a, b in zip(["y", "last", "u", "dt", "A", "B", "C", "h0"], *results, strict=True):
        gap = float(((a - b).abs().max() / a.abs().max()).detach())
        assert gap < allowed, f"{name}: {gap}"


def test_scan_is_the_same_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(5, 11, 4, 2)
    whole = selective_scan(*x)
    for step, chunk in ((8, 8), (16, 100), (24, 48), (1, 1)):
        monkeypatch.setattr(scan, "STEP_ELEMENTS", step)
        monkeypatch.setattr(scan, "CHUNK_ELEMENTS", chunk)
        for a, b in zip(whole, selective_scan(*x), strict=True):
            assert torch.allclose(a, b, atol=1e-13)


def test_scan_survives_steps_that_forget_everything() -> None:
    x = inputs(2, 120, 4, 16, torch.float32, step=300.0)
    y, last = selective_scan(*x)
    grads = torch.autograd.grad(y.square().mean() + last.square().mean(), x)
    assert all(bool(torch.isfinite(v).all()) for v in (y, last, *grads))
    still = [v.detach().clone() for v in x]
    still[1].zero_()
    assert torch.equal(selective_scan(*still)[1], still[5]), "a step of size 0 moves the state"


def test_scan_computes_in_float32_under_autocast() -> None:
    x = [v.detach() for v in inputs(2, 20, 4, 4, torch.float32)]
    y, last = selective_scan(*x)
    with torch.autocast("cpu", torch.bfloat16):
        y16, last16 = selective_scan(*x)
    assert y16.dtype == last16.dtype == torch.float32
    assert torch.equal(y, y16)
    assert torch.equal(last, last16)
    half = selective_scan(*(v.bfloat16() for v in x))[0]
    assert half.dtype == torch.float32
    assert float((half - y).abs().max() / y.abs().max()) < 0.05


def test_scan_keeps_far_less_than_all_states() -> None:
    b, length, e, n = 4, 256, 32, 16
    x, kept = inputs(b, length, e, n, torch.float32)[:5], []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        selective_scan(*x)
    given = {v.data_ptr() for v in x}
    own = sum(t.numel() for t in kept if t.data_ptr() not in given)
    assert 0 < own <= b * length * e * n / 8


# --- the mixer ----------------------------------------------------------------------------------


def mixer(width: int = 16, dtype: torch.dtype = torch.float32, **options: int) -> S6:
    torch.manual_seed(0)
    return S6(width, **options).to(dtype).eval()


def moved(m: nn.Module) -> nn.Module:
    """All parameters off their start, where A, D and biases have special values."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in m.parameters():
            p += 0.1 * torch.randn(p.shape, generator=draws).to(p.dtype)
    return m


@pytest.mark.parametrize(("width", "count"), [(128, 116_480), (768, 3_770_880)])
def test_parameter_count_is_mambas(width: int, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in S6(width).parameters()) == count


def test_step_sizes_start_between_a_thousandth_and_a_tenth() -> None:
    for m in (mixer(64), build_mixer("s6:state=8,expand=1", Place(64))):
        sizes = F.softplus(m.dt_proj.bias.detach())
        assert 9e-4 < float(sizes.min()) < 5e-3
        assert 0.02 < float(sizes.max()) < 0.101
        assert torch.allclose(m.A_log.exp(), torch.arange(1.0, m.sizes[1] + 1).expand_as(m.A_log))
        assert bool((m.D == 1).all())


def test_special_parameters_do_not_decay() -> None:
    m = mixer()
    (group,) = m.parameter_groups()
    named = {id(p): n for n, p in m.named_parameters()}
    names = {named[id(p)] for p in group["params"]}
    assert names == {"A_log", "D", "conv1d.bias", "dt_proj.bias"}
    assert group["weight_decay"] == 0
    optimizer = build_optimizer([group], OptimConfig(weight_decay=0.1), torch.device("cpu"))
    assert optimizer.param_groups[0]["weight_decay"] == 0


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_steps_and_pieces_equal_the_whole(dtype: torch.dtype, allowed: float) -> None:
    m = moved(mixer(dtype=dtype))
    x = torch.randn(3, 40, 16, dtype=dtype)
    whole, _ = m(x)
    state, outs = m.initial_state(3), []
    for size in (1, 2, FEW, FEW + 1, 1, 3, 40 - 12 - FEW):
        y, state = m(x[:, :size], state)
        outs.append(y)
        x = x[:, size:]
    assert x.shape[1] == 0
    assert float((torch.cat(outs, 1) - whole).abs().max()) < allowed


def left_padded(x: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Tokens with random ones in front, and the mask that tells."""
    noise = torch.randn(x.shape[0], pad, x.shape[2], generator=torch.Generator().manual_seed(7))
    mask = torch.ones(x.shape[0], pad + x.shape[1], dtype=torch.bool)
    mask[:, :pad] = False
    return torch.cat([noise, x], 1), mask


@torch.no_grad()
def test_padding_in_front_is_not_seen() -> None:
    m = moved(mixer())
    x = torch.randn(2, 9, 16)
    want, _ = m(x)
    for pad in (0, 5, 17):
        padded, mask = left_padded(x, pad)
        assert float((m(padded, None, mask)[0][:, pad:] - want).abs().max()) <= 1e-7
        y, state = m(padded, m.initial_state(2), mask)
        assert float((y[:, pad:] - want).abs().max()) <= 1e-7
        assert torch.allclose(state[1], m(x, m.initial_state(2))[1][1], atol=1e-7)


@torch.no_grad()
def test_padding_is_seen_without_the_mask_in_both_places() -> None:
    """Guards the test above: its mask does something, before the convolution and after."""
    m = moved(mixer())
    x = torch.randn(2, 9, 16)
    padded, mask = left_padded(x, 5)
    want, _ = m(x)
    assert float((m(padded)[0][:, 5:] - want).abs().max()) > 1e-3
    # Only before: zeros go in, but the convolution's bias comes out.
    u, z = m.in_proj(padded).chunk(2, -1)
    y, _ = m.inner(u * mask.unsqueeze(-1))
    only_before = m.out_proj(y * F.silu(z))[:, 5:]
    assert float((only_before - want).abs().max()) > 1e-4


@torch.no_grad()
def test_one_masked_token_before_a_fresh_state() -> None:
    """What acting does at an episode's first step: the missing action is no token."""
    m = moved(mixer())
    x = torch.randn(2, 3, 16)
    mask = torch.tensor([[False, True, True], [True, True, True]])
    y, state = m(x, m.initial_state(2), mask)
    first, after = m(x[:1, 1:], m.initial_state(1))
    assert torch.allclose(y[:1, 1:], first, atol=1e-7)
    assert all(torch.allclose(a[:1], b, atol=1e-7) for a, b in zip(state, after, strict=True))
    assert torch.allclose(y[1:], m(x[1:])[0], atol=1e-7)


@torch.no_grad()
def test_reset_rows_are_fresh_and_others_untouched() -> None:
    m = moved(mixer())
    _, state = m(torch.randn(3, 6, 16), m.initial_state(3))
    after = m.reset(state, torch.tensor([False, True, False]))
    for old, new in zip(state, after, strict=True):
        assert torch.equal(new[[0, 2]], old[[0, 2]])
        assert float(new[1].abs().max()) == 0
        assert float(old[1].abs().max()) > 0


def test_what_acting_keeps_follows_the_weights() -> None:
    """Rates are kept between steps in evaluation; new weights, in whatever mode, are noticed."""
    m = moved(mixer())
    x = torch.randn(2, 16)

    def stepped() -> Tensor:
        return m.step(x, m.initial_state(2))[0]

    with torch.inference_mode():
        before = stepped()
    assert m._prepared is not None
    with torch.no_grad():
        m.A_log.add_(0.7)
        m.conv1d.weight.mul_(1.5)
    with torch.inference_mode():
        after = stepped()
    assert float((after - before).abs().max()) > 1e-4
    assert torch.allclose(after, m(x.unsqueeze(1))[0][:, 0], atol=1e-6)
    m.train()
    assert m._prepared is None
    # With gradients a step is a graph of its own, into parameters and state.
    state = [torch.ones_like(s).requires_grad_() for s in m.initial_state(2)]
    y, _ = m.step(x, (state[0], state[1]))
    y.sum().backward()
    for p in (m.A_log, m.conv1d.weight, *state):
        assert p.grad is not None
        assert float(p.grad.abs().sum()) > 0


def test_state_stays_float32_under_bf16_autocast() -> None:
    m = moved(mixer())
    x = torch.randn(2, 30, 16)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = m(x, m.initial_state(2))
    assert all(s.dtype == torch.float32 for s in state)
    want = m(x)[0]
    assert float((y.float() - want).detach().abs().max() / want.detach().abs().max()) < 0.05


def test_ungated_inner_part_is_the_gated_ones() -> None:
    m = moved(mixer())
    inner = S6(16, gated=False)
    own = {k: v for k, v in m.state_dict().items() if k in inner.state_dict()}
    own["in_proj.weight"] = own["in_proj.weight"][:32]
    inner.load_state_dict(own)
    x = torch.randn(2, 8, 16)
    z = m.in_proj(x).chunk(2, -1)[1]
    y, _ = inner.inner(inner.in_proj(x))
    assert torch.allclose(m.out_proj(y * F.silu(z)), m(x)[0], atol=1e-6)


def test_parity_with_mambapy() -> None:
    mambapy = pytest.importorskip("mambapy.mamba", reason="mambapy is not installed")
    torch.manual_seed(0)
    ref = mambapy.MambaBlock(mambapy.MambaConfig(d_model=32, n_layers=1))
    m = S6(32)
    m.load_state_dict(ref.state_dict())
    x = torch.randn(3, 50, 32, requires_grad=True)
    weight = torch.randn(3, 50, 32)
    results = []
    for fn, params in ((ref, ref.parameters()), (lambda v: m(v)[0], m.parameters())):
        y = fn(x)
        results.append([y, *torch.autograd.grad((y * weight).sum(), [x, *params])])
    for a, b in zip(*results, strict=True):
        assert float(((a - b).abs().max() / a.abs().max()).detach()) < 2e-6
    with torch.no_grad():
        cache, state = (None, torch.zeros(3, 64, 3)), m.initial_state(3)
        for t in range(20):
            want, cache = ref.step(x[:, t], cache)
            got, state = m.step(x[:, t], state)
            assert float((want - got).abs().max()) < 1e-6


@pytest.mark.parametrize("training", [True, False])
def test_steps_follow_a_fused_optimiser(training: bool) -> None:
    """It changes weights without raising their version: kept rates must not outlive an update."""
    torch.manual_seed(0)
    mixer = S6(8).train(training)
    x = torch.randn(2, 6, 8)
    optimizer = torch.optim.AdamW(mixer.parameters(), lr=0.3, fused=True)
    for _ in range(3):
        with torch.no_grad():
            state = mixer.initial_state(2)
            stepped = []
            for t in range(6):
                y, state = mixer.step(x[:, t], state)
                stepped.append(y)
            whole = mixer(x)[0]
        assert torch.allclose(torch.stack(stepped, 1), whole, atol=1e-5)
        mixer(x)[0].square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
