"""mLSTM and sLSTM: every form gives what the written formulas give, as the package does."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.layers.causal_conv import CausalConv
from seqrl.layers.mlstm import MLSTM
from seqrl.layers.mlstm_cell import EPS, fresh_memory, mlstm, mlstm_step
from seqrl.layers.slstm import SLSTM
from seqrl.layers.xlstm import GatedMLP, ScaleNorm, xlstm_stack
from seqrl.testing.mixer_battery import gap, stepped

F32, F64 = torch.float32, torch.float64


def inputs(
    dtype: torch.dtype = F64, rows: int = 6, length: int = 96, d: int = 16, gates: float = 0.5
) -> list[Tensor]:
    """Random q, k (divided by sqrt(d)), v, i and f; moderate gates unless asked otherwise."""
    draws = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(rows, length, d, generator=draws, dtype=F64) for _ in range(3))
    i = torch.randn(rows, length, generator=draws, dtype=F64) * gates
    f = torch.randn(rows, length, generator=draws, dtype=F64) * gates + 3
    return [t.to(dtype) for t in (q, k / math.sqrt(d), v, i, f)]


def parallel(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
    """The cell by its definition: a matrix of all pairs of tokens."""
    b = F.logsigmoid(f).cumsum(-1)
    weights = b.unsqueeze(-1) - b.unsqueeze(-2) + i.unsqueeze(-2)
    later = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    weights = weights.masked_fill(later, -math.inf)
    m = weights.amax(-1, keepdim=True)
    s = (q @ k.transpose(1, 2)) * torch.exp(weights - m)
    norm = torch.maximum(s.sum(-1, keepdim=True).abs(), torch.exp(-m)) + EPS
    return s @ v / norm


def recurrent(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> tuple[Tensor, tuple]:
    memory = fresh_memory(q, q.shape[0], q.shape[2])
    memory = (*memory[:2], memory[2].unsqueeze(-1))
    outs = []
    for t in range(q.shape[1]):
        h, memory = mlstm_step(q[:, t], k[:, t], v[:, t], i[:, t, None], f[:, t, None], memory)
        outs.append(h)
    return torch.stack(outs, 1), memory


# --- the mLSTM cell ----------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "allowed"), [(F32, 1e-4), (F64, 1e-10)])
@pytest.mark.parametrize("chunk", [None, 1, 7, 25, 32, 95, 96, 500])
def test_three_forms_agree(dtype: torch.dtype, allowed: float, chunk: int | None) -> None:
    x = inputs(dtype)
    want = parallel(*x)
    assert float((mlstm(*x, chunk=chunk)[0] - want).abs().max()) < allowed
    assert float((recurrent(*x)[0] - want).abs().max()) < allowed


def test_a_memory_is_the_same_whichever_form_made_it() -> None:
    x = inputs()
    _, (c, n, m) = recurrent(*x)
    memory = fresh_memory(x[0], 6, 16)
    for piece in ((0, 1), (1, 3), (3, 60), (60, 96)):
        h, memory = mlstm(*(t[:, slice(*piece)] for t in x), memory, chunk=20)
    assert float((h - parallel(*x)[:, 60:]).abs().max()) < 1e-10
    for a, b in zip(memory, (c, n, m.squeeze(-1)), strict=True):
        assert float((a - b).abs().max()) < 1e-12


@pytest.mark.parametrize("chunk", [None, 10])
def test_gradients_are_those_of_the_definition(chunk: int | None) -> None:
    x = [t.requires_grad_() for t in inputs(length=37)]
    g = torch.randn(6, 37, 16, dtype=F64, generator=torch.Generator().manual_seed(1))
    want = torch.autograd.grad(parallel(*x), x, g)
    found = torch.autograd.grad(mlstm(*x, chunk=chunk)[0], x, g)
    for name, a, b in zip("qkvif", found, want, strict=True):
        # The definition also differentiates m, which eps makes count for a millionth.
        assert gap(b, a) < (1e-12 if name in "qkv" else 1e-5), name


def test_gradcheck_through_chunks_and_memories() -> None:
    x = [t.requires_grad_() for t in inputs(rows=2, length=7, d=3)]

    def in_pieces(*x: Tensor) -> Tensor:
        memory = fresh_memory(x[0], 2, 3)
        first, memory = mlstm(*(t[:, :4] for t in x), memory, chunk=2)
        return torch.cat([first, mlstm(*(t[:, 4:] for t in x), memory, chunk=2)[0]], 1)

    assert torch.autograd.gradcheck(in_pieces, x, atol=1e-5)
    assert torch.autograd.gradcheck(lambda *x: mlstm(*x, chunk=3)[0], x, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 16])
@pytest.mark.parametrize("scale", [8.0, 100.0])
def test_extreme_gates_stay_finite(chunk: int | None, scale: float) -> None:
    x = [t.requires_grad_() for t in inputs(F32, gates=scale)]
    h, _ = mlstm(*x, chunk=chunk)
    h.square().mean().backward()
    assert bool(torch.isfinite(h).all())
    assert all(bool(torch.isfinite(t.grad).all()) for t in x)
    wide = inputs(F64, gates=scale)
    # Where q n is near 0 the division magnifies rounding: relative to the largest output.
    assert gap(parallel(*wide), mlstm(*wide, chunk=chunk)[0]) < 1e-8


@pytest.mark.parametrize(("i", "f"), [(-1e4, 5.0), (1e4, 5.0), (0.0, -1e4), (-200.0, -200.0)])
def test_gates_at_their_ends(i: float, f: float) -> None:
    x = inputs()
    x[3], x[4] = torch.full_like(x[3], i), torch.full_like(x[4], f)
    narrow = [t.float() for t in x]
    assert bool(torch.isfinite(mlstm(*narrow, chunk=16)[0]).all())
    assert bool(torch.isfinite(recurrent(*narrow)[0]).all())
    h, steps = mlstm(*x, chunk=16)[0], recurrent(*x)[0]
    assert gap(steps, h) < 1e-8 or float(steps.abs().max()) == 0 == float(h.abs().max())
    if f == -1e4:  # everything is forgotten at once: each token alone
        alone = parallel(*(t.reshape(-1, 1, *t.shape[2:]) for t in x)).view_as(h)
        assert gap(alone, h) < 1e-8


def test_a_memory_of_minus_infinity_makes_no_nan() -> None:
    x = [t.requires_grad_() for t in inputs(F32, length=3)]
    h, memory = mlstm(*x, fresh_memory(x[0], 6, 16))
    (h.sum() + memory[0].sum() + memory[1].sum()).backward()
    values = [h, *memory, *(t.grad for t in x)]
    assert all(bool(torch.isfinite(t).all()) for t in values)


# --- the mLSTM layer ---------------------------------------------------------------------------


def loud(layer: nn.Module, std: float = 0.2) -> nn.Module:
    """Weights far from the start, where everything would look linear."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in layer.parameters():
            p += std * torch.randn(p.shape, generator=draws, dtype=F64).to(p.dtype)
    return layer


