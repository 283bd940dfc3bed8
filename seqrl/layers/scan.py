"""The selective scan of Mamba (Gu & Dao 2023, arXiv 2312.00752), fast on one CPU core.

    h_t = exp(dt_t A) h_{t-1} + (dt_t u_t) B_t,   y_t = sum_n h_t[n] C_t[n]

One autograd function with a hand-written backward. What makes it fast:

* the sequence is walked in slices of some rows and chunks of some steps, so small that the states
  of one chunk stay in the processor's cache, and large enough that each operation is long;
* states are ``[steps, rows, N, E]``: what is broadcast runs along E without stride;
* the backward recomputes a chunk's states from the one before the chunk, the only ones that the
  forward keeps: cheaper than writing all states to memory and reading them again;
* decays are powers of two, ``2 ** (dt A log2(e))``: half the time of ``exp`` where the processor
  has no wider vectors than AVX2.

Shapes: B rows, L tokens, E channels, N states a channel.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOG2E = math.log2(math.e)
STEP_ELEMENTS = 1 << 16
"""Most state elements of one step of a slice."""
CHUNK_ELEMENTS = 1 << 19
"""Most state elements of one chunk: 2 MB in float32."""


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The scan over a whole sequence.

    It computes in float32 (float64 for float64 inputs), under autocast too.

    Args:
        u: ``[B, L, E]`` inputs.
        dt: ``[B, L, E]`` step sizes, at least 0.
        A: ``[E, N]`` rates, below 0.
        B: ``[B, L, N]`` how the input enters the states.
        C: ``[B, L, N]`` how the states are read.
        h0: ``[B, N, E]`` states before the first token; None means zeros.

    Returns:
        ``y [B, L, E]`` and the states after the last token ``[B, N, E]``.
    """
    wide = torch.float64 if u.dtype == torch.float64 else torch.float32
    given = [x.to(wide) for x in (u, dt, A, B, C)]
    if h0 is None and u.is_cuda and wide == torch.float32 and _cuda_scan() is not None:
        return _on_cuda(*given)
    h0 = None if h0 is None else h0.to(wide)
    return _apply(*given, h0)


def _apply(*given: Any) -> tuple[Tensor, Tensor]:
    return _SelectiveScan.apply(*given)


# The compiler would unroll the loop over time. This is what torch.compiler.disable sets, which
# would load the compiler for everyone.
_apply._torchdynamo_disable = True  # type: ignore[attr-defined]


class _Piece(NamedTuple):
    """Steps ``time`` of rows ``rows``."""

    chunk: int
    time: slice
    rows: slice

    @property
    def steps(self) -> int:
        return self.time.stop - self.time.start

    def of(self, x: Tensor) -> Tensor:
        """This piece of ``x [B, L, ...]``, a view ``[steps, rows, ...]``."""
        return x.transpose(0, 1)[self.time, self.rows]

    def put(self, x: Tensor, values: Tensor) -> None:
        """Write this piece of ``x``; ``values`` in any shape of the same order."""
        piece = self.of(x)
        piece.copy_(values.view(piece.shape))


