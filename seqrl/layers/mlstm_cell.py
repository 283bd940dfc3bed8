"""The mLSTM cell (Beck et al. 2024, arXiv 2405.04517, section 2.3) in three equal forms.

Per row (one head of one sequence), with i and f pre-activations and ``lf = logsigmoid(f)``::

    m_t = max(lf_t + m_{t-1}, i_t);   f' = exp(lf_t + m_{t-1} - m_t);   i' = exp(i_t - m_t)
    C_t = f' C_{t-1} + i' k_t v_t^T;  n_t = f' n_{t-1} + i' k_t
    h_t = q_t C_t / (max(|q_t n_t|, exp(-m_t)) + eps)

``mlstm_step`` is this recurrence; ``mlstm`` computes whole sequences, in chunks whose insides are
matrix products (one chunk: the parallel form). The stored C and n are the true ones times exp(-m).
A memory begins with m = -inf, so that m is the row maximum of the parallel form and all forms agree
to rounding; the released code begins with 0 and differs by 1e-6.

Within a chunk, with b the running sum of lf and ``a = i - b``, the weight of token s at token t is
``exp(a_s - M_t)`` with ``M_t = max(m_in, max_{s<=t} a_s) = m_t - b_t``: no sum of two large numbers
per pair.

Shapes: R rows, L tokens, N chunks of l tokens, D head width. Keys come divided by sqrt(D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

EPS = 1e-6
WHOLE = 128
"""Sequences up to this long are one chunk."""
CHUNK = 64
"""Chunks of longer ones have about this length."""

Memory = tuple[Tensor, Tensor, Tensor]
"""``C [..., D, D]``, ``n [..., D]``, ``m [...]``."""


def fresh_memory(like: Tensor, *shape: int) -> Memory:
    """A memory that holds nothing; ``shape`` ends with D, type and device are those of ``like``."""
    *rows, d = shape
    m = like.new_full(rows, -torch.inf)
    return like.new_zeros(*rows, d, d), like.new_zeros(*rows, d), m


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    i: Tensor,
    f: Tensor,
    memory: Memory | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Memory | None]:
    """A sequence through the cell.

    Differentiable once, the memory's C and n included (m only scales them: it has no gradient).

    Args:
        q, k, v: ``[R, L, D]``, keys divided by sqrt(D).
        i, f: ``[R, L]`` pre-activations.
        memory: of earlier tokens, ``[R, ...]``; None is a fresh start whose end is not computed.
        chunk: tokens of a chunk; by default the whole sequence up to 128 tokens, about 64 beyond.

    Returns:
        ``h [R, L, D]`` and the memory after the last token (None for None).
    """
    length = q.shape[1]
    if chunk is None:
        chunks = 1 if length <= WHOLE else round(length / CHUNK)
        chunk = -(-length // chunks)
    chunk = min(chunk, length)
    missing = -length % chunk
    if missing:  # tokens that write nothing and forget nothing
        q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q, k, v))
        i, f = F.pad(i, (0, missing), value=-torch.inf), F.pad(f, (0, missing), value=torch.inf)
    start = memory or (None, None, None)
    h, c, n, m = _Chunkwise.apply(q, k, v, i, f, *start, chunk)
    return h[:, :length] if missing else h, None if memory is None else (c, n, m)


def mlstm_step(
    q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor, memory: Memory
) -> tuple[Tensor, Memory]:
    """One token: ``q, k, v [..., D]``, ``i, f [..., 1]``, memory with ``m [..., 1]``."""
    c, n, m = memory
    kept = F.logsigmoid(f) + m
    m = torch.maximum(kept, i)
    kept, k = torch.exp(kept - m), k * torch.exp(i - m)
    c = torch.addcmul(c * kept.unsqueeze(-1), k.unsqueeze(-1), v.unsqueeze(-2))
    n = torch.addcmul(k, n, kept)
    h = torch.matmul(q.unsqueeze(-2), c).squeeze(-2)
    norm = torch.maximum((q * n).sum(-1, keepdim=True).abs(), torch.exp(-m)) + EPS
    return h / norm, (c, n, m)


class _Chunkwise(torch.autograd.Function):
    """Chunks of a sequence: matrix products within, a short recurrence from one to the next.

    The backward pass needs no gate gradients of pairs: what token s gets over all later tokens is
    ``k_s . dk_s``, what token t gives over all earlier ones follows from ``h_t . dh_t``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        i: Tensor,
        f: Tensor,
        c0: Tensor | None,
        n0: Tensor | None,
        m0: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        rows, length, d = q.shape
        parts = length // chunk
        shape = (rows, parts, chunk)
        b = F.logsigmoid(f).view(shape).cumsum(-1)
        a = i.reshape(shape) - b
        top = a.cummax(-1).values
        carried = c0 is not None or parts > 1
        m_in, m_out = _running_tops(top[..., -1], b[..., -1], m0) if carried else (None, None)
        if m_in is not None:
            top = torch.maximum(top, m_in.unsqueeze(-1))
        q, k, v = (x.reshape(rows * parts, chunk, d) for x in (q, k, v))
        weight = (a.unsqueeze(-2) - top.unsqueeze(-1)).view(-1, chunk, chunk)
        weight = weight.clamp_(max=0).exp_().tril_()  # above the diagonal it might overflow
        pairs = torch.bmm(q, k.transpose(1, 2)).mul_(weight)
        num, den = torch.bmm(pairs, v), pairs.sum(-1)
        between: tuple[Tensor | None, ...] = (None,) * 6
        c = n = None
        if m_in is not None:
            reach = torch.exp(m_in.unsqueeze(-1) - top).view(-1, chunk, 1)
            last = top[..., -1]
            write = torch.exp(a - last.unsqueeze(-1)).view(-1, chunk, 1)
            kept = torch.exp(m_in - last)
            kw, qw = k * write, q * reach
            cs, ns = _carry(kw, v, kept, c0, n0)
            num.baddbmm_(qw, cs[:, :-1].reshape(-1, d, d))
            den += torch.bmm(qw, ns[:, :-1].reshape(-1, d, 1)).squeeze(-1)
            c, n = cs[:, -1], ns[:, -1]
            between = (reach, write, kept, cs, ns, qw)
        floor = torch.exp(-(b + top)).view(-1, chunk)
        norm = torch.maximum(den.abs(), floor)
        sign = torch.where(norm > floor, den.sign(), 0.0)
        norm += EPS
        h = num.div_(norm.unsqueeze(-1))
        ctx.save_for_backward(q, k, v, f, pairs, weight, h, norm, sign, den, *between)
        ctx.parts, ctx.has_memory = parts, c0 is not None
        if m_out is not None:
            ctx.mark_non_differentiable(m_out)
        return h.view(rows, length, d), c, n, m_out

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dh: Tensor, dc: Tensor | None, dn: Tensor | None, dm: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, f, pairs, weight, h, norm, sign, den, *between = ctx.saved_tensors
        shape = dh.shape
        dnum = dh.reshape(h.shape)
        reached = (dnum * h).sum(-1)
        dnum = dnum / norm.unsqueeze(-1)
        dden = (reached * sign).div_(norm).neg_()
        ds = torch.bmm(dnum, v.transpose(1, 2)).add_(dden.unsqueeze(-1)).mul_(weight)
        dq, dk = torch.bmm(ds, k), torch.bmm(ds.transpose(1, 2), q)
        dv = torch.bmm(pairs.transpose(1, 2), dnum)
        dc0 = dn0 = at_end = None
        if between[0] is not None:
            dc0, dn0, at_end = _between_backward(
                between, k, v, (dnum, dden), (dq, dk, dv), (dc, dn), ctx.parts
            )
        di = (k * dk).sum(-1).view(shape[:2])
        db = (reached + dden * den).view(shape[:2]) - di
        if at_end is not None:
            db[:, -1] += at_end
        dlf = db.flip(-1).cumsum(-1).flip(-1)
        df = dlf * torch.sigmoid(-f)
        if not ctx.has_memory:
            dc0 = dn0 = None
        return dq.view(shape), dk.view(shape), dv.view(shape), di, df, dc0, dn0, None, None