def written_out(layer: MLSTM, x: Tensor) -> Tensor:
    """The layer as the paper writes it: dense blocks, gates from [q; k; v], norm head by head."""
    rows, length, _ = x.shape
    inner, heads = layer.inner, layer.heads
    a, z = layer.up(x).split(inner, -1)
    conv = F.conv1d(a.transpose(1, 2), layer.conv.weight, layer.conv.bias, padding=3, groups=inner)
    c = F.silu(conv[..., :length].transpose(1, 2))
    q, k, v = (t @ torch.block_diag(*w).T for t, w in ((c, layer.q), (c, layer.k), (a, layer.v)))
    gates = layer.gates(torch.cat([q, k, v], -1)).view(rows, length, 2, heads)
    outs = []
    for h in range(heads):
        part = slice(h * layer.head_width, (h + 1) * layer.head_width)
        keys = k[..., part] / math.sqrt(layer.head_width)
        cell = parallel(q[..., part], keys, v[..., part], gates[:, :, 0, h], gates[:, :, 1, h])
        mean, var = cell.mean(-1, keepdim=True), cell.var(-1, unbiased=False, keepdim=True)
        outs.append((cell - mean) / torch.sqrt(var + 1e-5))
    h = torch.cat(outs, -1) * (1 + layer.norm)
    return layer.down((h + layer.skip * c) * F.silu(z))


