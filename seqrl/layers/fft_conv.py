"""Arithmetic of linear recurrences: long causal convolutions by FFT, and powers by doubling.

Shapes: B rows, L tokens, H channels, N state numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """``y[:, t] = sum_{s <= t} kernel[:, t - s] u[:, s]`` for every channel.

    By FFT over at least 2L - 1 points: over L the future would wrap around into the past.

    Args:
        u: ``[B, L, H]``.
        kernel: ``[H, L]``.
    """
    return _Convolution.apply(u, kernel)


class _Convolution(torch.autograd.Function):
    """With its backward written out: torch's own of a real FFT is a complex FFT, twice the work."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, kernel: Tensor) -> Tensor:
        length = u.shape[1]
        n = fft_length(2 * length - 1)
        spectrum, response = torch.fft.rfft(u.transpose(1, 2), n), torch.fft.rfft(kernel, n)
        ctx.save_for_backward(spectrum, response)
        ctx.n = n
        y = torch.fft.irfft(spectrum * response, n)[..., :length]
        # Element-wise operations on mixed layouts are several times slower than this copy.
        return y.transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        spectrum, response = ctx.saved_tensors
        length, n = grad.shape[1], ctx.n
        g = torch.fft.rfft(grad.transpose(1, 2), n)
        for_u, for_kernel = None, None
        if ctx.needs_input_grad[1]:
            correlated = (g * spectrum.conj()).sum(0)
            for_kernel = torch.fft.irfft(correlated, n)[..., :length]
        if ctx.needs_input_grad[0]:
            back = torch.fft.irfft(g.mul_(response.conj()), n)[..., :length]
            for_u = back.transpose(1, 2).contiguous()
        return for_u, for_kernel


def fft_length(least: int) -> int:
    """The smallest ``2^a 3^b 5^c`` that is at least ``least``, for which FFTs are fast.

    >>> fft_length(1), fft_length(399), fft_length(1999)
    (1, 400, 2000)
    """
    best = 1 << max(least - 1, 0).bit_length()
    five = 1
    while five < best:
        odd = five
        while odd < best:
            two = 1 << max(-(-least // odd) - 1, 0).bit_length()
            best = min(best, odd * two)
            odd *= 3
        five *= 5
    return best


def powers(base: Tensor, count: int) -> Tensor:
    """``base^0 .. base^(count-1)`` along a new last axis, by doubling.

    Multiplying is cheaper than exp and cos, and rounds less: the error of ``base^l`` is about l
    units in the last place, where ``exp(l log base)`` loses as many digits as its phase has.
    """
    return _Powers.apply(base, count)


class _Powers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, base: Tensor, count: int) -> Tensor:
        out = base.new_empty(*base.shape, count)
        out[..., 0] = 1
        have, factor = 1, base
        while have < count:
            more = min(have, count - have)
            torch.mul(out[..., :more], factor.unsqueeze(-1), out=out[..., have : have + more])
            have += more
            factor = factor * factor
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        exponents = torch.arange(1, out.shape[-1], device=out.device, dtype=out.real.dtype)
        return (grad[..., 1:] * out[..., :-1].conj() * exponents).sum(-1), None


def power(base: Tensor, exponent: int) -> Tensor:
    """``base^exponent`` for an exponent of at least 1, by squaring."""
    result = None
    while exponent:
        if exponent & 1:
            result = base if result is None else result * base
        base = base * base
        exponent >>= 1
    return base if result is None else result


def krylov(row: Tensor, matrix: Tensor, count: int) -> Tensor:
    """``row matrix^l`` for l below ``count``: ``[H, N]`` and ``[H, N, N]`` to ``[H, count, N]``."""
    rows = row.unsqueeze(1)
    while rows.shape[1] < count:
        rows = torch.cat([rows, rows @ matrix], 1)
        matrix = matrix @ matrix
    return rows[:, :count]
