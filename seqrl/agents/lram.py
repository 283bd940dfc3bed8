"""Large Recurrent Action Model (Schmied et al. 2025, arXiv 2410.22391): one model, many tasks.

    tokens  s_0, g_0, r_0, s_1, g_1, r_1, ...      g = return-to-go, r = reward of the step
    a_t = head( xLSTM(s_0, g_0, r_0, ..., s_t, g_t)[g_t] )

Actions are no tokens: with them a model learns to repeat its last one. Vectors and images of all
tasks share one space of inputs, discrete and continuous actions one vocabulary of ids, read for all
action dimensions at once; the loss is the mean cross-entropy over the dimensions a task has. A
batch is of one task, tasks alternate. Acting carries a state of fixed size through the episode.

What differs from the released code, and why:

==================================  ===============================================================
release                             here
==================================  ===============================================================
acting feeds a reward of 0          the true one, as a step of its own before the next observation:
                                    the sequence training saw
windows padded in front             at the end: padding never gets into the state
a bin decodes to its lower edge     to its centre (``decode_bins="lower_edge"``: as released)
argmax over all ids                 over those the task's actions can have
the last step is never trained      it is
accumulates one batch a domain      one task an update, in turn
==================================  ===============================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.agents.agent import Agent, AgentConfig, require, require_fractions, require_sizes
from seqrl.datasets.tokens import OBS, RTG, TripletLayout
from seqrl.draws import RowDraws
from seqrl.errors import SeqrlError
from seqrl.layers.dropout import Dropout
from seqrl.layers.heads import masked_mean
from seqrl.layers.mixer import Place, build_mixers
from seqrl.layers.multitask import ActionCodes, DecodeBins, SharedHead, SharedObservations
from seqrl.layers.stack import (
    MixerBlock,
    MixerStack,
    RMSNorm,
    grouped_parameters,
    residual_stack,
)
from seqrl.layers.token_memory import AttentionMemory, MixerMemory, NewTokens, TokenMemory
from seqrl.layers.transformer import Transformer
from seqrl.layers.xlstm import xlstm_stack
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec

REWARD = "reward"


@dataclass(frozen=True)
class LRAMConfig(AgentConfig):
    """LRAM settings; the defaults are for a CPU, presets have the published sizes."""

    context: int = 20
    """Time steps of a training window (published: 50); acting has no limit."""
    width: int = 128
    """Size D of the token vectors."""
    n_layer: int = 4
    """Blocks."""
    n_head: int = 4
    """Heads of every block."""
    mixer: tuple[str, ...] = ("xlstm",)
    """What mixes tokens: xlstm, mamba (S6 blocks without MLP), attention, or any other name of
    `seqrl list mixers`, one for all blocks or one a block."""
    slstm_at: tuple[int, ...] = ()
    """Blocks of xlstm that are sLSTM, counted from 0; all others are mLSTM."""
    slstm_bias: Literal["powerlaw", "small"] = "powerlaw"
    """First forget biases of sLSTM blocks: from 5 down to -7 over a head's channels, or 3 to 6."""
    positions: Literal["none", "token", "relative"] = "none"
    """For attention: a learned vector by place of the token in the window, or distances."""
    dropout: float = 0.0
    """On token vectors and on what blocks add (it hurt in the paper)."""
    return_tokens: bool = True
    """Condition on returns-to-go."""
    max_actions: int = 8
    """Action dimensions of the head; tasks use the first of them."""
    n_discrete: int = 18
    """Ids of discrete actions (Atari has 18)."""
    bins: int = 256
    """Ids of continuous actions: equal bins between a task's own bounds."""
    decode_bins: DecodeBins = "centre"
    """What a bin stands for; lower_edge as in the released code."""
    max_observation: int | None = None
    """Vectors are padded to this many entries; none means the longest task's (published: 204)."""
    image_size: int | None = None
    """Images are padded to this many pixels a side; none means the largest task's."""
    return_scales: tuple[float, ...] = ()
    """Divisors of returns and rewards, one a task, in place of return_scale."""
    windows: Literal["any_end", "any_start", "episode_start"] = "any_end"
    """Where training windows lie: up to any step, from any step, or from the episode start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("context", "width", "n_layer", "n_head", "max_actions", "n_discrete")
        require_sizes(self, *sizes)
        require(self.bins >= 2, "bins", self.bins, "at least 2")
        require_fractions(self, "dropout")
        for name in ("max_observation", "image_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "at least 1, or none")
        scales = self.return_scales
        require(all(s > 0 for s in scales), "return_scales", scales, "above 0")

    def window(self) -> WindowSpec:
        return WindowSpec(self.windows, self.context)


class LRAM(Agent):
    """See the module's docstring. Its acting state is that of ``layers/token_memory.py``.

    Predictions are logits over the ids that the task's actions can have: ``[B, T, n]`` for discrete
    actions, ``[B, T, A, bins]`` for continuous ones.
    """

    name = "lram"
    config_class = LRAMConfig
    multi_task = True
    acting_rules = ("stream", "recompute", "refill", "stream:window+first", "stream:tova")
    battery_config = {"context": 6, "width": 32, "n_layer": 2, "n_head": 2, "slstm_at": (1,)}
    tolerance = {"causality": 0.0, "padding": 1e-5, "streaming": 1e-5}
    config: LRAMConfig
    only_task: int | None = None
    """The one task an exported copy serves: a graph cannot look it up."""

    def __init__(self, config: LRAMConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c = config
        if c.return_scales and len(c.return_scales) != len(tasks):
            raise SeqrlError(
                f"return_scales has {len(c.return_scales)} entries for {len(tasks)} tasks",
                hint="one a task, in the order of the data",
            )
        self.uses_returns = c.return_tokens
        self.layout = TripletLayout((OBS, RTG, REWARD) if c.return_tokens else (OBS, REWARD))
        self.codes = ActionCodes(
            [t.action for t in tasks], stats, c.n_discrete, c.bins, c.max_actions, c.decode_bins
        )
        self.embed_obs = SharedObservations(
            [t.observation for t in tasks], c.width, c.max_observation, c.image_size
        )
        self.embed_rtg = nn.Linear(1, c.width) if c.return_tokens else None
        self.embed_reward = nn.Linear(1, c.width)
        self.token_table = (
            nn.Parameter(torch.zeros(self.layout.size * c.context, c.width))
            if c.positions == "token"
            else None
        )
        self.embed_norm = nn.LayerNorm(c.width)
        self._start_biases()
        self.embed_dropout = Dropout(c.dropout)
        self.stack, self.recall = self._stack_and_memory()
        self.head = SharedHead(c.width, c.max_actions, self.codes.size)
        if c.positions == "token":
            self.acting.rule = "recompute"

    def _start_biases(self) -> None:
        """As released: biases of the token embeddings begin at random."""
        parts = [self.embed_obs.vector, self.embed_rtg, self.embed_reward, self.embed_norm]
        if self.embed_obs.image is not None:
            parts.append(self.embed_obs.image.out)
        for part in parts:
            if part is not None:
                nn.init.normal_(part.bias, std=0.02)
        if self.token_table is not None:
            nn.init.normal_(self.token_table, std=0.02)

    def _stack_and_memory(self) -> tuple[Transformer | MixerStack, TokenMemory]:
        c, m = self.config, self.layout.size
        memory = (c.context, m, self.layout.place(self._reader), c.width)
        relative = c.positions == "relative"
        if c.mixer == ("xlstm",):
            stack = xlstm_stack(c.width, c.n_layer, c.n_head, c.slstm_at, c.dropout, c.slstm_bias)
            return stack, MixerMemory(*memory)
        if c.slstm_at:
            raise SeqrlError("slstm_at is for mixer xlstm", hint="drop --agent.slstm-at")
        if set(c.mixer) == {"attention"}:
            sizes = (c.width, c.n_layer, c.n_head, "gelu", c.dropout, 0.0)
            return Transformer(*sizes, relative), AttentionMemory(*memory)  # type: ignore[arg-type]
        place = Place(c.width, c.n_head, m * c.context, m, positions=c.positions)
        if c.mixer == ("mamba",):
            mixers = build_mixers(("s6",), place, c.n_layer)
            blocks = [MixerBlock(x, RMSNorm, c.width, None, c.dropout) for x in mixers]
            return MixerStack(blocks, RMSNorm(c.width)), MixerMemory(*memory)
        mixers = build_mixers(c.mixer, place, c.n_layer)
        return residual_stack(mixers, c.width, dropout=c.dropout), MixerMemory(*memory)

    @property
    def _reader(self) -> str:
        """The token of a step that the action is read at."""
        return RTG if self.config.return_tokens else OBS

    # --- learning -----------------------------------------------------------------------------

    def _hidden(self, batch: Batch, task: int) -> Tensor:
        """Vectors ``[B, T, D]`` that actions are read from."""
        tokens = {
            OBS: self._embed_batch(batch, task),
            REWARD: self._value(self.embed_reward, batch.rewards, task),
        }
        if self.embed_rtg is not None:
            tokens[RTG] = self._value(self.embed_rtg, batch.returns_to_go, task)
        x = self.layout.interleave(tokens)[:, :-1]  # nothing follows the last reward
        x = self.embed_dropout(self.finish_tokens(x, torch.arange(x.shape[1], device=x.device)))
        return self.stack.read(x, self.layout.readers(self._reader))

    def predict(self, batch: Batch) -> Tensor:
        task = self._task_of(batch.task)
        return self._predictions(self._hidden(batch, task), task)

    def loss(self, batch: Batch) -> LossOut:
        task = self._task_of(batch.task)
        spec = self.tasks[task].action
        hidden = self._hidden(batch, task)[batch.mask]  # (N, D), N valid steps
        logits = self.head.logits(hidden, spec.size).float()
        actions = batch.actions[batch.mask]
        ids = self.codes.encode(actions, task)
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        with torch.no_grad():
            choice = logits[..., self.codes.legal(task)].argmax(-1)
            metrics = self._errors(self.codes.decode(choice, task), actions, task)
        if len(self.tasks) > 1:
            metrics[f"loss/{task}"] = loss.detach()
        return LossOut(loss, ids.numel(), metrics)

    def _errors(self, found: Tensor, actions: Tensor, task: int) -> dict[str, Tensor | float]:
        """``action_error``: root mean squared error in action units, or the share of wrong choices;
        ``rare_action_error``: the same without the data's most frequent choice."""
        if self.tasks[task].action.kind == "continuous":
            return {"action_error": (found - actions).square().mean().sqrt()}
        wrong = (found != actions).float()
        counts = self.stats[task].action_counts
        common = max(range(len(counts)), key=counts.__getitem__) if counts else -1
        rare = masked_mean(wrong.unsqueeze(0), (actions != common).unsqueeze(0))[0]
        return {"action_error": wrong.mean(), "rare_action_error": rare}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Decay on weight matrices and convolutions alone, as released."""
        rest, *special = grouped_parameters(self)
        table = [] if self.token_table is None else [id(self.token_table)]
        plain = [p for p in rest["params"] if p.dim() < 2 or id(p) in table]
        ids = {id(p) for p in plain}
        decayed = [p for p in rest["params"] if id(p) not in ids]
        return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}, *special]

    # --- tokens -------------------------------------------------------------------------------

    def _task_of(self, task: Tensor | None) -> int:
        """The one task of a batch or of a block of rows."""
        if self.only_task is not None:
            return self.only_task
        return 0 if task is None or len(self.tasks) == 1 else int(task[0])

    def _embed_batch(self, batch: Batch, task: int) -> Tensor:
        """Observation vectors ``[B, T, D]``; of images, zeros where steps are padding."""
        x = batch.observations
        if self.tasks[task].observation.kind == "vector" or bool(batch.mask.all()):
            return self.embed_obs(self.observe(x, task))
        seen = self.embed_obs(self.observe(x[batch.mask].unsqueeze(1), task)).squeeze(1)
        out = seen.new_zeros(*batch.mask.shape, self.config.width)
        out[batch.mask] = seen
        return out

    def _value(self, embed: nn.Linear, value: Tensor, task: int) -> Tensor:
        """A reward or return ``[...]`` as a token vector ``[..., D]``."""
        return embed(self.scaled(value, task).unsqueeze(-1))

    def finish_tokens(self, x: Tensor, position: Tensor, timestep: Tensor | None = None) -> Tensor:
        """Positions and the norm; see :class:`seqrl.layers.token_memory.TokenModel`."""
        if self.token_table is not None:
            x = x + self.token_table[position.clamp(0, len(self.token_table) - 1)]
        return self.embed_norm(x)

    def scale_of(self, task: int = 0) -> float:
        scales = self.config.return_scales
        return scales[task] if scales else super().scale_of(task)

    # --- acting -------------------------------------------------------------------------------

    def check_rule(self, rule: str) -> None:
        super().check_rule(rule)
        self.recall.check_rule(rule, self.config.mixer)
        if rule.startswith("stream") and self.config.positions == "token":
            raise SeqrlError(
                f"rule '{rule}' needs positions that do not move with the window",
                hint="use --acting recompute or refill, or train with --agent.positions none",
            )

    @property
    def can_sample(self) -> bool:
        return True  # bins can be drawn as choices can

    def initial_state(self, n: int) -> dict[str, Any]:
        return self.recall.initial_state(self.stack, n, self.acting.rule)

    def reset(self, state: dict[str, Any], rows: Tensor) -> dict[str, Any]:
        return self.recall.reset(self.stack, state, rows)

    def step(self, state: dict[str, Any], step: Step) -> tuple[Tensor, dict[str, Any]]:
        task = self._task_of(step.task)
        parts = [self.embed_obs(self.observe(step.observation.unsqueeze(1), task))[:, 0]]
        if self.embed_rtg is not None:
            parts.append(self._value(self.embed_rtg, step.rtg, task))
        reward = self._value(self.embed_reward, step.prev_reward, task)
        new = NewTokens(torch.stack(parts, 1), reward, step.timestep, step.first)
        hidden, state = self.recall.advance(self, self.stack, state, self.acting.rule, new)
        return self._predictions(hidden, task), state

    def _predictions(self, hidden: Tensor, task: int) -> Tensor:
        """Logits of the legal ids, ``[..., n]`` or ``[..., A, bins]``."""
        spec = self.tasks[task].action
        logits = self.head.logits(hidden, spec.size)[..., self.codes.legal(task)]
        return logits.squeeze(-2) if spec.kind == "discrete" else logits

    def act(self, state: Any, step: Step, generator: RowDraws | None = None) -> tuple[Tensor, Any]:
        prediction, state = self.step(state, step)
        return self.decode(prediction, generator, self._task_of(step.task)), state

    def decode(self, prediction: Tensor, generator: RowDraws | None, task: int = 0) -> Tensor:
        """Actions of a task from the logits of its legal ids, the most likely or drawn ones."""
        logits = prediction.float()
        if self.acting.decode == "sample":
            if generator is None:
                raise SeqrlError("decode='sample' needs a generator", hint="pass one to act()")
            u = generator.uniform(logits[0].numel()).to(logits.device).clamp_min(1e-12)
            gumbel = -torch.log(-torch.log(u))
            logits = logits / self.acting.temperature + gumbel.view(logits.shape)
        choice = logits.argmax(-1)
        discrete = self.tasks[task].action.kind == "discrete"
        return self.codes.decode(choice.unsqueeze(-1) if discrete else choice, task)