@pytest.mark.parametrize(("width", "heads"), [(24, 1), (32, 2), (64, 4), (160, 1)])
def test_the_layer_is_the_written_one(width: int, heads: int) -> None:
    torch.manual_seed(0)
    layer = loud(MLSTM(width, heads).double())
    x = torch.randn(3, 17, width, dtype=F64)
    want = written_out(layer, x)
    assert gap(want, layer(x)[0]) < 1e-10
    with torch.no_grad():
        assert gap(want, stepped(layer, x)[0]) < 1e-10
    assert gap(want, stepped(layer, x)[0]) < 1e-10, "stepping with gradients is another path"


def test_long_sequences_go_in_chunks_and_give_the_same() -> None:
    layer = loud(MLSTM(32, 2).double())
    x = torch.randn(2, 150, 32, dtype=F64)
    assert gap(written_out(layer, x), layer(x)[0]) < 1e-9


def test_step_sees_new_weights_whoever_wrote_them() -> None:
    """Maps are kept between steps: training, loading and casting must not leave old ones behind."""
    for layer in (loud(MLSTM(32, 2)), loud(SLSTM(32, 2))):
        x = torch.randn(2, 32)

        def agrees(layer: nn.Module = layer, x: Tensor = x) -> bool:
            whole = layer(x.unsqueeze(1).to(next(layer.parameters()).dtype))[0][:, 0]
            with torch.inference_mode():
                y, _ = layer.step(x.to(whole.dtype), layer.initial_state(2))
            return gap(whole, y) < 1e-5

        assert agrees()
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
        layer(x.unsqueeze(1))[0].sum().backward()
        optimizer.step()
        assert agrees()
        layer.load_state_dict({k: v * 1.3 + 0.01 for k, v in layer.state_dict().items()})
        assert agrees()
        layer.double()
        assert agrees()


def test_states_made_in_inference_mode_go_on_outside_of_it() -> None:
    for layer in (MLSTM(32, 2), SLSTM(32, 2)):
        x = torch.randn(2, 32)
        with torch.inference_mode():
            _, state = layer.step(x, layer.initial_state(2))
        with torch.no_grad():
            y, state = layer.step(x, state)
        assert bool(torch.isfinite(y).all())
        layer(x.unsqueeze(1))[0].sum().backward()


def test_first_values() -> None:
    torch.manual_seed(0)
    layer = MLSTM(128, 4, layers=5)
    assert not layer.gates.weight.any()
    assert layer.gates.bias[4:].tolist() == [3, 4, 5, 6]
    assert float(layer.gates.bias[:4].detach().abs().max()) < 0.5
    for w in (layer.up.weight, layer.q, layer.k, layer.v):
        assert float(w.detach().std()) == pytest.approx(math.sqrt(2 / (5 * 128)), rel=0.1)
    assert float(layer.down.weight.detach().std()) == pytest.approx(
        2 / (5 * math.sqrt(128)), rel=0.05
    )
    assert (layer.norm == 0).all()
    assert (layer.skip == 1).all()


def test_wrong_heads_are_refused() -> None:
    with pytest.raises(SeqrlError, match="3 heads do not divide the inner width 64"):
        MLSTM(32, 3)
    with pytest.raises(SeqrlError, match="3 heads do not divide the width 32"):
        SLSTM(32, 3)
    with pytest.raises(SeqrlError, match="bias 'large'"):
        SLSTM(32, 2, bias="large")


