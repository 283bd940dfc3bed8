"""RATE: Recurrent Action Transformer with Memory (Cherepanov et al., arXiv 2306.09459).

An episode is cut into segments of K steps, each one call of a Transformer-XL over

    [M_read | R_0 o_0 a_0 ... R_{K-1} o_{K-1} a_{K-1} | M_write]

with both memory blocks filled with the same m vectors M. What comes out at M_write goes through a
valve (``layers/valves.py``) and is the memory of the next segment; layers may also see the cached
inputs of earlier segments. The action is read at the state token, which sees no M_write.

What differs from the released code, and why:

=====================================  ============================================================
release                                here
=====================================  ============================================================
memory detached at every segment, one  gradients through all segments, one step a batch
step a segment: the valve never learns  (``memory_bptt=0, step_per_segment`` is the release)
attention adds its input twice         once (``double_residual`` is the release)
relative shift wraps for memory rows   true distances, negative to the right
one start vector copied to all rows    a start vector a row: equal rows stay equal for ever
memory committed without last action   written from the whole segment, as in training
valve dropout active while acting      in training alone
=====================================  ============================================================

``valve="none", mem_len=0`` is RMT; ``memory_tokens=0`` Transformer-XL (``layer="gtrxl"``: GTrXL).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from seqrl.agents.agent import Agent, AgentConfig, require, require_fractions, require_sizes
from seqrl.datasets.tokens import ACTION, OBS, RTG, TripletLayout
from seqrl.layers.dropout import Dropout
from seqrl.layers.embeddings import ActionEmbedding, observation_embedding
from seqrl.layers.heads import ActionHead, action_loss
from seqrl.layers.state import exporting
from seqrl.layers.trxl import TrXLSettings, TrXLStack, segment_mask
from seqrl.layers.valves import MemoryValve
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec


@dataclass(frozen=True)
class RATEConfig(AgentConfig):
    """RATE settings; defaults are the published MuJoCo ones."""

    segment: int = 20
    """Time steps K of a segment: one call of the transformer."""
    segments: int = 3
    """Segments N of a training window of N*K steps (acting has no limit)."""
    memory_tokens: int = 5
    """Memory vectors m that go from segment to segment; 0 for none."""
    width: int = 128
    """Size D of the token vectors."""
    n_layer: int = 3
    """Transformer-XL layers."""
    n_head: int = 1
    """Attention heads."""
    d_head: int | None = None
    """Size of an attention head; none means width / n_head."""
    d_inner: int = 0
    """Hidden units of the layers' feed-forward network; 0 leaves it out, as published."""
    layer: Literal["trxl", "trxl-i", "gtrxl"] = "trxl"
    """Post-norm layers, pre-norm ones with ReLU, or those with GRU gates."""
    double_residual: bool = False
    """Add the input of attention twice, as released (trxl only)."""
    valve: Literal["ca2", "ca1", "gru", "lstm", "gate", "none"] = "ca2"
    """What written memory goes through: the retention valve, the paper's other ones, or none."""
    valve_heads: int = 1
    """Attention heads of the valves ca1 and ca2; must divide the width."""
    valve_activation: Literal["relu", "leaky_relu", "elu", "tanh", "none"] = "relu"
    """On what was written, before the valve."""
    mem_len: int = 60
    """Tokens of earlier segments whose cached inputs each layer sees; 0 for none. The paper advises
    (3 K + 2 m) N where rewards are dense, and 0 for sparse ones, where caching hurts."""
    memory_reads_cache: bool = False
    """Let the memory tokens see the cache too."""
    memory_bptt: int | None = None
    """A segment's gradient reaches at most so many segments back, through the memory, which is cut
    at every (memory_bptt + 1)-th border; none means all, 0 none."""
    step_per_segment: bool = False
    """An optimiser step after each segment, as released (needs memory_bptt 0)."""
    return_tokens: bool = True
    """Condition on returns-to-go."""
    reset_target: bool = False
    """While acting, begin every segment with the episode's first target (helps in MuJoCo)."""
    embed_tanh: Literal["none", "action", "all"] = "none"
    """Tanh on embedded actions (T-Maze), or on returns and states as well (images)."""
    dropout: float = 0.2
    """On tokens, distances, layer outputs and the final output."""
    attn_dropout: float = 0.05
    """On attention weights, the valve's too."""
    windows: Literal["any_start", "episode_start"] = "any_start"
    """Where training windows lie. Cues at the start of an episode need episode_start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sizes(self, "segment", "segments", "width", "n_layer", "n_head", "valve_heads")
        for name in ("memory_tokens", "mem_len", "d_inner"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        if self.d_head is None:
            divides = self.width % self.n_head == 0
            require(divides, "n_head", self.n_head, f"a divisor of {self.width}, or d_head given")
        else:
            require(self.d_head >= 1, "d_head", self.d_head, "at least 1")
        if self.valve in ("ca1", "ca2"):
            divides = self.width % self.valve_heads == 0
            require(divides, "valve_heads", self.valve_heads, f"a divisor of {self.width}")
        require_fractions(self, "dropout", "attn_dropout")
        reach = self.memory_bptt
        require(reach is None or reach >= 0, "memory_bptt", reach, "at least 0, or none")
        if self.step_per_segment:
            require(reach == 0, "memory_bptt", reach, "0 with step_per_segment")
        plain = self.layer == "trxl" or not self.double_residual
        require(plain, "double_residual", self.double_residual, f"false for layer {self.layer}")

    def window(self) -> WindowSpec:
        return WindowSpec(self.windows, self.segment * self.segments)


class _Part(NamedTuple):
    """One segment of a batch, for the rows that have any step in it."""

    rows: Tensor
    """``[b]`` int64 rows of the batch."""
    steps: slice
    """Of the window."""
    hidden: Tensor
    """``[b, k, D]`` at the state tokens."""


class RATE(Agent):
    """See the module's docstring.

    Acting state: ``count [n]`` steps taken; ``memory [n, m, D]`` of the present segment;
    ``caches``, a layer each, keys and values of ``[cached | M_read | tokens | M_write]``, where the
    slot is the token's place; ``cached [n]`` how many of the first ``mem_len`` slots are filled.
    """

    name = "rate"
    config_class = RATEConfig
    acting_rules = ("stream",)
    battery_config = {
        "segment": 3, "segments": 3, "memory_tokens": 2, "width": 32, "n_layer": 2, "n_head": 2,
        "mem_len": 14, "dropout": 0.0, "attn_dropout": 0.0,
    }  # fmt: skip
    config: RATEConfig
    offsets: Tensor

    def __init__(self, config: RATEConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        self.uses_returns = c.return_tokens
        self.layout = TripletLayout((RTG, OBS, ACTION) if c.return_tokens else (OBS, ACTION))
        self.embed_rtg = nn.Linear(1, c.width) if c.return_tokens else None
        self.embed_obs = observation_embedding(task.observation, c.width)
        self.embed_action = ActionEmbedding(task.action, c.width)
        self.dropout = Dropout(c.dropout)
        self.stack = TrXLStack(
            TrXLSettings(
                width=c.width, layers=c.n_layer, heads=c.n_head,
                head=c.d_head or c.width // c.n_head, inner=c.d_inner, variant=c.layer,
                double_residual=c.double_residual, dropout=c.dropout, attn_dropout=c.attn_dropout,
            )
        )  # fmt: skip
        m = c.memory_tokens
        self.first_memory = nn.Parameter(torch.randn(m, c.width)) if m else None
        valve = (c.valve, c.width, c.valve_heads, c.valve_activation, c.attn_dropout)
        self.valve = MemoryValve(*valve) if m else None
        self.head = ActionHead(task.action, c.width, bias=task.action.kind == "continuous")
        size = self.layout.size
        self.register_buffer("offsets", torch.arange(-1, size - 1), persistent=False)
        self.start = c.mem_len + m
        """Place of a segment's first token among the slots; its tokens end at ``end``."""
        self.end = self.start + size * c.segment
        self.slots = self.end + m

    # --- learning -----------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Tensor:
        rows, steps = batch.mask.shape
        parts = []
        for part in self._segments(batch):
            whole = part.hidden
            if len(part.rows) < rows:  # the others have ended: zeros, as padding has no meaning
                blank = whole.new_zeros(rows, *whole.shape[1:])
                whole = blank.index_copy(0, part.rows, whole)
            parts.append(whole)
        hidden = torch.cat(parts, 1)
        missing = steps - hidden.shape[1]
        return self.head(nn.functional.pad(hidden, (0, 0, 0, missing)) if missing else hidden)

    def loss(self, batch: Batch) -> LossOut:
        return action_loss(
            self.tasks[0].action, self.predict(batch), batch.actions, batch.mask, self.common_action
        )

    def losses(self, batch: Batch) -> Iterator[LossOut] | None:
        return self._losses(batch) if self.config.step_per_segment else None

    def _losses(self, batch: Batch) -> Iterator[LossOut]:
        for part in self._segments(batch):
            yield action_loss(
                self.tasks[0].action,
                self.head(part.hidden),
                batch.actions[part.rows, part.steps],
                batch.mask[part.rows, part.steps],
                self.common_action,
            )

    def _segments(self, batch: Batch) -> Iterator[_Part]:
        """Run the segments of a batch in order, each for the rows that are not over by then."""
        c, mask = self.config, batch.mask
        total = mask.shape[1]
        rows = torch.arange(mask.shape[0], device=mask.device)
        memory, past = self._fresh_memory(len(rows)), None
        for number, begin in enumerate(range(0, total, c.segment)):
            steps = slice(begin, min(begin + c.segment, total))
            if number and c.memory_bptt is not None and number % (c.memory_bptt + 1) == 0:
                memory = memory.detach()
            going_on = mask[rows, begin] if number else torch.ones_like(mask[:, 0])
            if not bool(going_on.all()):
                rows, memory = rows[going_on], memory[going_on]
                past = None if past is None else [p[going_on] for p in past]
            # A segment that nobody goes on after need not write.
            write = steps.stop < total and bool(mask[rows, steps.stop].any())
            hidden, memory, past = self._segment(
                self._tokens(batch, rows, steps), memory, past, write
            )
            yield _Part(rows, steps, hidden)
            if not write:
                return

    def _segment(
        self, tokens: Tensor, memory: Tensor, past: list[Tensor] | None, write: bool
    ) -> tuple[Tensor, Tensor, list[Tensor] | None]:
        """One segment.

        Args:
            tokens: ``[b, L, D]``.
            memory: ``[b, m, D]``.
            past: each layer's cached inputs ``[b, C, D]``, or None.
            write: whether memory and cache of the next segment are wanted.

        Returns:
            Hidden states ``[b, k, D]`` at the state tokens, next memory, next cache.
        """
        c, m, n = self.config, self.config.memory_tokens, tokens.shape[1]
        if not write:
            tokens = tokens[:, :-1]  # nothing follows the last action
        x = self.dropout(torch.cat([memory, tokens, memory] if write else [memory, tokens], 1))
        cached = 0 if past is None else past[0].shape[1]
        written = m if write else 0
        blocked = segment_mask(
            cached, m, tokens.shape[1], written, c.memory_reads_cache, tokens.device
        )
        rows = [slice(m + self.layout.place(OBS), m + n, self.layout.size)]
        if written:
            rows.append(slice(m + n, None))
        y, inputs = self.stack(x, blocked, rows, past, ahead=max(m - 1, 0))
        y, k = self.dropout(y), n // self.layout.size
        if written and self.valve is not None:
            memory = self.valve(y[:, k:], memory)
        if c.mem_len and write:
            before = past or [x[:, :0] for _ in inputs]
            past = [
                torch.cat([a, b], 1)[:, -c.mem_len :].detach()
                for a, b in zip(before, inputs, strict=True)
            ]
        return y[:, :k], memory, past

    # --- tokens -------------------------------------------------------------------------------

    def _tokens(self, batch: Batch, rows: Tensor, steps: slice) -> Tensor:
        """Token vectors ``[b, L, D]`` of some steps of some rows."""
        tokens = {
            OBS: self._embed_obs(batch.observations[rows, steps]),
            ACTION: self._embed_action(batch.actions[rows, steps]),
        }
        rtg = self._embed_returns(batch.returns_to_go[rows, steps])
        return self.layout.interleave(tokens if rtg is None else {**tokens, RTG: rtg})

    def _embed_returns(self, returns: Tensor) -> Tensor | None:
        if self.embed_rtg is None:
            return None
        x = self.embed_rtg(self.scaled(returns).unsqueeze(-1))
        return torch.tanh(x) if self.config.embed_tanh == "all" else x

    def _embed_obs(self, observations: Tensor) -> Tensor:
        x = self.embed_obs(self.observe(observations))
        return torch.tanh(x) if self.config.embed_tanh == "all" else x

    def _embed_action(self, actions: Tensor) -> Tensor:
        x = self.embed_action(actions)
        return x if self.config.embed_tanh == "none" else torch.tanh(x)

    def _fresh_memory(self, rows: int) -> Tensor:
        if self.first_memory is None:
            return self.head.out.weight.new_zeros(rows, 0, self.config.width)
        return self.first_memory.expand(rows, -1, -1)

    # --- acting -------------------------------------------------------------------------------

    def initial_state(self, n: int) -> dict[str, Any]:
        weight, m = self.head.out.weight, self.config.memory_tokens
        count = torch.zeros(n, dtype=torch.int64, device=weight.device)
        state: dict[str, Any] = {
            "count": count,
            "cached": count.clone(),
            "memory": weight.new_zeros(n, m, self.config.width),
            "caches": self.stack.new_caches(n, self.slots, (self.layout.size, m, 1 + m)),
        }
        if self.config.reset_target:
            state["target"] = state["raised"] = weight.new_zeros(n)
        return state

    def reset(self, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        # A row with no steps takes the first memory, and sees nothing of what its slots hold.
        fresh = {k: v.masked_fill(rows, 0) for k, v in state.items() if k in ("count", "cached")}
        return {**state, **fresh}

    def step(self, state: dict[str, Any], step: Step) -> tuple[Tensor, dict[str, Any]]:
        state, count = dict(state), state["count"]
        action = self._embed_action(step.prev_action)
        within = count.remainder(self.config.segment)
        borders = within == 0
        if exporting() or bool(borders.any()):
            self._cross(state, action, borders)
        rtg = self._embed_returns(self._target(state, step, borders))
        parts = [action, *([] if rtg is None else [rtg]), self._embed_obs(step.observation)]
        positions = self.start + within.unsqueeze(1) * self.layout.size + self.offsets
        # The action before a segment belongs to the last one: here it is no token, kept where
        # nothing looks, and let see the segment's first token so that its attention is defined.
        slots = torch.where(positions < self.start, self.slots - 1, positions)
        positions = positions.clamp(min=self.start)
        seen = self._seen(positions, self.config.mem_len - state["cached"])
        y = self.stack.extend(torch.stack(parts, 1), state["caches"], slots, positions, seen, 1)
        state["count"] = count + 1
        return self.head(y[:, 0]), state

    def _seen(self, upto: Tensor, lowest: Tensor) -> Tensor:
        """``[n, L, S]`` bool: slots from ``lowest [n]`` up to ``upto [n, L]``."""
        slots = torch.arange(self.slots, device=upto.device)
        return (slots <= upto.unsqueeze(2)) & (slots >= lowest[:, None, None])

    def _target(self, state: dict[str, Any], step: Step, borders: Tensor) -> Tensor:
        """The return-to-go the agent goes by ``[n]``."""
        if not self.config.reset_target:
            return step.rtg
        state["target"] = torch.where(state["count"] == 0, step.rtg, state["target"])
        state["raised"] = torch.where(borders, state["target"] - step.rtg, state["raised"])
        return step.rtg + state["raised"]

    def _cross(self, state: dict[str, Any], action: Tensor, borders: Tensor) -> None:
        """Begin a segment in the rows set in ``borders [n]``: write the last one's memory, read it.

        Every row is computed and some are kept, so a row's result does not depend on which others
        are at a border.
        """
        c, n = self.config, borders.shape[0]
        slots = torch.arange(self.slots, device=borders.device)
        over = borders & (state["count"] > 0)
        memory = torch.where(borders[:, None, None], self._fresh_memory(n), state["memory"])
        if self.start and (exporting() or bool(over.any())):
            written = self._finish(state, action, over, slots)
            memory = torch.where(over[:, None, None], written, memory)
        state["memory"] = memory
        if c.memory_tokens:
            places = slots[c.mem_len : self.start].expand(n, -1)
            lowest = c.mem_len - state["cached"] * int(c.memory_reads_cache)
            seen = self._seen(torch.full_like(places, self.start - 1), lowest)
            self.stack.extend(memory, state["caches"], places, places, seen, 0, only=borders)

    def _finish(self, state: dict[str, Any], action: Tensor, over: Tensor, slots: Tensor) -> Tensor:
        """Take in the last action of the segments in the rows ``over [n]``: the next memory."""
        c, caches, memory = self.config, state["caches"], state["memory"]
        places = slots[self.end - 1 :].expand(len(over), -1)
        lowest = c.mem_len - state["cached"]
        seen = self._seen(torch.full_like(places, self.slots - 1), lowest)
        seen[:, 0, self.end :] = False
        if not c.memory_reads_cache:
            seen[:, 1:, : c.mem_len] = False
        x = torch.cat([action.unsqueeze(1), memory], 1)
        # In the other rows these slots are still unseen, so writing there does no harm.
        y = self.stack.extend(x, caches, places, places, seen, c.memory_tokens)
        for cache in caches if c.mem_len else ():
            kept = torch.where(
                over[:, None, None, None, None], cache[:, -c.mem_len :], cache[:, : c.mem_len]
            )
            cache[:, : c.mem_len] = kept
        more = (state["cached"] + self.slots - c.mem_len).clamp(max=c.mem_len)
        state["cached"] = torch.where(over, more, state["cached"])
        return memory if self.valve is None else self.valve(y, memory)
