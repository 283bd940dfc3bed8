"""State matrices for state space layers: HiPPO-LegS, its normal form, and diagonal relatives.

HiPPO-LegS (Gu et al. 2020, "HiPPO: Recurrent Memory with Optimal Polynomial Projections") makes a
state of N numbers hold the coefficients of the input's whole past in Legendre polynomials. With a
rank-one term added it is unitarily diagonalisable (Gu et al. 2022, "Efficiently Modeling Long
Sequences with Structured State Spaces"); dropping that term leaves the diagonal approximation
S4D-LegS, and S4D-Lin and S4D-Inv copy its spectrum (Gu et al. 2022, "On the Parameterization and
Initialization of Diagonal State Space Models").

Complex eigenvalues come in conjugate pairs, of which one is kept: N states are N/2 complex modes.
Everything here is float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from seqrl.errors import SeqrlError

INITS = ("legs", "lin", "inv", "real", "random")
"""Names of diagonal initialisations."""


class Modes(NamedTuple):
    """The kept half of a state space in its eigenbasis."""

    eigenvalues: Tensor
    """``[N/2]`` complex128, real parts below 0."""
    b: Tensor
    """``[N/2]`` complex128: how the input enters."""
    p: Tensor
    """``[N/2]`` complex128: the state matrix is ``diag(eigenvalues) - p p*`` (over both halves)."""


def legs(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """HiPPO-LegS: the matrix ``[N, N]``, input vector ``[N]`` and rank-one correction ``[N]``.

    ``A[n, k]`` is ``-sqrt((2n+1)(2k+1))`` below the diagonal, ``-(n+1)`` on it and 0 above;
    ``B[n] = sqrt(2n+1)``; with ``P[n] = sqrt(n+1/2)``, ``A + P P'`` is ``-I/2`` plus a skew matrix.
    """
    n = torch.arange(size, dtype=torch.float64)
    root = torch.sqrt(2 * n + 1)
    a = -torch.tril(root[:, None] * root[None, :], diagonal=-1) - torch.diag(n + 1)
    return a, root, torch.sqrt(n + 0.5)


def legs_modes(size: int) -> tuple[Modes, Tensor]:
    """HiPPO-LegS in the basis where ``A + P P'`` is diagonal, and the ``[N, N/2]`` basis vectors.

    Modes are sorted by frequency. An eigenvector's phase is free; here it is the one that makes
    ``b`` positive imaginary, so that the result does not depend on the linear algebra library.

    Raises:
        SeqrlError: an odd size.
    """
    _check_size(size)
    a, b, p = legs(size)
    skew = a + torch.outer(p, p) + 0.5 * torch.eye(size, dtype=torch.float64)
    frequency, vectors = torch.linalg.eigh(-1j * skew.to(torch.complex128))
    # eigh sorts ascending: the second half holds the positive frequencies.
    frequency, vectors = frequency[size // 2 :], vectors[:, size // 2 :]
    entering = vectors.mH @ b.to(torch.complex128)
    phase = entering / (1j * entering.abs())
    vectors = vectors * phase
    modes = Modes(
        torch.complex(torch.full_like(frequency, -0.5), frequency),
        vectors.mH @ b.to(torch.complex128),
        vectors.mH @ p.to(torch.complex128),
    )
    return modes, vectors


def diagonal_modes(name: str, size: int, clip: float | None = None) -> Modes:
    """A diagonal state space (``p`` is zero).

    ========  ==========================================  =====
    name      eigenvalues, n = 0 .. N/2 - 1               b
    ========  ==========================================  =====
    legs      those of LegS without its rank-one term     LegS
    lin       ``-1/2 + i pi n``                           1
    inv       ``-1/2 + i (N/pi) (N/(2n+1) - 1)``          1
    real      ``-(n+1)``                                  1
    random    of a random matrix, shifted to be stable    1
    ========  ==========================================  =====

    Args:
        name: one of :data:`INITS`.
        size: N.
        clip: bound on the size of ``b`` (LegS's grows with the frequency, up to 41 for N = 64, to
            no use but rounding errors).

    Raises:
        SeqrlError: an unknown name or an odd size.
    """
    _check_size(size)
    half = size // 2
    n = torch.arange(half, dtype=torch.float64)
    real, ones = torch.full_like(n, -0.5), torch.ones(half, dtype=torch.complex128)
    none = torch.zeros_like(ones)
    if name == "legs":
        found = legs_modes(size)[0]
        return Modes(found.eigenvalues, clipped(found.b, clip), none)
    if name == "lin":
        return Modes(torch.complex(real, math.pi * n), ones, none)
    if name == "inv":
        return Modes(torch.complex(real, size / math.pi * (size / (2 * n + 1) - 1)), ones, none)
    if name == "real":
        return Modes(torch.complex(-(n + 1), torch.zeros_like(n)), ones, none)
    if name == "random":
        return Modes(_random_eigenvalues(size), ones, none)
    raise SeqrlError(f"no state matrix '{name}'", hint=f"init: {', '.join(INITS)}")


def clipped(b: Tensor, limit: float | None) -> Tensor:
    """Complex numbers with real and imaginary parts cut at ``limit``."""
    if limit is None:
        return b
    return torch.complex(b.real.clamp(-limit, limit), b.imag.clamp(-limit, limit))


def _random_eigenvalues(size: int) -> Tensor:
    """Half the spectrum of ``G / sqrt(N) - I`` for a Gaussian G: a disc of radius 1 around -1."""
    matrix = torch.randn(size, size, dtype=torch.float64) / math.sqrt(size)
    values = torch.linalg.eigvals(matrix - torch.eye(size, dtype=torch.float64))
    kept = values[values.imag.argsort(descending=True)[: size // 2]]
    return torch.complex(kept.real.clamp(max=-1e-2), kept.imag)


def _check_size(size: int) -> None:
    if size < 2 or size % 2:
        raise SeqrlError(f"state is {size}, must be an even number of at least 2")
