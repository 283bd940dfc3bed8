"""How exactly the layers compute what they should: largest differences, printed as tables.

    OMP_NUM_THREADS=1 python benchmarks/parity.py

The first table holds every mixer of the shelf against itself: token by token, and in four pieces
with a carried state, against the whole sequence of 36 tokens. The second holds layers against other
people's code (mambapy, xlstm, torch's own layers; what is not installed is left out) and against
their definitions written out, as the tests have them (pytest must be installed). All figures are
the largest difference over the largest value; the tests hold the same and more to fixed bounds.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, table
from seqrl.layers.aaren import Aaren
from seqrl.layers.conv import ThreeFilterConv
from seqrl.layers.mixer import MIXERS, build_mixer
from seqrl.layers.mlstm_cell import mlstm
from seqrl.layers.rnn import GRUMixer, LSTMMixer
from seqrl.layers.s4 import S4, S4D
from seqrl.layers.s6 import S6
from seqrl.layers.scan import selective_scan
from seqrl.layers.slstm import SLSTM
from seqrl.testing.mixer_battery import PLACE, gap, made, stepped, tokens
from tests.layers import test_conv, test_mixers, test_s6, test_xlstm

F32, F64 = torch.float32, torch.float64
Row = tuple[str, str, float]
"""What, where it is compared with, largest relative difference."""


def own() -> list[list[str]]:
    """Every mixer against itself."""
    rows = []
    for name in sorted(MIXERS):
        row = [name]
        for dtype in (F32, F64):
            mixer = made(lambda place, n=name: build_mixer(n, place), dtype)
            x = tokens(length=3 * PLACE.window, dtype=dtype)
            with torch.no_grad():
                whole = mixer(x)[0]
                row.append(f"{gap(whole, stepped(mixer, x)[0]):.0e}")
                state, parts = mixer.initial_state(len(x)), []
                for piece in torch.tensor_split(x, (5, 6, 20), 1):
                    y, state = mixer(piece, state)
                    parts.append(y)
                row.append(f"{gap(whole, torch.cat(parts, 1)):.0e}")
        rows.append(row)
    return rows


def with_gradients(
    name: str, peer: str, a: Callable[..., Tensor], b: Callable[..., Tensor], inputs: list[Tensor]
) -> Iterator[Row]:
    """Values and gradients of two functions of the same inputs."""
    weight, found = None, []
    for fn in (a, b):
        y = fn(*inputs)
        weight = torch.randn_like(y) if weight is None else weight
        found.append((y.detach(), torch.autograd.grad((y * weight).sum(), inputs)))
    yield f"{name}: values", peer, gap(found[0][0], found[1][0])
    grads = zip(found[0][1], found[1][1], strict=True)
    yield f"{name}: gradients", peer, max(gap(g, h) for g, h in grads)


# --- definitions -------------------------------------------------------------------------------


def definitions() -> Iterator[Row]:
    """Layers against their formulas written out, in float64."""
    yield from with_gradients(
        "S6 scan",
        "a loop over the tokens",
        lambda *x: test_s6.plain_scan(*x)[0],
        lambda *x: selective_scan(*x)[0],
        test_s6.inputs(2, 40, 6, 4),
    )
    cell = [x.requires_grad_() for x in test_xlstm.inputs()]
    for name, chunk in (("at once", 96), ("in chunks of 25", 25)):
        yield from with_gradients(
            f"mLSTM cell, {name}",
            "all pairs of tokens",
            test_xlstm.parallel,
            lambda *x, n=chunk: mlstm(*x, chunk=n)[0],
            cell,
        )
    with torch.no_grad():
        q, k, v, i, f = cell
        want = test_xlstm.parallel(q, k, v, i, f)
        found = test_xlstm.recurrent(q, k, v, i, f)[0]
        yield "mLSTM cell, stepped", "all pairs of tokens", gap(want, found)
        torch.manual_seed(0)
        slstm, x = SLSTM(16, 2).double(), tokens(2, 30, F64)
        want = test_xlstm.slstm_written_out(slstm, x)
        yield "sLSTM layer", "a loop over the tokens", gap(want, slstm(x)[0])
        for disc in ("zoh", "bilinear"):
            layer = S4D(8, state=16, disc=disc).double()  # type: ignore[arg-type]
            abar, cb = layer.system()
            powers = abar.unsqueeze(-1) ** torch.arange(200)
            direct = 2 * (cb.unsqueeze(-1) * powers).real.sum(1)
            yield f"S4D kernel, {disc}", "sum over modes", gap(direct, layer.kernel(200))
        full = S4(4, state=16).double()
        (abar, state, c), direct = full.matrices(), []
        for _ in range(100):
            direct.append((c * state).sum(-1))
            state = (abar @ state.unsqueeze(-1)).squeeze(-1)
        yield "S4 kernel", "powers of its matrix", gap(torch.stack(direct, -1), full.kernel(100))
        aaren = Aaren(16, 2).double()
        want = test_mixers.written_out(aaren, x)
        yield "Aaren", "softmax over every prefix", gap(want, aaren(x)[0])
        conv = ThreeFilterConv(16).double()
        yield (
            "three-filter convolution",
            "three nn.Conv1d",
            gap(test_conv.dense(conv, x), conv(x)[0]),
        )


# --- other people's code -----------------------------------------------------------------------


def peers() -> Iterator[Row]:
    """Layers against the packages that are here, in float32."""
    torch.manual_seed(0)
    for name, mixer, library in (
        ("LSTM", LSTMMixer(32), nn.LSTM(32, 32, batch_first=True)),
        ("GRU", GRUMixer(32), nn.GRU(32, 32, batch_first=True)),
    ):
        library.load_state_dict(mixer.cell.state_dict())
        x = torch.randn(3, 50, 32)
        with torch.no_grad():
            yield f"{name}, stepped", "torch", gap(library(x)[0], stepped(mixer, x)[0])
    if importlib.util.find_spec("mambapy"):
        yield from against_mambapy()
    if importlib.util.find_spec("xlstm"):
        for at in ((), (1,)):
            yield from against_xlstm(at)


def against_mambapy() -> Iterator[Row]:
    """One Mamba block with the same weights."""
    from mambapy.mamba import MambaBlock, MambaConfig

    theirs, mine = MambaBlock(MambaConfig(d_model=64, n_layers=1)), S6(64)
    mine.load_state_dict(theirs.state_dict())
    x, weight = torch.randn(4, 60, 64, requires_grad=True), torch.randn(4, 60, 64)
    found = []
    for fn, params in ((theirs, theirs.parameters()), (lambda v: mine(v)[0], mine.parameters())):
        y = fn(x)
        found.append((y.detach(), torch.autograd.grad((y * weight).sum(), [x, *params])))
    yield "Mamba block: values", "mambapy", gap(found[0][0], found[1][0])
    grads = zip(found[0][1], found[1][1], strict=True)
    yield "Mamba block: gradients", "mambapy", max(gap(g, h) for g, h in grads)
    with torch.no_grad():
        cache, steps = (None, torch.zeros(4, 128, 3)), []
        for t in range(60):
            y, cache = theirs.step(x[:, t], cache)
            steps.append(y)
        yield "Mamba block, stepped", "mambapy", gap(torch.stack(steps, 1), stepped(mine, x)[0])


def against_xlstm(slstm_at: tuple[int, ...]) -> Iterator[Row]:
    """Four blocks with the same weights, as they come from the package's own start."""
    with contextlib.redirect_stdout(open(os.devnull, "w")):
        mine, theirs = test_xlstm.twins(slstm_at, 60)
    x = torch.randn(3, 60, 128)
    what = "four mLSTM blocks" if not slstm_at else "three mLSTM blocks and an sLSTM block"
    with torch.no_grad():
        yield what, "xlstm", gap(theirs(x), mine(x)[0])
        held: dict[str, object] = {}
        their_steps = []
        for t in range(60):
            y, held = theirs.step(x[:, t : t + 1], held)
            their_steps.append(y[:, 0])
        yield f"{what}, stepped", "xlstm", gap(torch.stack(their_steps, 1), stepped(mine, x)[0])


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    print(f"Parity, {machine()}\n")
    head = ["mixer", "steps, float32", "pieces, float32", "steps, float64", "pieces, float64"]
    print(table(head, own()), end="\n\n")
    rows = [
        [what, peer, f"{value:.0e}"] for fn in (peers, definitions) for what, peer, value in fn()
    ]
    print(table(["layer", "against", "largest difference"], rows))


if __name__ == "__main__":
    main()