class _Slices:
    """How a batch is cut into slices of rows and chunks of steps."""

    def __init__(self, u: Tensor, A: Tensor):
        batch, length, step = *u.shape[:2], A.numel()
        self.batch, self.length = batch, length
        self.rows = max(1, min(batch, STEP_ELEMENTS // step))
        self.steps = max(1, min(length, CHUNK_ELEMENTS // (self.rows * step)))
        self.chunks = -(-length // self.steps)

    def slices(self) -> list[slice]:
        """The slices of rows."""
        starts = range(0, self.batch, self.rows)
        return [slice(i, min(i + self.rows, self.batch)) for i in starts]

    def pieces(self, rows: slice) -> list[_Piece]:
        """The chunks of one slice, in order of time."""
        out = []
        for c in range(self.chunks):
            stop = min((c + 1) * self.steps, self.length)
            out.append(_Piece(c, slice(c * self.steps, stop), rows))
        return out


class _Buffer:
    """Memory for the states of a chunk ``[steps, rows, N, E]``, with a view of each step."""

    def __init__(self, like: Tensor, steps: int, rows: int, inner: torch.Size):
        self.all = like.new_empty(steps, rows, *inner)
        self.step = self.all.unbind(0)


class _SelectiveScan(torch.autograd.Function):
    """Inputs as :func:`selective_scan`, all of one dtype."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(u.device.type, enabled=False):
            y, last, edges = _outputs(u, dt, A, B, C, h0)
        ctx.save_for_backward(u, dt, A, B, C, edges)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor | None, glast: Tensor | None) -> tuple[Any, ...]:
        u, dt, A, B, C, edges = ctx.saved_tensors
        gy = torch.zeros_like(u) if gy is None else gy
        with torch.autocast(u.device.type, enabled=False):
            *grads, dh0 = _gradients(u, dt, A, B, C, edges, gy, glast)
        return (*grads, dh0 if ctx.needs_input_grad[5] else None)


def _outputs(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h0: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``y``, the last states, and the states before each chunk ``[chunks, B, N, E]``."""
    cut = _Slices(u, A)
    rate = (A * LOG2E).t().contiguous()
    edges = u.new_empty(cut.chunks, u.shape[0], *rate.shape)
    y, last, x = torch.empty_like(u), torch.empty_like(edges[0]), dt * u
    for rows in cut.slices():
        r = rows.stop - rows.start
        decay, h = (_Buffer(u, cut.steps + i, r, rate.shape) for i in (0, 1))
        start: Any = 0.0 if h0 is None else h0[rows]
        for p in cut.pieces(rows):
            h.all[0] = start
            edges[p.chunk, rows] = start
            states = _states(decay, h, p.of(dt), p.of(x), p.of(B), rate)[1]
            read = p.of(C).reshape(-1, 1, C.shape[-1])
            p.put(y, torch.bmm(read, states.flatten(0, 1)))
            start = h.step[p.steps]
        last[rows] = start
    return y, last, edges


def _states(
    decay: _Buffer, h: _Buffer, dt: Tensor, x: Tensor, b: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor]:
    """Decays and states of a chunk, from the state before it in ``h.all[0]``."""
    n = dt.shape[0]
    a, states = decay.all[:n], h.all[1 : n + 1]
    torch.mul(dt.unsqueeze(2), rate, out=a)
    torch.exp2(a, out=a)
    torch.mul(x.unsqueeze(2), b.unsqueeze(3), out=states)
    for t in range(n):
        h.step[t + 1].addcmul_(decay.step[t], h.step[t])
    return a, states


def _gradients(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, edges: Tensor,
    gy: Tensor, glast: Tensor | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of u, dt, A, B, C and h0.

    With G_t the gradient of h_t: ``G_t = gy_t C_t + a_{t+1} G_{t+1}``. The exponent ``dt_t A`` of
    the decay a_t gets ``G_t a_t h_{t-1}``, the input ``dt_t u_t`` gets ``s_t = sum_n G_t B_t``.
    """
    cut = _Slices(u, A)
    rate = A.t().contiguous()
    binary = rate * LOG2E
    x = dt * u
    dA, dB, dC = torch.zeros_like(rate), torch.empty_like(B), torch.empty_like(C)
    s, q, dh0 = torch.empty_like(u), torch.empty_like(u), torch.empty_like(edges[0])
    for rows in cut.slices():
        r = rows.stop - rows.start
        decay, h, g = (_Buffer(u, cut.steps + i, r, rate.shape) for i in (0, 1, 1))
        carry: Any = None if glast is None else glast[rows]
        for p in reversed(cut.pieces(rows)):
            n = p.steps
            xs, bs, gys = (p.of(v).contiguous() for v in (x, B, gy))
            h.all[0] = edges[p.chunk, rows]
            a, states = _states(decay, h, p.of(dt), xs, bs, binary)
            p.put(dC, torch.bmm(states.flatten(0, 1), _columns(gys)))
            grads = torch.mul(gys.unsqueeze(2), p.of(C).unsqueeze(3), out=g.all[:n])
            if carry is not None:
                g.step[n - 1].add_(carry)
            for t in range(n - 2, -1, -1):
                g.step[t].addcmul_(decay.step[t + 1], g.step[t + 1])
            # In the place after the last step, which a chunk does not use.
            carry = torch.mul(decay.step[0], g.step[0], out=g.step[cut.steps])
            p.put(s, torch.bmm(bs.view(n * r, 1, -1), grads.flatten(0, 1)))
            p.put(dB, torch.bmm(grads.flatten(0, 1), _columns(xs)))
            exponent = a.mul_(h.all[:n]).mul_(grads)
            dA += torch.mul(exponent, p.of(dt).unsqueeze(2), out=grads).sum((0, 1))
            p.put(q, exponent.mul_(rate).sum(2))
        dh0[rows] = carry
    return s * dt, q.addcmul_(u, s), dA.t(), dB, dC, dh0


def _columns(x: Tensor) -> Tensor:
    """``[n, r, E]`` as columns ``[n r, E, 1]``, strided as batched products are fast for."""
    return x.view(-1, 1, x.shape[-1]).transpose(1, 2)


@functools.cache
def _cuda_scan() -> Any:
    """The fused kernel of the ``mamba_ssm`` package, None where it is not installed."""
    if importlib.util.find_spec("mamba_ssm") is None:
        return None
    return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn


def _on_cuda(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    wide = [x.transpose(1, 2).contiguous() for x in (u, dt, B, C)]
    y, last = _cuda_scan()(wide[0], wide[1], A, wide[2], wide[3], return_last_state=True)
    return y.transpose(1, 2), last.transpose(1, 2)