# --- the convolution ---------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_convolution_is_the_librarys_and_goes_on(length: int) -> None:
    conv = CausalConv(6, 4).double()
    x = torch.randn(2, 5 + length, 6, dtype=F64, requires_grad=True)

    def library(x: Tensor) -> Tensor:
        y = F.conv1d(x.transpose(1, 2), conv.weight, conv.bias, padding=3, groups=6)
        return y[..., : x.shape[1]].transpose(1, 2)

    first, state = conv(x[:, :5], conv.initial_state(2)), conv.after(x[:, :5], x[:, :0])
    whole = torch.cat([first, conv(x[:, 5:], state)], 1)
    assert gap(library(x), whole) < 1e-12
    g = torch.randn_like(whole)
    wanted = torch.autograd.grad(library(x), (x, *conv.parameters()), g)
    for a, b in zip(torch.autograd.grad(whole, (x, *conv.parameters()), g), wanted, strict=True):
        assert gap(b, a) < 1e-12
    y, state = conv.step(x[:, 0], conv.initial_state(2))
    assert gap(whole[:, 0], y) < 1e-12
    assert torch.equal(state[:, -1], x[:, 0])


# --- sLSTM -------------------------------------------------------------------------------------


def slstm_written_out(layer: SLSTM, x: Tensor) -> Tensor:
    rows, length, width = x.shape
    shape = (rows, layer.heads, layer.head_width)
    conv = F.conv1d(x.transpose(1, 2), layer.conv.weight, layer.conv.bias, padding=3, groups=width)
    smooth = F.silu(conv[..., :length].transpose(1, 2))
    h = c = n = x.new_zeros(shape)
    m, outs = torch.full_like(h, -math.inf), []
    for t in range(length):
        pre = []
        for gate in range(4):
            seen = (smooth if gate < 2 else x)[:, t].view(shape)
            pre.append(
                torch.einsum("hoi,bhi->bho", layer.inputs[gate], seen)
                + torch.einsum("hoi,bhi->bho", layer.recurrent[gate], h)
                + layer.bias[gate]
            )
        i, f, z, o = pre
        kept = F.logsigmoid(f) + m
        m = torch.maximum(i, kept)
        i, f = torch.exp(i - m), torch.exp(kept - m)
        c, n = f * c + i * torch.tanh(z), f * n + i
        h = torch.sigmoid(o) * c / n
        outs.append(F.layer_norm(h, h.shape[-1:]))
    y = torch.stack(outs, 1).view(rows, length, width)
    return y * (1 + layer.norm)


@pytest.mark.parametrize(("width", "heads"), [(8, 1), (32, 4)])
def test_slstm_is_the_written_loop_forward_and_backward(width: int, heads: int) -> None:
    layer = loud(SLSTM(width, heads).double(), 0.4)
    x = torch.randn(3, 12, width, dtype=F64, requires_grad=True)
    want, found = slstm_written_out(layer, x), layer(x)[0]
    assert gap(want, found) < 1e-12
    params, g = (x, *layer.parameters()), torch.randn_like(want)
    wanted = torch.autograd.grad(want, params, g)
    for a, b in zip(torch.autograd.grad(found, params, g), wanted, strict=True):
        assert gap(b, a) < 1e-10


def test_slstm_extreme_gates_stay_finite() -> None:
    layer = SLSTM(16, 2)
    with torch.no_grad():
        layer.bias[0] = torch.linspace(-1e3, 1e3, 16).view(2, 8)
        layer.bias[1] = torch.linspace(1e3, -1e3, 16).view(2, 8)
    x = torch.randn(2, 30, 16, requires_grad=True)
    y, _ = layer(x)
    y.square().sum().backward()
    assert bool(torch.isfinite(y).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in (x, *layer.parameters()))


