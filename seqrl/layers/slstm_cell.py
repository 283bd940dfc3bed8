"""The time loop of the sLSTM cell, forwards and backwards, by hand.

Per head, with ``weight`` the map from ``[h_{t-1}; c_t; u_t]`` to the four gates i, f, z, o::

    m_t = max(i, logsigmoid(f) + m_{t-1})
    i' = exp(i - m_t);  f' = exp(logsigmoid(f) + m_{t-1} - m_t)
    C_t = f' C_{t-1} + i' tanh(z);  n_t = f' n_{t-1} + i';  h_t = sigmoid(o) C_t / n_t

m scales C and n alike and h does not depend on it, so it is a constant for the gradients. They run
back over time as two sums, gC and gn::

    gC_t = (o / n_t) dh_t + f'_{t+1} gC_{t+1};   gn_t = -(h_t / n_t) dh_t + f'_{t+1} gn_{t+1}
    di = gC i' tanh(z) + gn i';                  df = (gC C_{t-1} + gn n_{t-1}) f' sigmoid(-f)
    dz = gC i' (1 - tanh(z)^2);                  do = dh h (1 - sigmoid(o))

All factors of gC, gn and dh are computed for the whole sequence at once; the loop itself has seven
operations a step. The rows of the batch lie innermost, so each gate of a head is one block of
memory and one batched product serves all heads and gates.

Shapes: B rows, L tokens, D width, H heads, P = D / H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Memory = tuple[Tensor, Tensor, Tensor, Tensor]
"""``h, C, n, m``, each ``[H, P, B]``."""


def slstm(
    c: Tensor, u: Tensor, weight: Tensor, bias: Tensor, memory: Memory | None = None
) -> tuple[Tensor, Memory | None]:
    """A sequence through the cell.

    Args:
        c: ``[B, L, D]``, what the gates i and f read.
        u: ``[B, L, D]``, what z and o read.
        weight: ``[H, 4P, 3P]``; bias: ``[H, 4P, 1]``.
        memory: of earlier tokens; None is a fresh start (m = -inf).

    Returns:
        ``h [B, L, H, P]`` and the memory after the last token (None for None).
    """
    start = memory or (None,) * 4
    h, *after = _Recurrence.apply(c, u, weight, bias, *start)
    return h, None if memory is None else (after[0], after[1], after[2], after[3])


def slstm_step(gates: Tensor, memory: Memory) -> Memory:
    """One token: pre-activations ``[H, 4, P, B]`` and the memory to the new memory."""
    _, c, n, m = memory
    i, f, z, o = gates.unbind(1)
    kept = F.logsigmoid(f) + m
    m = torch.maximum(kept, i)
    kept, new = torch.exp(kept - m), torch.exp(i - m)
    c = torch.addcmul(kept * c, new, torch.tanh(z))
    n = torch.addcmul(new, kept, n)
    return torch.sigmoid(o) * (c / n), c, n, m


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        c: Tensor,
        u: Tensor,
        weight: Tensor,
        bias: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        n0: Tensor | None,
        m0: Tensor | None,
    ) -> tuple[Tensor, ...]:
        rows, length, _ = c.shape
        heads, p = weight.shape[0], weight.shape[2] // 3
        seen = c.new_empty(length + 1, heads, 3, p, rows)  # h_{t-1}, c_t, u_t
        for slot, x in ((1, c), (2, u)):
            seen[:-1, :, slot] = x.reshape(rows, length, heads, p).permute(1, 2, 3, 0)
        held = c.new_empty(length + 1, heads, 2, p, rows)  # C_{t-1}, n_{t-1}
        seen[0, :, 0] = 0.0 if h0 is None else h0
        held[0, :, 0] = 0.0 if c0 is None else c0
        held[0, :, 1] = 0.0 if n0 is None else n0
        m = torch.full_like(held[0, :, 0], -torch.inf) if m0 is None else m0
        gates = c.new_empty(length, heads, 4, p, rows)  # i, f; z, o after their activations
        share = c.new_empty(length, heads, 2, p, rows)  # i', f'
        m = _loop(seen, held, m, gates, share, weight, bias)
        ctx.save_for_backward(seen, held, gates, share, weight)
        ctx.has_memory = h0 is not None
        ctx.mark_non_differentiable(m)
        h = seen[1:, :, 0].permute(3, 0, 1, 2).contiguous()
        return h, seen[-1, :, 0].clone(), held[-1, :, 0].clone(), held[-1, :, 1].clone(), m

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dy: Tensor, dh: Tensor, dc: Tensor, dn: Tensor, dm: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        seen, held, gates, share, weight = ctx.saved_tensors
        length, heads, _, p, rows = gates.shape
        dys = dy.permute(1, 2, 3, 0).contiguous()  # (L, H, P, B)
        dys[-1] += dh
        end = torch.stack([dc, dn], 1)
        dgates, dseen, end = _loop_back(dys, end, seen, held, gates, share, weight)
        flat = dgates.view(length, heads, 4 * p, rows)
        inputs = seen[:-1].reshape(length, heads, 3 * p, rows)
        dweight = torch.einsum("lhgb,lhxb->hgx", flat, inputs)
        dbias = flat.sum((0, 3)).unsqueeze(-1)
        back = dseen.view(length, heads, 3, p, rows).permute(2, 4, 0, 1, 3)
        dcu = back[1:].reshape(2, rows, length, heads * p)
        start: tuple[Tensor | None, ...] = (None, None, None)
        if ctx.has_memory:
            start = (dseen[0, :, :p], end[:, 0], end[:, 1])
        return dcu[0], dcu[1], dweight, dbias, *start, None


def _loop(
    seen: Tensor,
    held: Tensor,
    m: Tensor,
    gates: Tensor,
    share: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """Fill ``seen[1:, :, 0]``, ``held[1:]``, ``gates`` and ``share`` step by step; the last m."""
    length, heads, _, p, rows = gates.shape
    written = torch.ones_like(share[0])  # tanh(z), 1
    bias = bias.expand(heads, 4 * p, rows)
    asked = gates.view(length, heads, 4 * p, rows).unbind(0)
    inputs = seen.view(length + 1, heads, 3 * p, rows).unbind(0)
    outputs, memory = seen[1:, :, 0].unbind(0), held.unbind(0)
    i, f, z, o = (g.unbind(0) for g in gates.unbind(2))
    new, kept = (s.unbind(0) for s in share.unbind(2))
    both, tanh = share.unbind(0), written[:, 0]
    for t in range(length):
        torch.baddbmm(bias, weight, inputs[t], out=asked[t])
        reach = F.logsigmoid(f[t]).add_(m)
        m = torch.maximum(reach, i[t])
        torch.sub(i[t], m, out=new[t])
        torch.sub(reach, m, out=kept[t])
        both[t].exp_()
        tanh.copy_(z[t].tanh_())
        after = torch.mul(memory[t], kept[t].unsqueeze(1), out=memory[t + 1])
        after.addcmul_(written, new[t].unsqueeze(1))
        torch.div(after[:, 0], after[:, 1], out=outputs[t]).mul_(o[t].sigmoid_())
    return m


def _loop_back(
    dy: Tensor,
    end: Tensor,
    seen: Tensor,
    held: Tensor,
    gates: Tensor,
    share: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the gates ``[L, H, 4, P, B]``, of ``seen [L, H, 3P, B]``, of the first memory.

    Args:
        dy: ``[L, H, P, B]`` of each h from outside; overwritten.
        end: ``[H, 2, P, B]`` of the last C and n.
    """
    length, heads, _, p, rows = gates.shape
    _, f, z, o = gates.unbind(2)
    new, kept = share.unbind(2)
    h, n = seen[1:, :, 0], held[1:, :, 1]
    of_h = torch.stack([o / n, (h / n).neg_()], 2)
    of_o = h * (1 - o)
    forget = kept * torch.sigmoid(-f)
    write = new * z
    of_c = torch.stack([write, held[:-1, :, 0] * forget, new - write * z], 2)
    of_n = torch.stack([new, held[:-1, :, 1] * forget], 2)
    dgates = torch.empty_like(gates)
    dseen = gates.new_empty(length, heads, 3 * p, rows)
    back = weight.transpose(1, 2)
    flat = dgates.view(length, heads, 4 * p, rows)
    of_gc, of_gn = end[:, :1], end[:, 1:]
    for t in reversed(range(length)):
        dh = dy[t]
        if t + 1 < length:
            end.mul_(kept[t + 1].unsqueeze(1))
            dh += dseen[t + 1, :, :p]
        end.addcmul_(of_h[t], dh.unsqueeze(1))
        step = dgates[t]
        torch.mul(of_c[t], of_gc, out=step[:, :3])
        step[:, :2].addcmul_(of_n[t], of_gn)
        torch.mul(of_o[t], dh, out=step[:, 3])
        torch.bmm(back, flat[t], out=dseen[t])
    return dgates, dseen, end.mul_(kept[0].unsqueeze(1))
