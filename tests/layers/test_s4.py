"""State space layers: convolution and recurrence agree, and both are what the papers define."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seqrl.errors import SeqrlError
from seqrl.layers.fft_conv import causal_convolution, fft_length, krylov, power, powers
from seqrl.layers.hippo import INITS, diagonal_modes, legs, legs_modes
from seqrl.layers.mixer import Place, build_mixer
from seqrl.layers.s4 import KERNEL_LR, S4, S4D
from seqrl.layers.stack import grouped_parameters
from seqrl.layers.state import select_rows
from seqrl.optim import OptimConfig, build_optimizer

F64 = torch.float64


def layer(cls: type[S4D] = S4D, width: int = 4, dtype: torch.dtype = F64, **options) -> S4D:
    torch.manual_seed(0)
    return cls(width, **options).to(dtype).eval()


@torch.no_grad()
def stepped(mixer: S4D, u: Tensor, state=None) -> tuple[Tensor, tuple[Tensor, ...]]:
    state = mixer.initial_state(len(u)) if state is None else state
    out = []
    for t in range(u.shape[1]):
        y, state = mixer.step(u[:, t], state)
        out.append(y)
    return torch.stack(out, 1), state


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


# --- state matrices ----------------------------------------------------------------------------


def test_legs_is_normal_plus_rank_one() -> None:
    a, b, p = legs(64)
    assert a[3, 1] == pytest.approx(-math.sqrt(7 * 3))
    assert (a[5, 5], a[1, 3], b[4]) == (-6, 0, 3)
    skew = a + torch.outer(p, p)
    assert (skew + skew.T + torch.eye(64)).abs().max() < 1e-12
    modes, vectors = legs_modes(64)
    assert (vectors.mH @ vectors - torch.eye(32)).abs().max() < 1e-12
    assert modes.eigenvalues.imag[0] == pytest.approx(0.26386, abs=1e-5)
    assert modes.eigenvalues.imag[-1] == pytest.approx(1303.274, abs=1e-3)
    assert modes.b.abs().max() == pytest.approx(40.75, abs=5e-3)
    assert modes.b.real.abs().max() < 1e-10
    # Both halves together give the real matrix back.
    both = torch.cat([vectors, vectors.conj()], 1)
    values = torch.cat([modes.eigenvalues, modes.eigenvalues.conj()])
    p_all = torch.cat([modes.p, modes.p.conj()])
    again = both @ (torch.diag(values) - torch.outer(p_all, p_all.conj())) @ both.mH
    assert (again - a).abs().max() < 1e-9


def test_diagonal_spectra() -> None:
    inv = diagonal_modes("inv", 64).eigenvalues
    assert sorted(inv.imag.tolist())[:3] == pytest.approx([0.32336, 1.00189, 1.72643], abs=1e-5)
    lin = diagonal_modes("lin", 8).eigenvalues
    assert lin.tolist() == pytest.approx([complex(-0.5, math.pi * n) for n in range(4)])
    assert diagonal_modes("real", 8).eigenvalues.tolist() == [-1, -2, -3, -4]
    assert diagonal_modes("legs", 64, clip=2.0).b.abs().max() == 2
    for name in INITS:
        assert diagonal_modes(name, 16).eigenvalues.real.max() < 0
    with pytest.raises(SeqrlError, match="no state matrix 'lego'"):
        diagonal_modes("lego", 8)
    with pytest.raises(SeqrlError, match="even number"):
        diagonal_modes("lin", 7)


def test_first_step_lengths_are_log_uniform_in_their_range() -> None:
    dt = layer(width=2000, dt_min=1e-4, dt_max=0.1, state=2).log_dt.detach().exp()
    assert float(dt.min()) >= 0.99e-4
    assert float(dt.max()) <= 0.101
    assert float((dt < 10**-2.5).double().mean()) == pytest.approx(0.5, abs=0.05)


# --- convolution == recurrence -----------------------------------------------------------------


@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", INITS)
def test_diagonal_layer_steps_as_it_convolves(init: str, disc: str) -> None:
    for length, (dtype, allowed) in itertools.product(
        (1, 2, 7, 64, 200), ((F64, 1e-10), (torch.float32, 1e-5))
    ):
        mixer = layer(dtype=dtype, init=init, disc=disc)
        u = torch.randn(2, length, 4, dtype=dtype)
        assert relative(mixer(u)[0], stepped(mixer, u)[0]) < allowed, (length, dtype)


def test_a_thousand_steps_in_single_precision() -> None:
    u = torch.randn(2, 1000, 16)
    gaps = []
    for dtype in ("float32", "float64"):
        mixer = layer(width=16, dtype=torch.float32, kernel_dtype=dtype)
        gaps.append(relative(mixer(u)[0], stepped(mixer, u)[0]))
    assert max(gaps) < 2e-5, gaps


@pytest.mark.parametrize("cls", [S4D, S4])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_pieces_with_a_carried_state_equal_the_whole(cls, dtype) -> None:
    mixer = layer(cls, dtype=dtype)
    u = torch.randn(3, 50, 4, dtype=dtype)
    whole, nothing = mixer(u)
    assert nothing is None
    allowed = 1e-10 if dtype == F64 else 2e-5
    for cuts in ((1,), (17, 18), (9, 30, 49)):
        state, pieces = mixer.initial_state(3), []
        for a, b in itertools.pairwise((0, *cuts, 50)):
            y, state = mixer(u[:, a:b], state)
            pieces.append(y)
        assert relative(torch.cat(pieces, 1), whole) < allowed
        for got, wanted in zip(state, stepped(mixer, u)[1], strict=True):
            assert relative(got, wanted) < allowed
        y, _ = mixer.step(u[:, 0], state)
        longer = mixer(torch.cat([u, u[:, :1]], 1))[0][:, -1]
        assert relative(y, longer) < allowed


@pytest.mark.parametrize("length", [1, 12, 100, 101])
@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
def test_factored_kernel_is_the_sum_over_modes(disc: str, length: int) -> None:
    mixer = layer(width=3, state=16, disc=disc)
    weight = torch.randn(3, length, dtype=F64)
    dt, eigenvalues, b, c = mixer.continuous()
    z = dt * eigenvalues
    if disc == "zoh":
        log_abar, bbar = z, b * torch.expm1(z) / eigenvalues
    else:
        log_abar, bbar = torch.log((1 + z / 2) / (1 - z / 2)), dt * b / (1 - z / 2)
    l = torch.arange(length, dtype=F64)  # noqa: E741
    direct = 2 * ((c * bbar).unsqueeze(-1) * torch.exp(log_abar.unsqueeze(-1) * l)).real.sum(1)
    kernel = mixer.kernel(length)
    assert relative(kernel, direct) < 1e-11
    wanted = [*mixer.kernel_parameters, mixer.C]
    grads = [torch.autograd.grad((k * weight).sum(), wanted) for k in (kernel, direct)]
    for name, got, known in zip((*mixer.kernel_names, "C"), *grads, strict=True):
        assert relative(got, known) < 1e-9, name


def test_discretisations_meet_as_steps_shrink() -> None:
    gaps = []
    for dt in (0.1, 0.05, 0.025, 0.0125):
        kernels = []
        for disc in ("zoh", "bilinear"):
            mixer = layer(width=1, state=8, init="lin", disc=disc, dt_min=dt, dt_max=dt)
            kernels.append(mixer.kernel(round(4 / dt)))
        gaps.append(relative(kernels[1], kernels[0]))
    assert gaps[0] > 0.05
    assert all(3 < a / b < 5 for a, b in itertools.pairwise(gaps)), gaps


# --- diagonal plus rank one --------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 20, 21])
@pytest.mark.parametrize("state", [8, 16, 64])
def test_rank_one_kernel_is_that_of_the_powers(state: int, length: int) -> None:
    mixer = layer(S4, width=2, state=state)
    abar, bbar, c = mixer.matrices()
    x, direct = bbar, []
    for _ in range(length):
        direct.append((c * x).sum(-1))
        x = (abar @ x.unsqueeze(-1)).squeeze(-1)
    assert relative(mixer.kernel(length), torch.stack(direct, -1)) < 1e-9
    impulse = torch.zeros(1, length, 2, dtype=F64)
    impulse[:, 0] = 1
    response = stepped(mixer, impulse)[0][0].T
    response[:, 0] -= mixer.D
    assert relative(response, mixer.kernel(length)) < 1e-9


def test_rank_one_layer_is_hippo_in_real_numbers() -> None:
    """A layer whose b is not cut, against the bilinear rule for the real LegS matrix."""
    n, dt = 16, 0.05
    mixer = layer(S4, width=1, state=n, dt_min=dt, dt_max=dt)
    modes, vectors = legs_modes(n)
    with torch.no_grad():
        for name, values in (("B", modes.b), ("P", modes.p)):
            getattr(mixer, name).copy_(torch.view_as_real(values).unsqueeze(0))
        mixer.log_decay.fill_(math.log(0.5))
        mixer.frequency.copy_(modes.eigenvalues.imag)
        mixer.log_dt.fill_(math.log(dt))
    a, b, _ = legs(n)
    left = torch.linalg.inv(torch.eye(n) - dt / 2 * a)
    abar, bbar = left @ (torch.eye(n) + dt / 2 * a), left @ b * dt
    # The readout in the first basis: c_real = 2 Re(C V*).
    c_real = 2 * (torch.view_as_complex(mixer.C[0]) @ vectors.mH).real
    x, wanted = bbar, []
    for _ in range(40):
        wanted.append(c_real @ x)
        x = abar @ x
    assert relative(mixer.kernel(40)[0], torch.stack(wanted)) < 1e-8


@pytest.mark.parametrize("state", [2, 16, 64])
def test_rank_one_step_multiplies_by_the_dense_matrix(state: int) -> None:
    mixer = layer(S4, width=3, state=state, dt_max=1.0)
    with torch.no_grad():  # far from LegS, as training may take it
        for p in (mixer.P, mixer.B, mixer.log_decay):
            p.add_(torch.randn_like(p))
    abar, bbar, _ = mixer.matrices()
    a, w, q, b = mixer.structured()
    x = torch.randn(3, state, dtype=F64)
    modes = torch.complex(*x.chunk(2, -1))
    new = a * modes + w * 2 * (q * modes).real.sum(-1, keepdim=True)
    wanted = (abar @ x.unsqueeze(-1)).squeeze(-1)
    assert relative(torch.cat([new.real, new.imag], -1), wanted) < 1e-11
    assert relative(torch.cat([b.real, b.imag], -1), bbar) < 1e-11


class Largest(TorchDispatchMode):
    """Notes the numbers in the largest tensor that any operation makes."""

    found = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            self.found = max(self.found, t.numel() if isinstance(t, Tensor) else 0)
        return out


@pytest.mark.parametrize("cls", [S4D, S4])
def test_steps_and_their_constants_are_linear_in_the_state(cls) -> None:
    kept, made, carried = [], [], []
    for n in (32, 128):
        mixer = layer(cls, state=n)
        state = mixer.initial_state(1)
        with torch.no_grad(), Largest() as largest:
            mixer.step(torch.randn(1, 4, dtype=F64), state)
        made.append(largest.found)
        kept.append(sum(t.numel() for t in mixer._cache[1]))
        carried.append(sum(t.numel() for t in state))
    for few, many in (kept, made, carried):
        assert many == 4 * few


@pytest.mark.parametrize("cls", [S4D, S4])
def test_the_mixer_table_builds_mixing_layers(cls) -> None:
    name = {S4D: "s4d", S4: "s4"}[cls]
    mixer = build_mixer(f"{name}:state=8,dt_min=0.0001", Place(6))
    assert type(mixer) is cls
    assert mixer.out is not None
    assert mixer.state == 8
    u = torch.zeros(1, 5, 6)
    u[0, 0, 0] = 1
    moved = mixer(u)[0] - mixer(torch.zeros(1, 5, 6))[0]
    assert (moved.abs().sum((0, 1)) > 0).all()
    alone = build_mixer(f"{name}:mix=false", Place(6))(u)[0]
    assert (alone[..., 1:] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"disc": "euler"}, "disc is 'euler'"), ({"n_ssm": 3}, "n_ssm is 3"),
     ({"dt_min": 0.2}, "dt_min is 0.2"), ({"kernel_dtype": "half"}, "kernel_dtype is 'half'")],
)  # fmt: skip
def test_wrong_options_are_named(options, message) -> None:
    with pytest.raises(SeqrlError, match=message):
        S4D(4, **options)
    with pytest.raises(SeqrlError, match="S4 has no option 'disc'"):
        S4(4, disc="zoh")


# --- causality, rows ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("cls", [S4D, S4])
def test_no_output_depends_on_later_inputs(cls, dtype) -> None:
    mixer = layer(cls, width=8, dtype=dtype)
    u = torch.randn(1, 40, 8, dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(mixer(u)[0][:, 20].sum(), u)
    largest = grad.abs().max()
    allowed = 1e-6 if dtype == torch.float32 else 1e-14
    assert grad[:, 21:].abs().max() / largest < allowed
    assert grad[:, :21].abs().amax((0, 2)).min() > 0
    with torch.no_grad():
        moved = u.clone()
        moved[:, 20:] += 100
        # Wrapping around instead of padding would show as something of the size of the output.
        assert (mixer(moved)[0] - mixer(u)[0])[:, :20].abs().max() < allowed * 1e3


@pytest.mark.parametrize("cls", [S4D, S4])
def test_resetting_rows(cls) -> None:
    mixer = layer(cls, dtype=torch.float32)
    u = torch.randn(4, 9, 4)
    _, used = stepped(mixer, u)
    rows = torch.tensor([True, False, True, False])
    again, _ = stepped(mixer, u, mixer.reset(used, rows))
    fresh, _ = stepped(mixer, u)
    onward, _ = stepped(mixer, u, used)
    assert torch.equal(again[rows], fresh[rows])
    assert torch.equal(again[~rows], onward[~rows])
    picked = select_rows(rows, mixer.initial_state(4), used)
    assert all(
        p.shape == u_.shape and p[0].abs().sum() == 0 for p, u_ in zip(picked, used, strict=True)
    )


@pytest.mark.parametrize("cls", [S4D, S4])
def test_a_step_leaves_the_state_it_was_given(cls) -> None:
    mixer = layer(cls, dtype=torch.float32)
    _, state = stepped(mixer, torch.randn(2, 5, 4))
    before = [s.clone() for s in state]
    mixer.step(torch.randn(2, 4), state)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [S4D, S4])
def test_steps_are_never_stale(cls) -> None:
    """Constants kept from earlier steps are dropped whenever the parameters change."""
    mixer = layer(cls, dtype=torch.float32)
    other = layer(cls, dtype=torch.float32, dt_min=0.05)
    u, state = torch.ones(1, 4), mixer.initial_state(1)

    def current() -> bool:
        with torch.inference_mode():
            shown = mixer.step(u, state)[0]
        fresh = layer(cls, dtype=torch.float32)
        fresh.load_state_dict({k: v.clone() for k, v in mixer.state_dict().items()})
        with torch.no_grad():
            return torch.equal(shown.clone(), fresh.step(u, state)[0])

    assert current()
    with torch.inference_mode():
        kept = mixer.step_constants()
        assert mixer.step_constants() is kept
    for fused in (True, False):
        groups = mixer.parameter_groups()
        optimizer = torch.optim.AdamW([{"params": g["params"]} for g in groups], 0.1, fused=fused)
        mixer(torch.randn(2, 9, 4))[0].sum().backward()
        assert current()
        optimizer.step()  # without leaving evaluation mode
        assert current()
        optimizer.zero_grad()
        assert current()
    mixer.load_state_dict(other.state_dict())
    assert current()
    mixer.load_state_dict({k: v + 0.1 for k, v in other.state_dict().items()}, assign=True)
    assert current()
    with torch.no_grad():
        torch._foreach_lerp_(list(mixer.parameters()), list(other.parameters()), 0.5)
    assert current()
    assert torch.isfinite(mixer.double().step(u, mixer.initial_state(1))[0]).all()


@pytest.mark.parametrize("cls", [S4D, S4])
@pytest.mark.parametrize("inference", [False, True])
def test_constants_are_computed_once_while_acting(cls, inference, monkeypatch) -> None:
    computed = []
    compute = cls._constants
    monkeypatch.setattr(cls, "_constants", lambda self: computed.append(1) or compute(self))
    with torch.inference_mode(inference):  # parameters made there have no versions
        mixer = layer(cls, dtype=torch.float32)
    u = torch.randn(1, 5, 4)
    for _ in range(3):
        first, _ = stepped(mixer, u)
        with torch.inference_mode():
            stepped(mixer, u)
    assert len(computed) == 1
    with torch.inference_mode(inference), torch.no_grad():
        mixer.log_dt.add_(0.5)
    second, _ = stepped(mixer, u)
    assert len(computed) == 2
    assert relative(second, first) > 1e-3


@pytest.mark.parametrize("cls", [S4D, S4])
def test_a_deep_copy_keeps_no_constants_of_the_first(cls) -> None:
    """A copy's parameters count their changes from the start again."""
    mixer, u = layer(cls), torch.randn(1, 5, 4, dtype=F64)
    with torch.no_grad():
        for p in mixer.parameters():
            p.mul_(1)
        stepped(mixer, u)
        other = copy.deepcopy(mixer)
        for p, known in zip(other.parameters(), mixer.parameters(), strict=True):
            while p._version < known._version:
                p.add_(0.1)
        assert relative(stepped(other, u)[0], other(u)[0]) < 1e-10
        assert relative(stepped(other, u)[0], stepped(mixer, u)[0]) > 1e-3