def test_slstm_first_values() -> None:
    first, last = SLSTM(64, 2, layer=0, layers=3), SLSTM(64, 2, layer=2, layers=3)
    for layer, power in ((first, 0.3), (last, 1.6)):
        forget = layer.bias[1].detach()
        assert float(forget[0, 0]) == 5
        assert float(forget[1, -1]) == pytest.approx(-7)
        assert float(forget[0, 10]) == pytest.approx(5 - 12 * (10 / 31) ** power, rel=1e-5)
        assert float(layer.recurrent.detach().abs().max()) == 0
        assert float(layer.bias[[0, 2, 3]].detach().abs().max()) == 0
    small = SLSTM(64, 2, bias="small").bias[1].detach()
    assert small[0, 0] == 3
    assert small[0, -1] == 6


# --- stacks ------------------------------------------------------------------------------------

SIZES = {
    (512, 8): ((), 12_939_840, (1,), 12_934_200),
    (768, 12): ((), 43_269_984, (1, 3), 43_154_768),
    (1024, 16): ((), 102_089_856, (1, 3), 101_805_168),
    (1280, 20): ((), 198_836_640, (1, 3, 5), 198_057_096),
}
"""Width and blocks to the parameters of the released stacks, without and with sLSTM blocks."""


@pytest.mark.parametrize(("width", "layers"), SIZES)
def test_parameter_counts_are_the_released_ones(width: int, layers: int) -> None:
    plain, count, mixed, mixed_count = SIZES[width, layers]
    for slstm_at, want in ((plain, count), (mixed, mixed_count)):
        with torch.device("meta"):
            stack = xlstm_stack(width, layers, 4, slstm_at)
        assert sum(p.numel() for p in stack.parameters()) == want


def test_blocks_stand_where_asked() -> None:
    stack = xlstm_stack(32, 4, 2, slstm_at=(1, 3))
    kinds = [type(b.mixer).__name__ for b in stack.blocks]
    assert kinds == ["MLSTM", "SLSTM", "MLSTM", "SLSTM"]
    assert [b.mlp is None for b in stack.blocks] == [True, False, True, False]
    with pytest.raises(SeqrlError, match="sLSTM at block 4, the blocks are 0 to 3"):
        xlstm_stack(32, 4, 2, slstm_at=(4,))


def test_a_stack_steps_resets_and_goes_on_like_its_whole() -> None:
    torch.manual_seed(0)
    stack = loud(xlstm_stack(32, 3, 2, slstm_at=(1,)).double(), 0.05).eval()
    x = torch.randn(4, 20, 32, dtype=F64)
    with torch.no_grad():
        whole = stack(x)[0]
        state, outs = stack.initial_state(4), []
        for t in range(10):
            y, state = stack.step(x[:, t], state)
            outs.append(y)
        assert gap(whole[:, :10], torch.stack(outs, 1)) < 1e-10
        rows = torch.tensor([True, False, False, True])
        state = stack.reset(state, rows)
        onward, _ = stack(x[:, 10:], state)
        fresh = stack(x[:, 10:])[0]
    assert gap(whole[1:3, 10:], onward[1:3]) < 1e-10
    assert gap(fresh[[0, 3]], onward[[0, 3]]) < 1e-10


# --- the released package ----------------------------------------------------------------------

PACKAGE = pytest.mark.skipif(
    importlib.util.find_spec("xlstm") is None, reason="the package xlstm is not installed"
)


def take_mlstm(mine: MLSTM, theirs: nn.Module) -> None:
    cell = theirs.mlstm_cell
    pairs = {
        mine.up.weight: theirs.proj_up.weight, mine.down.weight: theirs.proj_down.weight,
        mine.conv.weight: theirs.conv1d.conv.weight, mine.conv.bias: theirs.conv1d.conv.bias,
        mine.q: theirs.q_proj.weight, mine.k: theirs.k_proj.weight, mine.v: theirs.v_proj.weight,
        mine.gates.weight: torch.cat([cell.igate.weight, cell.fgate.weight]),
        mine.gates.bias: torch.cat([cell.igate.bias, cell.fgate.bias]),
        mine.norm: cell.outnorm.weight, mine.skip: theirs.learnable_skip,
    }  # fmt: skip
    copy(pairs)


