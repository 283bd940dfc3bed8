"""State space layers S4D and S4: one small linear recurrence a channel, trained as a convolution.

Each of H channels has N state numbers, kept as N/2 complex modes (the conjugates are implied)::

    x' = lambda x + b u,  y = 2 Re(c . x) + d u                          (continuous)
    x_t = abar x_{t-1} + bbar u_t,  y_t = 2 Re(c . x_t) + d u_t          (steps of length dt)
    y = K * u + d u,  K[l] = 2 Re sum_n c_n bbar_n abar_n^l              (a whole sequence)

The recurrence gives one token at a constant cost, the convolution a whole sequence by FFT. Both
read the same parameters, so they agree to rounding. Gu et al. 2022, arXiv 2111.00396 (S4) and
2206.11893 (S4D). Not theirs: the kernel is evaluated as a matrix product of two sets of powers,
about sqrt(L) each; the recurrence leaves ``bbar`` to the output (``x_t = abar x_{t-1} + u_t`` read
by ``c bbar``), which saves a multiplication a step; and discretisation is done in float64, because
the phases of the fast modes of LegS reach 10^5 radians over a thousand steps.

Shapes: B rows, L tokens, H channels (the width), N state numbers, S copies of the state matrix.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.layers.fft_conv import causal_convolution, krylov, power, powers
from seqrl.layers.hippo import diagonal_modes, legs_modes
from seqrl.layers.mixer import Mixer, Place
from seqrl.layers.state import exporting

KERNEL_LR = 1e-3
"""Highest learning rate of time steps and state matrices (that of the S4 authors)."""
B_CLIP = 2.0
"""Bound on the first ``b`` (of LegS; as in the authors' code)."""

Constants = tuple[Tensor, ...]


class S4D(Mixer):
    """Diagonal state spaces, one a channel.

    Args:
        width: H.
        state: N, even.
        init: first state matrix: ``legs``, ``lin``, ``inv``, ``real`` or ``random``
            (:mod:`seqrl.layers.hippo`).
        disc: ``zoh`` (input held over a step) or ``bilinear``.
        dt_min: shortest first step length; memory reaches back about 1/dt tokens.
        dt_max: longest first step length; log-uniform between the two, one a channel.
        n_ssm: copies S of the state matrix, each shared by H/S channels; by default 1 for
            ``legs`` and ``random``, H for the others.
        train_kernel: train dt, state matrix and input vector; else only ``C`` and ``D`` learn.
        kernel_dtype: ``float32``, or ``float64`` for the kernel's powers.
        mix: follow the channels with GELU and a linear layer between them, so that the layer is a
            mixer of its own. Without it channels stay apart.

    Raises:
        SeqrlError: a value that is not allowed.
    """

    tolerance: ClassVar[dict[str, float]] = {
        "causality": 3e-6,  # the FFT rounds
        "step": 1e-4,
        "chunk": 1e-4,
        "step64": 1e-10,
    }
    kernel_names: ClassVar[tuple[str, ...]] = ("log_dt", "log_decay", "frequency", "B")
    """Parameters that ``train_kernel`` is about."""

    def __init__(
        self,
        width: int,
        *,
        state: int = 64,
        init: str = "legs",
        disc: Literal["zoh", "bilinear"] = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        n_ssm: int | None = None,
        train_kernel: bool = True,
        kernel_dtype: Literal["float32", "float64"] = "float32",
        mix: bool = False,
    ):
        super().__init__()
        n_ssm = n_ssm or (1 if init in ("legs", "random") else width)
        _require(width % n_ssm == 0, "n_ssm", n_ssm, f"a divisor of the width {width}")
        _require(disc in ("zoh", "bilinear"), "disc", disc, "zoh or bilinear")
        known = ("float32", "float64")
        _require(kernel_dtype in known, "kernel_dtype", kernel_dtype, " or ".join(known))
        _require(0 < dt_min <= dt_max, "dt_min", dt_min, f"above 0 and at most dt_max ({dt_max})")
        self.width, self.state, self.disc = width, state, disc
        self.kernel_dtype, self.n_ssm = kernel_dtype, n_ssm
        self.log_dt = nn.Parameter(torch.empty(width).uniform_(math.log(dt_min), math.log(dt_max)))
        self._first_matrices(init)
        self.C = nn.Parameter(torch.view_as_real(torch.randn(width, state // 2, dtype=_COMPLEX)))
        self.D = nn.Parameter(torch.randn(width))
        self.out = nn.Linear(width, width) if mix else None
        if not train_kernel:
            self.freeze_kernel()
        self._cache: tuple[list[Any], Constants] | None = None

    def _first_matrices(self, init: str) -> None:
        modes = diagonal_modes(init, self.state, B_CLIP)

        def copies(values: Tensor) -> nn.Parameter:
            return nn.Parameter(values.float().repeat(self.n_ssm, *[1] * values.dim()))

        # Re(lambda) = -exp(log_decay) < 0 whatever the optimiser does.
        self.log_decay = copies((-modes.eigenvalues.real).log())  # (S, N/2)
        self.frequency = copies(modes.eigenvalues.imag)  # (S, N/2)
        self.B = copies(torch.view_as_real(modes.b))  # (S, N/2, 2)

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> Self:
        """See :class:`seqrl.layers.mixer.Mixer`; channels are mixed unless told otherwise."""
        return cls(place.width, **{"mix": True, **options})

    # --- parameters ---------------------------------------------------------------------------

    @property
    def kernel_parameters(self) -> list[nn.Parameter]:
        """Step lengths, state matrix and input vector."""
        return [getattr(self, name) for name in self.kernel_names]

    def freeze_kernel(self) -> None:
        """Train step lengths, state matrix and input vector no further."""
        for p in self.kernel_parameters:
            p.requires_grad_(False)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """No decay on anything of the recurrence, and a bounded rate for the kernel's inside."""
        return [
            {"params": self.kernel_parameters, "weight_decay": 0.0, "lr_max": KERNEL_LR},
            {"params": [self.C, self.D], "weight_decay": 0.0},
        ]

    def _spread(self, values: Tensor) -> Tensor:
        """``[S, ...]`` to ``[H, ...]``: channel h has copy h modulo S."""
        return values.repeat(self.width // self.n_ssm, *[1] * (values.dim() - 1))

    def continuous(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Step lengths ``[H, 1]``, eigenvalues, ``b`` and ``c`` ``[H, N/2]``, in float64."""
        dt = self.log_dt.double().exp().unsqueeze(-1)
        decay, frequency = self._spread(self.log_decay), self._spread(self.frequency)
        eigenvalues = torch.complex(-decay.double().exp(), frequency.double())
        return dt, eigenvalues, _complex(self._spread(self.B)), _complex(self.C)

    def system(self) -> tuple[Tensor, Tensor]:
        """``abar`` and ``c bbar``, ``[H, N/2]`` complex128."""
        dt, eigenvalues, b, c = self.continuous()
        z = dt * eigenvalues
        if self.disc == "zoh":
            abar = torch.exp(z)
            return abar, c * b * (abar - 1) / eigenvalues
        return (1 + z / 2) / (1 - z / 2), c * b * dt / (1 - z / 2)

    @property
    def _complex_dtype(self) -> torch.dtype:
        single = self.D.dtype == torch.float32 and self.kernel_dtype == "float32"
        return torch.complex64 if single else torch.complex128

    # --- whole sequences ----------------------------------------------------------------------

    def kernel(self, length: int) -> Tensor:
        """The convolution's kernel ``[H, L]``.

        With ``l = r q + s`` and r about sqrt(L), ``abar^l = abar^(r q) abar^s``: a product of
        matrices ``[Q, N]`` and ``[N, r]`` a channel in place of an array ``[H, N, L]``.
        """
        abar, cb = self.system()
        r = math.isqrt(length - 1) + 1
        q = -(-length // r)
        dtype = self._complex_dtype
        coarse = cb.to(dtype).unsqueeze(-1) * powers(power(abar, r).to(dtype), q)  # (H, N/2, Q)
        fine = powers(abar.to(dtype), r)  # (H, N/2, r)
        left = torch.cat([coarse.real, -coarse.imag], 1).transpose(1, 2)
        product = torch.bmm(left, torch.cat([fine.real, fine.imag], 1))
        return (2 * product.flatten(1)[:, :length]).to(self.D.dtype)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """See :class:`seqrl.layers.mixer.Mixer`; computed in the parameters' own precision."""
        if torch.is_grad_enabled():
            self._cache = None  # an optimiser step may follow
        with torch.autocast(x.device.type, enabled=False):
            u = x.to(self.D.dtype)
            y = torch.addcmul(causal_convolution(u, self.kernel(u.shape[1])), u, self.D)
            if state is not None:
                earlier, state = self._carry(u, state)
                y = y + earlier
        return self._mixed(y), state

    def _carry(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """What a state adds to the outputs ``[B, L, H]``, and the state after the inputs."""
        re, im = state
        length = u.shape[1]
        abar, cb = self.system()
        dtype = self._complex_dtype
        p = powers(abar.to(dtype), length + 1)  # (H, N/2, L+1)
        reading = 2 * cb.to(dtype).unsqueeze(-1) * p[..., 1:]
        reading = torch.cat([reading.real, -reading.imag], 1)  # (H, N, L)
        x = torch.cat([re, im], -1).transpose(0, 1).to(reading.dtype)  # (H, B, N)
        earlier = torch.bmm(x, reading).permute(1, 2, 0)
        remaining = p[..., :length].flip(-1).transpose(1, 2)  # (H, L, N/2)
        inputs = u.permute(2, 0, 1).to(reading.dtype)  # (H, B, L)
        gained = [torch.bmm(inputs, w).transpose(0, 1) for w in (remaining.real, remaining.imag)]
        left = torch.complex(re, im) * p[..., -1]
        new = (left.real + gained[0], left.imag + gained[1])
        return earlier.to(u.dtype), tuple(t.to(re.dtype) for t in new)

    def _mixed(self, y: Tensor) -> Tensor:
        return y if self.out is None else self.out(F.gelu(y))

    # --- token by token -----------------------------------------------------------------------

    def initial_state(self, rows: int) -> Any:
        """Real and imaginary parts ``[B, H, N/2]``, zero."""
        zeros = self.D.new_zeros(rows, self.width, self.state // 2)
        return zeros, zeros.clone()

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See :class:`seqrl.layers.mixer.Mixer`. Never writes into the state it is given."""
        a_re, a_im, c_re, c_im = self.step_constants()
        u, (re, im) = x.to(a_re.dtype), state
        new_re = torch.addcmul(u.unsqueeze(-1), a_re, re).addcmul_(a_im, im, value=-1)
        new_im = (a_re * im).addcmul_(a_im, re)
        y = (new_re * c_re).addcmul_(new_im, c_im).sum(-1)
        return self._mixed(torch.addcmul(y, self.D, u)), (new_re, new_im)

    def _constants(self) -> Constants:
        """What a step multiplies by: parts of ``abar`` and of ``2 c bbar``, all real."""
        abar, cb = self.system()
        parts = (abar.real, abar.imag, 2 * cb.real, -2 * cb.imag)
        return tuple(t.to(self.D.dtype).contiguous() for t in parts)

    def step_constants(self) -> Constants:
        """The constants of :meth:`step`, kept between steps while acting.

        Computing them costs about ten steps of a row. They are kept in evaluation mode alone, and
        never become stale: whatever writes to a parameter in place changes its version, except
        fused optimisers, and those need a gradient, so anything that may lead to one forgets them.
        """
        if exporting():
            return self._constants()
        own = [p for p in self._parameters.values() if p is not None]
        learning = torch.is_grad_enabled() or any(p.grad is not None for p in own)
        if self.training or learning:
            self._cache = None
            return self._constants()
        if self._cache is None or not all(map(_unchanged, own, self._cache[0])):
            # Outside inference mode, so that they may meet ordinary tensors later.
            with torch.inference_mode(False), torch.no_grad():
                self._cache = ([_mark(p) for p in own], self._constants())
        return self._cache[1]

    def train(self, mode: bool = True) -> Self:
        """As of any module; forgets the constants of :meth:`step`."""
        self._cache = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._cache = None  # moved to another device or type
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cache = None  # parameters may be replaced, not written to
        super()._load_from_state_dict(*args, **kwargs)


class S4(S4D):
    """The full S4 layer: HiPPO-LegS as diagonal plus rank one, bilinear steps.

    The kernel comes from its generating function at the roots of unity, by Cauchy sums and the
    Woodbury identity (arXiv 2111.00396, section 3 and appendix C). There ``C (I - Abar^L)`` is the
    trained parameter, which ties a layer to one length; here ``C`` is, and the factor is computed
    for the length at hand. ``Abar`` is diagonal plus rank one as well, so a step costs O(N) and
    twice that of S4D. (Diagonalising it instead is no way out: the eigenvectors of LegS have a
    condition that grows exponentially with N.) A sequence costs several times that of S4D, and is
    hardly better; S4D with ``init=legs`` is the one to use.

    Args:
        width: H.
        options: as for :class:`S4D`, but for ``init`` and ``disc``, which are fixed.
    """

    kernel_names: ClassVar[tuple[str, ...]] = ("log_dt", "log_decay", "frequency", "B", "P")

    def __init__(self, width: int, **options: Any):
        if fixed := sorted({"init", "disc"} & set(options)):
            raise SeqrlError(f"S4 has no option '{fixed[0]}'", hint="S4D has (mixer s4d)")
        super().__init__(width, init="legs", disc="bilinear", **options)

    def _first_matrices(self, init: str) -> None:
        super()._first_matrices(init)
        p = torch.view_as_real(legs_modes(self.state)[0].p).float()
        self.P = nn.Parameter(p.repeat(self.n_ssm, 1, 1))

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """``Abar [H, N, N]``, ``Bbar [H, N]`` and ``C [H, N]`` in float64.

        They act on the real and imaginary parts of the kept modes, stacked: with the conjugates
        written out, ``x' = A11 x + A12 conj(x) + b u`` for ``A11 = diag(lambda) - p p*`` and
        ``A12 = -p p'``.
        """
        dt, eigenvalues, b, c = self.continuous()
        p = _complex(self._spread(self.P))
        a11 = torch.diag_embed(eigenvalues) - p.unsqueeze(-1) * p.conj().unsqueeze(-2)
        a12 = -p.unsqueeze(-1) * p.unsqueeze(-2)
        both, apart = a11 + a12, a11 - a12
        upper = torch.cat([both.real, -apart.imag], -1)
        a = torch.cat([upper, torch.cat([both.imag, apart.real], -1)], -2)
        one = torch.eye(self.state, dtype=a.dtype, device=a.device)
        half = dt.unsqueeze(-1) / 2 * a
        right = torch.cat([one + half, (dt * torch.cat([b.real, b.imag], -1)).unsqueeze(-1)], -1)
        solved = torch.linalg.solve(one - half, right)
        return solved[..., :-1], solved[..., -1], torch.cat([2 * c.real, -2 * c.imag], -1)

    def kernel(self, length: int) -> Tensor:
        """The convolution's kernel ``[H, L]``.

        Multiplied through by ``1 + omega``, the published formula has no point without a value:
        ``Khat = r(c, b) - r(c, p) r(p*, b) h / (1 + h r(p*, p))`` with ``h = (1 + omega)/2`` and
        ``r(v, w) = sum_n 2 dt v_n w_n / (2 (1 - omega) - (1 + omega) dt lambda_n)`` over all modes.
        """
        dtype = self._complex_dtype
        dt, eigenvalues, b, _ = self.continuous()
        p = _complex(self._spread(self.P))
        abar, _, c_row = self.matrices()
        cut = c_row - (c_row.unsqueeze(-2) @ torch.linalg.matrix_power(abar, length)).squeeze(-2)
        n = self.state // 2
        c = torch.complex(cut[..., :n], -cut[..., n:]) / 2
        j = torch.arange(length // 2 + 1, dtype=torch.float64, device=dt.device)
        omega = torch.polar(torch.ones_like(j), -2 * math.pi * j / length)
        pairs = torch.stack([c * b, c * p, p.conj() * b, p.conj() * p], 1)  # (H, 4, N/2)
        z = (dt * eigenvalues).unsqueeze(-1)

        def summed(numerators: Tensor, z: Tensor) -> Tensor:
            poles = 1 / (2 * (1 - omega) - (1 + omega) * z)  # (H, N/2, J)
            return torch.bmm((2 * dt.unsqueeze(-1) * numerators).to(dtype), poles.to(dtype))

        cb, cp, pb, pp = (summed(pairs, z) + summed(pairs.conj(), z.conj())).unbind(1)
        h = ((1 + omega) / 2).to(dtype)
        values = cb - cp * pb * h / (1 + h * pp)
        return torch.fft.irfft(values, length).to(self.D.dtype)

    def _carry(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        x = torch.cat(state, -1)
        length = u.shape[1]
        abar, bbar, c = (t.to(self._complex_dtype.to_real()) for t in self.matrices())
        reading = krylov((c.unsqueeze(-2) @ abar).squeeze(-2), abar, length)  # c Abar^(l+1)
        entering = krylov(bbar, abar.mT, length).flip(1)  # Abar^(L-1-l) Bbar, (H, L, N)
        before = x.transpose(0, 1).to(c.dtype)  # (H, B, N)
        earlier = torch.bmm(before, reading.mT).permute(1, 2, 0)
        after = torch.bmm(before, torch.linalg.matrix_power(abar, length).mT)
        after = after + torch.bmm(u.permute(2, 0, 1).to(c.dtype), entering)
        return earlier.to(u.dtype), after.transpose(0, 1).to(x.dtype).chunk(2, -1)

    def structured(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``Abar`` and ``Bbar`` in O(N): ``a``, ``w``, ``q`` and ``bbar``, ``[H, N/2]`` complex128.

        Those of :meth:`matrices` on the kept modes: ``x' = a x + w 2 Re(q . x) + bbar u``. As
        ``Abar = 2 R - 1`` for ``R = (1 - dt/2 A)^-1``, and R is by Woodbury a diagonal ``e`` less
        one of rank one, so is Abar. The divisor is at least 1, because ``Re(e) > 0``.
        """
        dt, eigenvalues, b, _ = self.continuous()
        p = _complex(self._spread(self.P))
        half = dt / 2 * eigenvalues
        e = 1 / (1 - half)
        q = p.conj() * e
        w = -dt / (1 + dt * (q * p).real.sum(-1, keepdim=True)) * (e * p)
        entering = dt * b
        bbar = e * entering + w * (q * entering).real.sum(-1, keepdim=True)
        return (1 + half) * e, w, q, bbar

    def _constants(self) -> Constants:
        """Parts of :meth:`structured` and of ``2 c``, ``[H, N/2]`` each, all real."""
        a, w, q, bbar = self.structured()
        c = _complex(self.C)
        parts = [a.real, a.imag, w.real, w.imag, 2 * q.real, -2 * q.imag, bbar.real, bbar.imag]
        parts += [2 * c.real, -2 * c.imag]
        return tuple(t.to(self.D.dtype).contiguous() for t in parts)

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """See :class:`seqrl.layers.mixer.Mixer`. Never writes into the state it is given."""
        a_re, a_im, w_re, w_im, q_re, q_im, b_re, b_im, c_re, c_im = self.step_constants()
        u, (re, im) = x.to(a_re.dtype), state
        entering = u.unsqueeze(-1)
        shared = (re * q_re).addcmul_(im, q_im).sum(-1, keepdim=True)
        new_re = torch.addcmul(entering * b_re, a_re, re).addcmul_(a_im, im, value=-1)
        new_re.addcmul_(shared, w_re)
        new_im = torch.addcmul(entering * b_im, a_re, im).addcmul_(a_im, re)
        new_im.addcmul_(shared, w_im)
        y = (new_re * c_re).addcmul_(new_im, c_im).sum(-1)
        return self._mixed(torch.addcmul(y, self.D, u)), (new_re, new_im)


_COMPLEX = torch.complex64


def _mark(p: Tensor) -> Any:
    """What tells whether a parameter is still what it was.

    Those made in inference mode have no versions: their values, which cost far less to compare
    than the constants cost to compute. A deep copy counts its versions anew, hence the address.
    """
    return p.detach().clone() if p.is_inference() else (p.data_ptr(), p._version)


def _unchanged(p: Tensor, mark: Any) -> bool:
    if isinstance(mark, Tensor):
        return torch.equal(p, mark)
    return not p.is_inference() and mark == (p.data_ptr(), p._version)


def _complex(pairs: Tensor) -> Tensor:
    return torch.view_as_complex(pairs.double())


def _require(ok: bool, name: str, value: Any, allowed: str) -> None:
    if not ok:
        raise SeqrlError(f"{name} is {value!r}, must be {allowed}")
