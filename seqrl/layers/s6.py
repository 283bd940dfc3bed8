"""S6, the mixer of Mamba (Gu & Dao 2023, arXiv 2312.00752): a state space read by its input.

    [u | z] = W_in x;   u <- SiLU(conv(u));   [r | B | C] = W_x u;   dt = softplus(W_dt r + b_dt)
    h_t = exp(dt_t A) h_{t-1} + (dt_t u_t) B_t;   y_t = h_t C_t + D u_t;   out = W_out (y SiLU(z))

Parameters have the names and shapes of the released code, so that checkpoints map. The decay is
discretised exactly, the input by dt B, as in every public implementation.

Shapes: B rows, L tokens, D width, E = expand D channels, N states a channel, k taps of the
convolution, R rank of the step size.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.layers.causal_conv import CausalConv
from seqrl.layers.mixer import Mixer, Place
from seqrl.layers.scan import LOG2E, selective_scan

State = tuple[Tensor, Tensor]
FEW = 4
"""Up to so many tokens without gradients take the path of single steps."""


class S6(Mixer):
    """See the module's docstring. State: the last k - 1 inputs of the convolution
    ``[B, k-1, E]``, oldest first, and ``h [B, N, E]``.

    Args:
        width: D.
        expand: E / D.
        state: N.
        conv: k.
        rank: R; None means D / 16, rounded up.
        gated: False leaves out the gate z and W_out, for use by :meth:`inner` alone.
    """

    def __init__(
        self,
        width: int,
        expand: int = 2,
        state: int = 16,
        conv: int = 4,
        rank: int | None = None,
        gated: bool = True,
    ):
        super().__init__()
        inner, rank = expand * width, rank or -(-width // 16)
        self.sizes = (rank, state, state)
        self.taps = conv
        self.in_proj = nn.Linear(width, 2 * inner if gated else inner, bias=False)
        self.conv1d = CausalConv(inner, conv)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, width, bias=False) if gated else nn.Identity()
        self._prepared: tuple[Any, tuple[Tensor, Tensor]] | None = None
        self.start_step_sizes()

    @torch.no_grad()
    def start_step_sizes(self, low: float = 1e-3, high: float = 0.1) -> None:
        """Step sizes that start log-uniform in ``[low, high]``: memories of 10 to 1000 tokens.

        An initialisation that resets every linear layer must call this afterwards.
        """
        rank = self.sizes[0]
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        span = math.log(high) - math.log(low)
        s = torch.exp(torch.rand_like(self.dt_proj.bias) * span + math.log(low)).clamp_min(1e-4)
        self.dt_proj.bias.copy_(s + torch.log(-torch.expm1(-s)))  # the inverse of softplus

    @classmethod
    def for_stack(cls, place: Place, **options: Any) -> S6:
        return cls(place.width, **options)

    def parameter_groups(self) -> list[dict[str, Any]]:
        bias = [b for b in (self.conv1d.bias, self.dt_proj.bias) if b is not None]
        return [{"params": [self.A_log, self.D, *bias], "weight_decay": 0.0}]

    def forward(
        self, x: Tensor, state: State | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """See :meth:`Mixer.forward`.

        Args:
            mask: ``[B, L]``, False or 0 at padding before the first real token; outputs of real
                tokens do not depend on it. Padding after the last needs no mask.
        """
        u, z = F.linear(x, self.in_proj.weight).chunk(2, -1)
        y, state = self.inner(u, state, mask)
        return self.out_proj(y * F.silu(z)), state

    def inner(
        self, u: Tensor, state: State | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        """What lies between ``W_in x`` and the gate: ``u [B, L, E]`` to ``y [B, L, E]``."""
        if torch.is_grad_enabled():
            self._prepared = None  # an update may follow, and a fused one leaves no version behind
        keep = None if mask is None else mask.unsqueeze(-1)
        # The convolution's bias makes padding non-zero: it is masked on both sides.
        u = u if keep is None else u * keep
        if state is not None and u.shape[1] <= FEW and not torch.is_grad_enabled():
            return self._few(u, state, keep)
        u = u.to(self.D.dtype)  # from here on in the parameters' precision, under autocast too
        before, h = (None, None) if state is None else state
        after = None if before is None else self.conv1d.after(u, before)
        u = F.silu(self.conv1d(u, before))
        u = u if keep is None else u * keep
        r, b, c = self.x_proj(u).split(self.sizes, -1)
        dt = F.softplus(self.dt_proj(r).to(u.dtype))
        y, h = selective_scan(u, dt, -torch.exp(self.A_log), b, c, h)
        return torch.addcmul(y, u, self.D), None if after is None else (after, h)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y, after = self.forward(x.unsqueeze(1), state)
        return y.squeeze(1), after  # type: ignore[return-value]

    def initial_state(self, rows: int) -> State:
        zeros = self.A_log.new_zeros
        inner = self.A_log.shape[0]
        return zeros(rows, self.taps - 1, inner), zeros(rows, self.sizes[1], inner)

    def train(self, mode: bool = True) -> S6:
        self._prepared = None
        return super().train(mode)

    def _few(self, u: Tensor, state: State, keep: Tensor | None) -> tuple[Tensor, State]:
        """What ``inner`` does, for a few tokens and no gradients, in few operations.

        For one row these cost what their number costs, hence no calls of modules.
        """
        taps, rate = self._prepare()
        n, bias = u.shape[1], cast(Tensor, self.conv1d.bias)
        seen = torch.cat([state[0], u], 1)
        if n == 1:
            u = torch.add((seen * taps).sum(1, keepdim=True), bias)
        else:
            u = torch.addcmul(bias, seen[:, :n], taps[0])
            for j in range(1, self.taps):
                u.addcmul_(seen[:, j : j + n], taps[j])
        u = F.silu(u)
        u = u if keep is None else u * keep
        r, b, c = F.linear(u, self.x_proj.weight).split(self.sizes, -1)
        dt = F.softplus(F.linear(r, self.dt_proj.weight, self.dt_proj.bias))
        x, b, h, outs = dt * u, b.unsqueeze(3), state[1], []
        for i in range(n):
            decay = torch.exp2(dt[:, i : i + 1] * rate)  # (B, N, E)
            h = torch.addcmul(decay.mul_(h), x[:, i : i + 1], b[:, i])
            outs.append(torch.bmm(c[:, i : i + 1], h))
        y = outs[0] if n == 1 else torch.cat(outs, 1)
        return torch.addcmul(y, u, self.D), (seen[:, n:], h)

    def _prepare(self) -> tuple[Tensor, Tensor]:
        """Taps ``[k, E]`` and ``A log2(e) [N, E]``, kept while the parameters stay what they are.

        Only ``_few`` reads them, so what acting computes never enters a training graph. In training
        mode nothing is kept.
        """
        a, w = self.A_log, self.conv1d.weight
        key = None
        if not (self.training or a.is_inference() or torch.compiler.is_compiling()):
            key = (a.data_ptr(), a._version, w.data_ptr(), w._version)
            if self._prepared is not None and self._prepared[0] == key:
                return self._prepared[1]
        taps, rate = w.squeeze(1).t().contiguous(), (torch.exp(a) * -LOG2E).t().contiguous()
        if key is not None:
            self._prepared = key, (taps, rate)
        return taps, rate