def take_slstm(mine: SLSTM, theirs: nn.Module) -> None:
    gates = (theirs.fgate, theirs.igate, theirs.zgate, theirs.ogate)  # their names are exchanged
    cell = theirs.slstm_cell
    # Stored in an order of the backend's own; outwards head, input, gate, output.
    kernel = cell._recurrent_kernel_int2ext(cell._recurrent_kernel_.detach())
    bias = cell._bias_int2ext(cell._bias_.detach())
    pairs = {
        mine.conv.weight: theirs.conv1d.conv.weight, mine.conv.bias: theirs.conv1d.conv.bias,
        mine.inputs: torch.stack([g.weight for g in gates]),
        mine.recurrent: kernel.permute(2, 0, 3, 1),
        mine.bias: bias.permute(1, 0, 2),
        mine.norm: theirs.group_norm.weight,
    }  # fmt: skip
    copy(pairs)


@torch.no_grad()
def copy(pairs: dict[Tensor, Tensor]) -> None:
    for mine, theirs in pairs.items():
        assert mine.shape == theirs.shape
        mine.copy_(theirs)


def twins(slstm_at: tuple[int, ...], length: int) -> tuple[nn.Module, nn.Module]:
    """A stack of four blocks and the package's, with the same weights."""
    import xlstm as package

    torch.manual_seed(0)
    mine = xlstm_stack(128, 4, 4, slstm_at)
    theirs = package.xLSTMBlockStack(
        package.xLSTMBlockStackConfig(
            mlstm_block=package.mLSTMBlockConfig(mlstm=package.mLSTMLayerConfig(num_heads=4)),
            slstm_block=package.sLSTMBlockConfig(
                slstm=package.sLSTMLayerConfig(backend="vanilla", num_heads=4),
                feedforward=package.FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
            ),
            context_length=length, num_blocks=4, embedding_dim=128, slstm_at=list(slstm_at),
        )
    )  # fmt: skip
    theirs.reset_parameters()
    loud(theirs, 0.02)
    for a, b in zip(mine.blocks, theirs.blocks, strict=True):
        take = take_mlstm if isinstance(a.mixer, MLSTM) else take_slstm
        take(a.mixer, b.xlstm)
        copy({a.norm1.weight: b.xlstm_norm.weight})
        if isinstance(a.mlp, GatedMLP):
            copy({a.norm2.weight: b.ffn_norm.weight, a.mlp.up.weight: b.ffn.proj_up.weight,
                  a.mlp.down.weight: b.ffn.proj_down.weight})  # fmt: skip
    assert isinstance(mine.norm, ScaleNorm)
    copy({mine.norm.weight: theirs.post_blocks_norm.weight})
    return mine, theirs


@PACKAGE
@pytest.mark.parametrize(("slstm_at", "length"), [((), 40), ((1,), 40), ((), 150)])
def test_stacks_agree_with_the_package(slstm_at: tuple[int, ...], length: int) -> None:
    mine, theirs = twins(slstm_at, length)
    x = torch.randn(3, length, 128)
    with torch.no_grad():
        want = theirs(x)
        found = mine(x)[0]
        state, held, steps, their_steps = mine.initial_state(3), {}, [], []
        for t in range(length):
            y, state = mine.step(x[:, t], state)
            steps.append(y)
            y, held = theirs.step(x[:, t : t + 1], held)
            their_steps.append(y[:, 0])
    stepwise = torch.stack(steps, 1)
    print(f"forward {gap(want, found):.1e}, step {gap(torch.stack(their_steps, 1), stepwise):.1e}")
    assert gap(want, found) < 2e-5
    assert gap(torch.stack(their_steps, 1), stepwise) < 2e-5
