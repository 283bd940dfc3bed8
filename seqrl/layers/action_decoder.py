"""Values of every bin of every action dimension, one dimension after another.

An action of A dimensions is A decisions: the values of dimension i depend on a history and on the
bins chosen for the dimensions before it (Chebotar et al. 2023, arXiv 2309.10150). Tokens::

    h_1 ... h_L   E_1[b_1]  E_2[b_2]  ...  E_{A-1}[b_{A-1}]
            |        |         |                |
           Q_1      Q_2       Q_3              Q_A          B values each

History tokens see all of the history, an action token the history, itself and the action tokens
before it. :meth:`BinValues.read` is the one way to values: over a whole logged action in training,
or bin by bin with cached keys while acting.

Shapes: N histories, w steps of a history, m tokens of a step, L history tokens, A action
dimensions, B bins at most, j bins given, H heads, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.datasets.bins import LevelBins, decode_levels, encode_levels
from seqrl.layers.embeddings import ActionEmbedding, observation_embedding
from seqrl.layers.transformer import Transformer
from seqrl.spec import ActionSpec, ObservationSpec

STATE, ACTION, REWARD = "state", "action", "reward"


class ActionBins(nn.Module):
    """Any kind of action as bin numbers ``[..., A]``, and back.

    Args:
        spec: the action; a discrete one is one dimension whose choices are its bins.
        levels: bins of a continuous action.
    """

    values: Tensor
    edges: Tensor
    legal: Tensor
    """``[A, B]`` bool: dimensions with fewer than B bins have the first of them."""

    def __init__(self, spec: ActionSpec, levels: LevelBins | None):
        super().__init__()
        self.kind = spec.kind
        self.sizes = spec.nvec if levels is None else levels.sizes
        values, edges = (torch.empty(0), torch.empty(0)) if levels is None else levels.tables()
        legal = torch.arange(max(self.sizes)) < torch.tensor(self.sizes).unsqueeze(1)
        # Not in the state dict: they follow from the space and the statistics.
        for name, table in (("values", values), ("edges", edges), ("legal", legal)):
            self.register_buffer(name, table, persistent=False)

    def encode(self, actions: Tensor) -> Tensor:
        """Stored actions ``[..., A]`` float or int64, or ``[...]`` int64, to ``[..., A]``."""
        if self.kind == "continuous":
            return encode_levels(actions, self.edges)
        return actions.unsqueeze(-1) if self.kind == "discrete" else actions

    def decode(self, bins: Tensor) -> Tensor:
        """Bins ``[..., A]`` to actions as stored."""
        if self.kind == "continuous":
            return decode_levels(bins, self.values)
        return bins.squeeze(-1) if self.kind == "discrete" else bins


class BinHead(nn.Module):
    """From a hidden state to the logit of every bin's value.

    Args:
        width: D.
        bins: B.
        start: logit that all bins start at.
        dueling: a value and advantages whose mean over the legal bins is 0 (Wang et al. 2016), each
            from a hidden layer of 2D units.
        std: of the first weights of the last layer; at 0 all bins start equal.
    """

    def __init__(self, width: int, bins: int, start: float, dueling: bool, std: float):
        super().__init__()
        self.out = _layers(width, bins, std, dueling)
        self.value = _layers(width, 1, std, hidden=True) if dueling else None
        last = self.out if self.value is None else self.value
        nn.init.constant_(_final(last).bias, start)

    def forward(self, x: Tensor, legal: Tensor) -> Tensor:
        """``[N, Q, D]`` and the legal bins ``[Q, B]`` of the Q dimensions to ``[N, Q, B]``."""
        y = self.out(x)
        if self.value is None:
            return y
        mean = (y * legal).sum(-1, keepdim=True) / legal.sum(-1, keepdim=True)
        return self.value(x) + y - mean


def _layers(width: int, out: int, std: float, hidden: bool) -> nn.Module:
    last = nn.Linear(2 * width if hidden else width, out)
    nn.init.normal_(last.weight, std=std)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), last) if hidden else last


def _final(layers: nn.Module) -> nn.Linear:
    last = layers[-1] if isinstance(layers, nn.Sequential) else layers
    assert isinstance(last, nn.Linear)
    return last


class Prefix(NamedTuple):
    """What was read so far: keys and values of every block, and how many bins were given."""

    seen: Tensor
    """``[N, L + A - 1]`` bool, tokens that are real: some of the history, and all bins to come."""
    keys: list[Tensor]
    given: int


class BinValues(nn.Module):
    """The network: embeddings, blocks, heads.

    Args:
        observation: what states are.
        sizes: bins of each action dimension.
        width: D.
        layers: blocks.
        heads: attention heads.
        context: w.
        kinds: tokens of a history step in order, ``state`` first; of the newest step only its state
            is known.
        value_heads: 1, or 2 whose smaller value is trusted.
        start: value in (0, 1) that all bins start at.
        dueling: see :class:`BinHead`.
        per_dimension: a head of its own for every action dimension.
        head_std: see :class:`BinHead`.
    """

    legal: Tensor
    order: Tensor
    """``[L + A - 1, L + A - 1]`` bool, what each token sees if all of the history is real."""
    first_bin: Tensor
    """``[A - 1]`` int64, where a dimension's bins begin in the table."""

    def __init__(
        self,
        observation: ObservationSpec,
        sizes: tuple[int, ...],
        *,
        width: int,
        layers: int,
        heads: int,
        context: int,
        kinds: tuple[str, ...] = (STATE,),
        value_heads: int = 1,
        start: float = 0.1,
        dueling: bool = False,
        per_dimension: bool = False,
        head_std: float = 0.0,
    ):
        super().__init__()
        self.dims, self.bins, self.per_dimension = len(sizes), max(sizes), per_dimension
        self.kinds, self.value_heads = kinds, value_heads
        embed: dict[str, nn.Module] = {STATE: observation_embedding(observation, width)}
        if ACTION in kinds:
            spec = ActionSpec("multidiscrete", (self.dims,), nvec=sizes)
            embed[ACTION] = ActionEmbedding(spec, width)
        if REWARD in kinds:
            embed[REWARD] = nn.Linear(1, width)
        self.embed = nn.ModuleDict(embed)
        self.place = nn.Parameter(0.02 * torch.randn((context - 1) * len(kinds) + 1, width))
        self.bin_table: nn.Embedding | None = None
        if self.dims > 1:
            self.bin_table = nn.Embedding((self.dims - 1) * self.bins, width)
            nn.init.normal_(self.bin_table.weight, std=0.02)
            self.dim_place = nn.Parameter(0.02 * torch.randn(self.dims - 1, width))
        self.stack = Transformer(width, layers, heads, "gelu")
        each = value_heads * (self.dims if per_dimension else 1)
        logit = float(torch.logit(torch.tensor(start)))
        self.heads = nn.ModuleList(
            BinHead(width, self.bins, logit, dueling, head_std) for _ in range(each)
        )
        legal = torch.arange(self.bins) < torch.tensor(sizes).unsqueeze(1)
        self.ragged = min(sizes) < self.bins
        length = len(self.place)
        every = torch.arange(length + self.dims - 1)
        order = (every < length) | (every <= every.unsqueeze(1))
        first = torch.arange(self.dims - 1) * self.bins
        # Not in the state dict: they follow from the sizes.
        for name, table in (("legal", legal), ("order", order), ("first_bin", first)):
            self.register_buffer(name, table, persistent=False)

    def token(self, kind: str, x: Tensor) -> Tensor:
        """Vectors ``[..., D]`` of one kind of history token: observations as network input, bins
        ``[..., A]`` or scaled rewards ``[...]``."""
        return self.embed[kind](x.unsqueeze(-1) if kind == REWARD else x)

    def read(self, history: tuple[Tensor, Tensor] | Prefix, bins: Tensor) -> tuple[Tensor, Prefix]:
        """Values in [0, 1] of the dimension after a history and after each bin given.

        Args:
            history: tokens ``[N, w, m, D]`` and which steps are real ``[N, w]`` bool, the newest
                last; or a prefix from an earlier call, to go on from.
            bins: ``[N, j]`` int64, of the dimensions that follow; from a history j may be 0.

        Returns:
            ``[N, H, j + 1, B]`` from a history (the first dimension's, then those after each bin),
            ``[N, H, j, B]`` from a prefix; and the prefix with these bins.
        """
        fresh = not isinstance(history, Prefix)
        if isinstance(history, Prefix):
            seen, past, given = history
            parts = []
        else:
            steps, real = history
            m, length = len(self.kinds), len(self.place)
            parts = [steps.flatten(1, 2)[:, :length] + self.place]  # (N, L, D)
            seen = real if m == 1 else real.repeat_interleave(m, 1)[:, :length]
            seen, past, given = F.pad(seen, (0, self.dims - 1), value=True), None, 0
        if bins.shape[1]:
            parts.append(self._action_tokens(bins, given))
        x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        total, read = given + bins.shape[1], bins.shape[1] + int(fresh)
        end = len(self.place) + total
        sees = self.order[end - x.shape[1] : end, :end] & seen[:, :end].unsqueeze(1)  # (N, M, end)
        y, keys = self.stack.over(x, sees.unsqueeze(1), past, read)
        first = given if fresh else given + 1
        return self._values(y, first), Prefix(seen, keys, total)

    def _action_tokens(self, bins: Tensor, given: int) -> Tensor:
        assert self.bin_table is not None
        dims = slice(given, given + bins.shape[1])
        return self.bin_table(bins + self.first_bin[dims]) + self.dim_place[dims]

    def _values(self, hidden: Tensor, first: int) -> Tensor:
        """Hidden states ``[N, Q, D]`` of dimensions from ``first`` on to ``[N, H, Q, B]``."""
        q = hidden.shape[1]
        legal = self.legal[first : first + q]
        if not self.per_dimension:
            logits = [head(hidden, legal) for head in self.heads]
        else:
            logits = []
            for h in range(self.value_heads):
                own = [self.heads[h * self.dims + first + i] for i in range(q)]
                parts = [head(hidden[:, i : i + 1], legal[i : i + 1]) for i, head in enumerate(own)]
                logits.append(torch.cat(parts, 1))
        joint = torch.stack(logits, 1) if len(logits) > 1 else logits[0].unsqueeze(1)
        return joint.float().sigmoid()

    def greedy(self, history: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The best bin of each dimension in turn, given those before it.

        Returns:
            Bins ``[N, A]`` int64 and the values ``[N, A, B]`` they were chosen by: the mean of the
            heads, -inf where a dimension has no such bin.
        """
        none = self.legal.new_zeros(history[1].shape[0], 0, dtype=torch.int64)
        values, prefix = self.read(history, none)
        chosen: list[Tensor] = []
        seen: list[Tensor] = []
        for i in range(self.dims):
            if i:
                values, prefix = self.read(prefix, chosen[-1])
            mean = values[:, 0, -1] if self.value_heads == 1 else values[:, :, -1].mean(1)
            if self.ragged:
                mean = mean.masked_fill(~self.legal[i], float("-inf"))
            seen.append(mean)
            chosen.append(mean.argmax(-1, keepdim=True))
        return torch.cat(chosen, 1), torch.stack(seen, 1)