def test_acting_leaves_nothing_that_breaks_training() -> None:
    mixer = layer(dtype=torch.float32)
    with torch.inference_mode():
        mixer.step(torch.ones(1, 4), mixer.initial_state(1))
    y, _ = mixer.step(torch.ones(1, 4), mixer.initial_state(1))
    y.sum().backward()
    assert mixer.C.grad is not None
    assert mixer.log_dt.grad is not None


@pytest.mark.parametrize("cls", [S4D, S4])
def test_step_and_forward_have_the_same_gradients(cls) -> None:
    mixer = layer(cls, state=8)
    u = torch.randn(2, 6, 4, dtype=F64)
    weight = torch.randn_like(u)
    state, out = mixer.initial_state(2), []
    for t in range(6):
        y, state = mixer.step(u[:, t], state)
        out.append(y)
    params = list(mixer.parameters())
    one = torch.autograd.grad((torch.stack(out, 1) * weight).sum(), params)
    two = torch.autograd.grad((mixer(u)[0] * weight).sum(), params)
    for (name, _), a, b in zip(mixer.named_parameters(), one, two, strict=True):
        assert relative(a, b) < 1e-8, name


def test_groups_have_no_decay_and_a_bounded_rate() -> None:
    mixer = S4D(8, mix=True)
    groups = grouped_parameters(mixer)
    seen = [id(p) for g in groups for p in g["params"]]
    assert len(seen) == len(set(seen)) == len(list(mixer.parameters()))
    optimizer = build_optimizer(groups, OptimConfig(lr=4e-3), torch.device("cpu"))
    settings = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    for p in mixer.kernel_parameters:
        assert settings[id(p)]["weight_decay"] == 0
        assert settings[id(p)]["lr_scale"] * 4e-3 == pytest.approx(KERNEL_LR)
    assert settings[id(mixer.C)]["weight_decay"] == settings[id(mixer.D)]["weight_decay"] == 0
    assert settings[id(mixer.C)]["lr_scale"] == 1
    slow = build_optimizer(groups, OptimConfig(lr=1e-4), torch.device("cpu"))
    assert {g["lr_scale"] for g in slow.param_groups} == {1.0}