def _running_tops(top: Tensor, total: Tensor, m0: Tensor | None) -> tuple[Tensor, Tensor]:
    """m before each chunk ``[R, N]`` and after the last ``[R]``.

    Args:
        top: ``[R, N]`` largest a of each chunk.
        total: ``[R, N]`` sum of lf over each chunk.
        m0: ``[R]``; None means -inf.
    """
    m = torch.full_like(top[:, 0], -torch.inf) if m0 is None else m0
    before = []
    for best, lf in zip(top.unbind(1), total.unbind(1), strict=True):
        before.append(m)
        m = torch.maximum(best, m) + lf
    return torch.stack(before, 1), m


def _carry(
    kw: Tensor, v: Tensor, kept: Tensor, c0: Tensor | None, n0: Tensor | None
) -> tuple[Tensor, Tensor]:
    """C ``[R, N+1, D, D]`` and n ``[R, N+1, D]`` before each chunk and after the last.

    Args:
        kw: ``[R N, l, D]`` keys times their weight at the end of their chunk.
        kept: ``[R, N]`` what a chunk leaves of the memory before it.
    """
    rows, parts = kept.shape
    d = v.shape[-1]
    cs, ns = v.new_empty(rows, parts + 1, d, d), v.new_empty(rows, parts + 1, d)
    cs[:, 0] = 0.0 if c0 is None else c0
    ns[:, 0] = 0.0 if n0 is None else n0
    cs[:, 1:] = torch.bmm(kw.transpose(1, 2), v).view(rows, parts, d, d)
    ns[:, 1:] = kw.sum(1).view(rows, parts, d)
    for j in range(parts):
        left = kept[:, j, None]
        cs[:, j + 1].addcmul_(cs[:, j], left.unsqueeze(-1))
        ns[:, j + 1].addcmul_(ns[:, j], left)
    return cs, ns


