"""Transformer-XL layers against the formulas written out; their caches; memory valves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqrl.errors import SeqrlError
from seqrl.layers.mixer import Place, build_mixer
from seqrl.layers.relative import RelativeAttention, waves
from seqrl.layers.trxl import TrXLMixer, TrXLSettings, TrXLStack, as_penalty, segment_mask
from seqrl.layers.valves import CrossValve, GateValve, MemoryValve

M, N, C = 3, 6, 5  # memory tokens, step tokens, cached tokens
L = M + N + M


def sinusoid(distance: int, width: int) -> Tensor:
    rates = [10_000.0 ** (-i / (width // 2)) for i in range(width // 2)]
    values = [math.sin(distance * r) for r in rates] + [math.cos(distance * r) for r in rates]
    return torch.tensor(values, dtype=torch.float64)


def written_out(
    a: RelativeAttention, x: Tensor, past: Tensor, bias: Tensor, seen: Tensor
) -> Tensor:
    """The attention one score at a time."""
    every = torch.cat([past, x], 1)
    inner = a.heads * a.head
    w_q, w_k, w_v = a.qkv.weight.split(inner)
    out = torch.zeros(x.shape[0], x.shape[1], inner, dtype=x.dtype)
    for b in range(x.shape[0]):
        for h in range(a.heads):
            part = slice(h * a.head, (h + 1) * a.head)
            for i in range(x.shape[1]):
                q = w_q[part] @ x[b, i]
                scores = []
                for j in range(every.shape[1]):
                    r = a.positions.weight[part] @ sinusoid(past.shape[1] + i - j, x.shape[2])
                    k = w_k[part] @ every[b, j]
                    score = ((q + bias[0, h]) @ k + (q + bias[1, h]) @ r) / math.sqrt(a.head)
                    scores.append(score if seen[i, j] else torch.tensor(-math.inf).double())
                weights = torch.stack(scores).softmax(0)
                out[b, i, part] = weights @ (every[b] @ w_v[part].T)
    return out @ a.out.weight.T


@torch.no_grad()
def test_attention_equals_the_formula_with_cache_and_a_look_to_the_right() -> None:
    torch.manual_seed(0)
    a = RelativeAttention(8, 2, 6).double()
    x, past = torch.randn(2, L, 8).double(), torch.randn(2, C, 8).double()
    bias = torch.randn(2, 2, 6).double()
    blocked = segment_mask(C, M, N, M, False, "cpu")
    penalty = as_penalty(blocked, bias)
    whole = written_out(a, x, past, bias, ~blocked)
    table = waves(C + L - 1, max(3, M - 1), 8, bias)
    got = a(x, past, bias, table, penalty, (slice(None),), ahead=M - 1)
    assert float((got - whole).abs().max()) < 1e-12
    # Some rows alone: the state tokens, three apart, and the memory.
    rows = (slice(M + 1, M + N, 3), slice(M + N, None))
    got = a(x, past, bias, table, penalty, rows, ahead=M - 1)
    wanted = torch.cat([whole[:, r] for r in rows], 1)
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) < 1e-12


def test_sinusoids_run_down_to_negative_distances() -> None:
    table = waves(4, 2, 6, torch.zeros(1, dtype=torch.float64))
    assert table.shape == (7, 6)
    for row, distance in enumerate(range(4, -3, -1)):
        assert torch.allclose(table[row], sinusoid(distance, 6), atol=1e-15)


def test_sinusoids_made_while_acting_serve_training() -> None:
    with torch.inference_mode():
        table = waves(77, 1, 6, torch.zeros(1))
    weight = torch.ones(6, requires_grad=True)
    (table @ weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("reads", [False, True])
def test_segment_mask_is_the_table(reads: bool) -> None:
    seen = ~segment_mask(2, 2, 3, 2, reads, "cpu")
    cached = [int(reads)] * 2
    assert seen.int().tolist() == [
        [*cached, 1, 1, 0, 0, 0, 0, 0],
        [*cached, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 0, 0],
        [*cached, 1, 1, 1, 1, 1, 1, 1],
        [*cached, 1, 1, 1, 1, 1, 1, 1],
    ]


def stack(variant: str = "trxl", inner: int = 12, **fields: object) -> TrXLStack:
    torch.manual_seed(1)
    s = TrXLSettings(16, 2, 2, 6, inner, variant, **fields)  # type: ignore[arg-type]
    return TrXLStack(s).double().eval()


VARIANTS = ["trxl", "trxl-i", "gtrxl"]


@pytest.mark.parametrize("inner", [0, 12])
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_appending_to_caches_equals_the_whole_segment(variant: str, inner: int) -> None:
    model = stack(variant, inner)
    x = torch.randn(2, L, 16).double()
    past = [torch.randn(2, C, 16).double() for _ in range(2)]
    blocked = segment_mask(C, M, N, M, False, "cpu")
    whole, inputs = model(x, blocked, past=past, ahead=M - 1)
    assert [i.shape for i in inputs] == [x.shape, x.shape]
    caches = model.new_caches(2, C + L)
    for layer, before, cache in zip(model._layers(), past, caches, strict=True):
        layer.attention.append(layer.before(before), cache, torch.arange(C).expand(2, -1))
    got, at = [], 0
    for count in (M, 1, 2, 3, M):
        places = (C + at + torch.arange(count)).expand(2, -1)
        seen = ~blocked[at : at + count].expand(2, -1, -1)
        part = x[:, at : at + count]
        got.append(model.extend(part, caches, places, places, seen, count))
        at += count
    assert float((torch.cat(got, 1) - whole).abs().max()) < 1e-12


@torch.no_grad()
def test_rows_not_named_keep_their_caches() -> None:
    model = stack()
    caches = model.new_caches(2, 4)
    for c in caches:
        c.normal_()
    before = [c.clone() for c in caches]
    places = torch.tensor([[0], [0]])
    seen = torch.ones(2, 1, 4, dtype=torch.bool)
    only = torch.tensor([True, False])
    model.extend(torch.randn(2, 1, 16).double(), caches, places, places, seen, 1, only)
    for c, b in zip(caches, before, strict=True):
        assert not torch.equal(c[0], b[0])
        assert torch.equal(c[1], b[1])


@torch.no_grad()
def test_residuals_once_or_twice() -> None:
    x = torch.randn(2, 4, 16).double()
    blocked = segment_mask(0, 0, 4, 0, False, "cpu")
    for twice in (False, True):
        model = stack(inner=0, double_residual=twice)
        a = [layer.attention for layer in model._layers()]
        y = x
        for layer, attention in zip(model._layers(), a, strict=True):
            z = attention(
                y, None, model.bias, waves(3, 1, 16, model.bias),
                as_penalty(blocked, model.bias), (slice(None),),
            )  # fmt: skip
            y = layer.norm1((2 if twice else 1) * y + z)
        assert float((model(x, blocked)[0] - y).abs().max()) < 1e-12


@torch.no_grad()
def test_gates_start_near_the_identity() -> None:
    x = torch.randn(2, 6, 16).double()
    blocked = segment_mask(0, 0, 6, 0, False, "cpu")
    gated, plain = stack("gtrxl"), stack("trxl-i")
    change = (gated(x, blocked)[0] - F.layer_norm(x, (16,))).norm()
    assert change < 0.75 * x.norm()
    assert gated.layers[0].gate1 is not None
    assert plain.layers[0].gate1 is None
    for layer in gated.layers:  # wide open to the old value, shut to the new one
        for gate in (layer.gate1, layer.gate2):
            gate.bias.fill_(60.0)
    assert torch.allclose(gated(x, blocked)[0], F.layer_norm(x, (16,)), atol=1e-9)


# --- the mixer ---------------------------------------------------------------------------------


def mixer(window: int = 7, **options: object) -> TrXLMixer:
    torch.manual_seed(2)
    m = TrXLMixer(12, 2, window, **options).eval()  # type: ignore[arg-type]
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return m


def stepped(m: TrXLMixer, x: Tensor) -> Tensor:
    state, out = m.initial_state(x.shape[0]), []
    for t in range(x.shape[1]):
        y, state = m.step(x[:, t], state)
        out.append(y)
    return torch.stack(out, 1)


@pytest.mark.parametrize("options", [{}, {"head": 5}])
@torch.no_grad()
def test_mixer_steps_and_pieces_equal_the_whole(options: dict) -> None:
    m, x = mixer(**options), torch.randn(3, 20, 12)
    whole, none = m(x)
    assert none is None
    assert float((stepped(m, x) - whole).abs().max() / whole.abs().max()) < 1e-5
    state, pieces = m.initial_state(3), []
    for part in x.split([1, 9, 3, 7], 1):
        y, state = m(part, state)
        pieces.append(y)
    assert float((torch.cat(pieces, 1) - whole).abs().max() / whole.abs().max()) < 1e-5
    more = torch.randn(3, 12)
    y, _ = m.step(more, state)  # a state from forward serves step
    full, _ = m(torch.cat([x, more.unsqueeze(1)], 1))
    assert float((y - full[:, -1]).abs().max()) < 1e-5
    exact, z = m.double(), x.double()
    assert float((stepped(exact, z) - exact(z)[0]).abs().max()) < 1e-12


@torch.no_grad()
def test_mixer_sees_its_window_and_nothing_else() -> None:
    m, x = mixer(window=5), torch.randn(1, 16, 12)
    base, _ = m(x)
    for t in (0, 4, 9):
        moved = x.clone()
        moved[:, t] += 1
        change = (m(moved)[0] - base).abs().amax((0, 2))
        inside = torch.zeros(16, dtype=torch.bool)
        inside[t : t + 5] = True
        assert bool((change[inside] > 0).all())
        assert float(change[~inside].max()) == 0


@torch.no_grad()
def test_mixer_rows_reset_alone() -> None:
    m, x = mixer(), torch.randn(3, 9, 12)
    state = m.initial_state(3)
    for t in range(4):
        _, state = m.step(x[:, t], state)
    state = m.reset(state, torch.tensor([False, True, False]))
    rows = torch.stack([x[0, 4], x[1, 0], x[2, 4]])
    y, _ = m.step(rows, state)
    whole, _ = m(x)
    assert torch.allclose(y[1], whole[1, 0], atol=1e-6)
    assert torch.allclose(y[0], whole[0, 4], atol=1e-6)


def test_mixer_is_on_the_shelf() -> None:
    m = build_mixer("trxl:window=9,head=3", Place(8, heads=2))
    assert isinstance(m, TrXLMixer)
    assert not m.unlimited
    assert (m.window, m.attention.head, m.attention.heads) == (9, 3, 2)
    with pytest.raises(SeqrlError, match="3 attention heads do not divide the width 8"):
        build_mixer("trxl", Place(8, heads=3))
    with pytest.raises(SeqrlError, match="at least 1"):
        build_mixer("trxl:window=0", Place(8))


def test_mixer_training_drops_attention_and_reaches_every_parameter() -> None:
    m = mixer(attn_dropout=0.5).train()
    x = torch.randn(2, 9, 12)
    a, b = m(x)[0], m(x)[0]
    assert not torch.equal(a, b)
    a.square().sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in m.parameters())


# --- valves ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ca2", "ca1"])
@torch.no_grad()
def test_cross_valves_equal_the_formula(kind: str) -> None:
    torch.manual_seed(3)
    valve = MemoryValve(kind, 8, heads=2).double()  # type: ignore[arg-type]
    inner = valve.inner
    assert isinstance(inner, CrossValve)
    written, memory = torch.randn(2, 3, 8).double(), torch.randn(2, 3, 8).double()
    h = written.clamp(min=0)
    asking, asked = (memory, h) if kind == "ca2" else (h, memory)
    q = inner.query(asking)
    k, v = inner.key_value(asked).chunk(2, -1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        w = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)).softmax(-1)
        heads.append(w @ v[..., part])
    assert torch.allclose(valve(written, memory), inner.out(torch.cat(heads, -1)), atol=1e-12)


@torch.no_grad()
def test_the_gate_equals_the_formula() -> None:
    torch.manual_seed(4)
    valve = MemoryValve("gate", 6, activation="tanh").double()
    g = valve.inner
    assert isinstance(g, GateValve)
    g.bias.normal_()
    written, m = torch.randn(2, 3, 6).double(), torch.randn(2, 3, 6).double()
    h = written.tanh()
    (w_r, w_z, w_g), (u_r, u_z), u_g = g.old.weight.split(6), g.new.weight.split(6), g.gated.weight
    r = torch.sigmoid(m @ w_r.T + h @ u_r.T)
    z = torch.sigmoid(m @ w_z.T + h @ u_z.T - g.bias)
    new = torch.tanh(m @ w_g.T + (h * r) @ u_g.T)
    assert torch.allclose(valve(written, m), torch.sigmoid(m * (1 - z) + z * new), atol=1e-12)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@torch.no_grad()
def test_cells_work_row_by_row(kind: str) -> None:
    torch.manual_seed(5)
    valve = MemoryValve(kind, 6)  # type: ignore[arg-type]
    written, m = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    whole = valve(written, m)
    state = (m[1, 2:], m[1, 2:]) if kind == "lstm" else m[1, 2:]
    alone = valve.inner.cell(written[1, 2:].relu(), state)  # type: ignore[union-attr]
    alone = alone[0] if kind == "lstm" else alone
    assert torch.allclose(whole[1, 2], alone[0], atol=1e-6)


def test_no_valve_lets_the_raw_memory_through() -> None:
    written, m = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    valve = MemoryValve("none", 6)
    assert torch.equal(valve(written, m), written)
    assert not list(valve.parameters())


def test_valve_dropout_is_off_outside_training() -> None:
    torch.manual_seed(6)
    valve = MemoryValve("ca2", 8, dropout=0.5)
    written, m = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    assert not torch.equal(valve(written, m), valve(written, m))
    valve.eval()
    assert torch.equal(valve(written, m), valve(written, m))