@pytest.mark.parametrize("cls", [S4D, S4])
def test_a_frozen_kernel_does_not_move(cls) -> None:
    for train_kernel in (False, True):
        mixer = cls(4, state=8, train_kernel=train_kernel)
        before = [p.detach().clone() for p in mixer.kernel_parameters]
        optimizer = build_optimizer(
            grouped_parameters(mixer), OptimConfig(lr=1e-2), torch.device("cpu")
        )
        for _ in range(3):
            optimizer.zero_grad()
            mixer(torch.randn(2, 9, 4))[0].square().sum().backward()
            optimizer.step()
        same = [torch.equal(a, b) for a, b in zip(before, mixer.kernel_parameters, strict=True)]
        assert not any(same) if train_kernel else all(same)


def test_state_matrices_stay_stable_under_wild_steps() -> None:
    mixer = S4D(4, state=8)
    optimizer = torch.optim.SGD([mixer.log_decay], lr=1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        mixer.log_decay.grad = torch.randn(mixer.log_decay.shape, generator=generator) * 3
        optimizer.step()
    assert float(mixer.log_decay.detach().abs().max()) > 20
    _, eigenvalues, _, _ = mixer.continuous()
    assert (eigenvalues.real < 0).all()
    y, _ = mixer(torch.randn(1, 100, 4))
    assert torch.isfinite(y).all()
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters() if p.grad is not None)