def _between_backward(
    between: list[Tensor],
    k: Tensor,
    v: Tensor,
    outer: tuple[Tensor, Tensor],
    inner: tuple[Tensor, Tensor, Tensor],
    after: tuple[Tensor | None, Tensor | None],
    parts: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients that pass from chunk to chunk; adds to ``inner`` = (dq, dk, dv) in place.

    Args:
        outer: gradients of numerator and denominator.
        after: gradients of the last C and n.

    Returns:
        Gradients of the first C and n, and of the last log decay through the last memory ``[R]``.
    """
    reach, write, kept, cs, ns, qw = between
    (dnum, dden), (dq, dk, dv), (dc, dn) = outer, inner, after
    d = v.shape[-1]
    before_c, before_n = cs[:, :-1].reshape(-1, d, d), ns[:, :-1].reshape(-1, d)
    back = torch.bmm(dnum, before_c.transpose(1, 2))
    back.addcmul_(dden.unsqueeze(-1), before_n.unsqueeze(1))
    dq.addcmul_(back, reach)
    read = (-1, parts, d, d)
    gc = torch.bmm(qw.transpose(1, 2), dnum).view(read)
    gn = torch.bmm(qw.transpose(1, 2), dden.unsqueeze(-1)).view(read[:-1])
    # In place from "what chunk j read" to "what chunk j wrote", carried from the last one back.
    at_end = None
    end_c = torch.zeros_like(gc[:, 0]) if dc is None else dc
    end_n = torch.zeros_like(gn[:, 0]) if dn is None else dn
    if dc is not None or dn is not None:
        at_end = (end_c * cs[:, -1]).sum((-1, -2)) + (end_n * ns[:, -1]).sum(-1)
    for j in reversed(range(parts)):
        left = kept[:, j, None]
        read_c, read_n = gc[:, j].clone(), gn[:, j].clone()
        gc[:, j], gn[:, j] = end_c, end_n
        end_c = read_c.addcmul_(end_c, left.unsqueeze(-1))
        end_n = read_n.addcmul_(end_n, left)
    gc, gn = gc.view(-1, d, d), gn.view(-1, 1, d)
    back = torch.bmm(v, gc.transpose(1, 2)).add_(gn)
    dk.addcmul_(back, write)
    dv.baddbmm_(k * write, gc)
    return end_c, end_n, at_end