def test_bf16_autocast_keeps_the_recurrence_in_single_precision() -> None:
    mixer = layer(width=4, dtype=torch.float32)
    u = torch.randn(2, 300, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = mixer(u.bfloat16())
    assert y.dtype == torch.float32
    assert torch.equal(y, mixer(u.bfloat16().float())[0])


def test_copies_of_the_state_matrix() -> None:
    assert S4D(6, state=8).log_decay.shape == (1, 4)
    assert S4D(6, state=8, init="lin").log_decay.shape == (6, 4)
    mixer = S4D(6, state=8, n_ssm=2)
    with torch.no_grad():
        mixer.frequency[1] += 1
    frequencies = mixer.continuous()[1].imag
    assert torch.equal(frequencies[0], frequencies[4])
    assert not torch.equal(frequencies[0], frequencies[1])


# --- arithmetic --------------------------------------------------------------------------------


def test_convolution_is_the_sum_and_passes_gradcheck() -> None:
    u = torch.randn(2, 7, 3, dtype=F64, requires_grad=True)
    k = torch.randn(3, 7, dtype=F64, requires_grad=True)
    direct = torch.zeros(2, 7, 3, dtype=F64)
    for t, s in itertools.product(range(7), range(7)):
        if s <= t:
            direct[:, t] += k[:, t - s].detach() * u[:, s].detach()
    assert relative(causal_convolution(u, k), direct) < 1e-13
    assert torch.autograd.gradcheck(causal_convolution, (u, k))


def test_powers_are_powers_and_pass_gradcheck() -> None:
    base = torch.randn(3, 2, dtype=torch.complex128, requires_grad=True)
    wanted = torch.stack([base.detach() ** n for n in range(9)], -1)
    assert relative(powers(base, 9), wanted) < 1e-13
    assert relative(power(base, 9), base.detach() ** 9) < 1e-13
    for count in (1, 2, 5, 8):
        assert torch.autograd.gradcheck(lambda b, n=count: powers(b, n), (base,))
    zero = torch.zeros(2, dtype=torch.complex128, requires_grad=True)
    powers(zero, 4).real.sum().backward()
    assert zero.grad is not None
    assert zero.grad.tolist() == [1, 1]


def test_krylov_rows() -> None:
    matrix, row = torch.randn(2, 4, 4, dtype=F64), torch.randn(2, 4, dtype=F64)
    x, wanted = row.unsqueeze(1), []
    for _ in range(7):
        wanted.append(x)
        x = x @ matrix
    assert relative(krylov(row, matrix, 7), torch.cat(wanted, 1)) < 1e-12


def test_fft_lengths_are_the_smallest_smooth_numbers() -> None:
    smooth = sorted(2**a * 3**b * 5**c for a in range(13) for b in range(8) for c in range(6))
    for least in range(1, 2100):
        assert fft_length(least) == next(s for s in smooth if s >= least)
