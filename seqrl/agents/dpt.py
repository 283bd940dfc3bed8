"""DPT, the Decision-Pretrained Transformer (Lee et al. 2023, arXiv 2306.14892).

A model that is shown transitions of a task it has never met and a state, and names the best action
there. Learning the new task is a forward pass:

    tokens   [s_q, 0, 0, 0]  [s_1, a_1, s'_1, r_1]  ...  [s_n, a_n, s'_n, r_n]      one linear layer
    loss     - sum_j log M(a* | s_q, first j transitions)          the same label at every prefix

The prediction is the posterior over which action is optimal, so drawing from it is Thompson
sampling (online), and its mode is what to do with data that are given (offline).

What differs from the released code, and why:

====================================  =============================================================
release                               here
====================================  =============================================================
``--head 4`` ignored, always 1        a field, default 1
summed loss                           mean (gradient clipping works)
no loss without any context           trained, too (``train_prior``): the first online action is it
order of adaptive contexts            ``shuffle`` off is right there; presets set it
word table of GPT-2, never used       left out
====================================  =============================================================

``attention="relu"`` builds the blocks of Lin, Bai and Mei 2023. Memory lasts for a trial of several
episodes; with ``context_update="episode"`` (as published for Dark Room) the context is frozen
within an episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.agents.agent import Agent, AgentConfig, require, require_fractions, require_sizes
from seqrl.errors import SeqrlError
from seqrl.layers.context_model import (
    ContextModel,
    Positions,
    action_features,
    count_action_features,
    pour,
    refuse_stream_of_relu,
    roll_in,
)
from seqrl.layers.embeddings import observation_embedding
from seqrl.layers.heads import ActionHead, action_loss
from seqrl.layers.stack import grouped_parameters
from seqrl.layers.token_memory import NewTokens
from seqrl.spec import Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Trajectories
    from seqrl.draws import RowDraws

OPTIMAL = "optimal_action"
"""The column of labels."""


@dataclass(frozen=True)
class DPTConfig(AgentConfig):
    """DPT settings; defaults are those of the released run scripts."""

    normalize_observations: bool = False
    """Shift and scale observations (the release takes them raw)."""
    context: int = 100
    """Transitions H of a context."""
    width: int = 32
    """Size D of the token vectors."""
    n_layer: int = 4
    """Blocks."""
    n_head: int = 1
    """Attention heads; must divide the width."""
    attention: Literal["softmax", "relu"] = "softmax"
    """Attention of GPT-2, or the averaging ReLU attention of the theory paper."""
    mixer: tuple[str, ...] = ("attention",)
    """What mixes tokens: a name of `seqrl list mixers`, one for all blocks or one a block."""
    positions: Positions = "learned"
    """A learned vector for each place in the context, rotation by distance, or nothing."""
    dropout: float = 0.0
    """On tokens and within blocks."""
    init: Literal["torch", "gpt2"] = "torch"
    """How linear layers start: torch's own way, or N(0, 0.02) as in GPT-2, from which models this
    small take off late."""
    shuffle: bool = True
    """A fresh random order of the transitions in every training context. Off where what was done
    depended on what came before: there the order is information."""
    train_prior: bool = True
    """Train the prediction from no context at all (the release does not)."""
    context_update: Literal["step", "episode"] = "step"
    """While acting: every transition joins the context at once, or all of an episode's at its end.
    """
    trial_episodes: int = 1
    """Episodes of a trial in evaluation, unless --trial-episodes says otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sizes(self, "context", "width", "n_layer", "n_head", "trial_episodes")
        require(self.width % self.n_head == 0, "n_head", self.n_head, f"a divisor of {self.width}")
        require_fractions(self, "dropout")

    def window(self) -> WindowSpec:
        length = self.context + 1
        return WindowSpec("context", length, True, (OPTIMAL,), shuffle=self.shuffle)


class DPT(Agent):
    """See the module's docstring.

    Acting state: ``obs [n, D]`` the last observation, embedded; ``seen [n, H, D]`` transitions of
    the context and their number ``count [n]``; for ``context_update="episode"`` those of this
    episode ``new [n, H, D]``, ``fresh [n]``; by rule ``stream`` the layers' own memory instead.
    """

    name = "dpt"
    config_class = DPTConfig
    memory = "trial"
    uses_returns = False
    acting_rules = ("recompute", "stream")
    battery_config = {"context": 6, "width": 64, "n_layer": 2}
    config: DPTConfig

    def __init__(self, config: DPTConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        self.trial_episodes = c.trial_episodes
        # One linear layer on (s, a, s', r), written as the sum of its parts: images are encoded,
        # and a query is what is left of it with zeros for all but the state.
        self.embed = observation_embedding(task.observation, c.width)
        self.embed_next = observation_embedding(task.observation, c.width, bias=False)
        self.embed_rest = nn.Linear(count_action_features(task.action) + 1, c.width, bias=False)
        self.model = ContextModel(
            c.width, c.context + 1, c.n_layer, c.n_head, c.mixer, c.attention, c.positions,
            c.dropout, init=c.init,
        )  # fmt: skip
        self.recall = self.model.memory()
        self.head = ActionHead(task.action, c.width)

    @classmethod
    def statistics(cls, config: AgentConfig, data: Trajectories) -> dict[str, Any]:
        if getattr(config, "shuffle", False) and data.notes.get("order_matters"):
            raise SeqrlError(
                f"{data.source} was recorded by a player that learned: the order of its "
                "transitions is information, which shuffled contexts lose",
                hint="--agent.shuffle false",
            )
        return {}

    # --- learning -----------------------------------------------------------------------------

    def predict(self, batch: Batch) -> Tensor:
        """At every step t, from the transitions before it (of earlier episodes alone, where the
        context is frozen within one) and the state at t as query."""
        b, steps = batch.mask.shape
        transitions = self._transitions(batch)
        t = torch.arange(steps, device=batch.mask.device)
        seen = t.expand(b, steps)
        if self.config.context_update == "episode":
            ended = F.pad((batch.terminations | batch.truncations)[:, :-1], (1, 0))
            seen = torch.cummax(torch.where(ended, t, 0), 1).values
        query = self.embed(self.observe(batch.observations)).flatten(0, 1)
        context = transitions.repeat_interleave(steps, 0)[:, : self.config.context]
        return self._ask(query, context, seen.reshape(-1)).view(b, steps, -1)

    def prefix_predictions(self, batch: Batch) -> Tensor:
        """Predictions from the first 0, 1, ... transitions of each window ``[B, T, ...]``, all
        for the query that is its last valid step."""
        last = batch.mask.sum(1) - 1
        rows = torch.arange(batch.size, device=last.device)
        query = self.embed(self.observe(batch.observations[rows, last]))
        return self.head(
            self.model(torch.cat([query.unsqueeze(1), self._transitions(batch)[:, :-1]], 1))
        )

    def given(self, contexts: Batch) -> GivenContext:
        """This agent as a policy that is shown ``contexts``, one a trial, and adds nothing."""
        return GivenContext(self, contexts)

    def loss(self, batch: Batch) -> LossOut:
        last = batch.mask.sum(1) - 1
        rows = torch.arange(batch.size, device=last.device)
        label = batch.extras[OPTIMAL][rows, last].to(batch.actions.dtype)
        # Prefix j of a window with m valid steps has j < m transitions: as many as steps.
        mask = batch.mask.clone()
        if not self.config.train_prior:
            mask[:, 0] = False
        labels = label.unsqueeze(1).expand(batch.size, mask.shape[1], *label.shape[1:])
        return action_loss(self.tasks[0].action, self.prefix_predictions(batch), labels, mask)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return grouped_parameters(self)

    def _transitions(self, batch: Batch) -> Tensor:
        """Tokens ``[B, T, D]`` of every step's transition."""
        if batch.next_observations is None:
            raise SeqrlError("a context needs the observations after each step")
        before = self.embed(self.observe(batch.observations))
        return self._token(before, batch.actions, batch.next_observations, batch.rewards)

    def _token(self, before: Tensor, action: Tensor, after: Tensor, reward: Tensor) -> Tensor:
        """``[..., D]`` of transitions whose state is already embedded."""
        rest = torch.cat([action_features(self.tasks[0].action, action), reward.unsqueeze(-1)], -1)
        return before + self.embed_next(self.observe(after)) + self.embed_rest(rest)

    def _ask(self, query: Tensor, context: Tensor, count: Tensor) -> Tensor:
        """Predictions ``[n, ...]`` for ``query [n, D]`` given ``count [n]`` of the transitions
        ``context [n, L, D]``."""
        x = torch.cat([query.unsqueeze(1), context], 1)
        x = self.model.finish(x, torch.arange(x.shape[1], device=x.device))
        return self.head(self.model.stack.read(x, count.unsqueeze(1))[:, 0])

    # --- acting -------------------------------------------------------------------------------

    def check_rule(self, rule: str) -> None:
        super().check_rule(rule)
        if rule != "stream":
            return
        refuse_stream_of_relu(self.model)
        if self.config.context_update != "step" or not self._one_observation():
            raise SeqrlError(
                "rule 'stream' needs a query that never changes (bandits): it is the first token, "
                "and everything after it depends on it",
                hint="use --acting recompute",
            )

    def _one_observation(self) -> bool:
        std = self.stats[0].obs_std
        return bool(std) and max(std) < 2e-6

    def initial_state(self, n: int) -> dict[str, Any]:
        weight, c = self.embed_rest.weight, self.config
        state: dict[str, Any] = {"obs": weight.new_zeros(n, c.width)}
        if self.acting.rule == "stream":
            return state | {"layers": self.recall.initial_state(self.model.stack, n, "stream")}
        for items, count in (("seen", "count"), ("new", "fresh")):
            if items == "seen" or c.context_update == "episode":
                state[items] = weight.new_zeros(n, c.context, c.width)
                state[count] = torch.zeros(n, dtype=torch.int64, device=weight.device)
        return state

    def with_context(self, state: dict[str, Any], rows: Tensor, context: Batch) -> dict[str, Any]:
        """The state with given transitions as the context of some rows (offline use).

        Args:
            state: by rule ``recompute``.
            rows: ``[n]`` bool.
            context: windows ``[n, T]`` of transitions, of which all valid steps are taken.
        """
        if "seen" not in state:
            raise SeqrlError("a context can be given by rule 'recompute' only")
        items = self._transitions(context)
        empty = torch.where(rows, 0, state["count"])
        seen, count = pour(state["seen"], empty, items, context.mask.sum(1), rows)
        return {**state, "seen": seen, "count": count}

    def step(self, state: dict[str, Any], step: Step) -> tuple[Tensor, dict[str, Any]]:
        query = self.embed(self.observe(step.observation))
        going_on = ~step.trial_first
        new = self._last_transition(state["obs"], step)
        state = {**state, "obs": query}
        if "layers" in state:
            token = torch.where(going_on.unsqueeze(1), new, query)
            tokens = NewTokens(token.unsqueeze(1), token, step.timestep, step.trial_first)
            hidden, state["layers"] = self.recall.advance(
                self, self.model.stack, state["layers"], "stream", tokens
            )
            return self.head(hidden), state
        if self.config.context_update == "step":
            state["seen"], state["count"] = roll_in(state["seen"], state["count"], new, going_on)
        else:
            state["new"], state["fresh"] = roll_in(state["new"], state["fresh"], new, going_on)
            ended = step.first & going_on
            state["seen"], state["count"] = pour(
                state["seen"], state["count"], state["new"], state["fresh"], ended
            )
            state["fresh"] = state["fresh"].masked_fill(ended, 0)
        return self._ask(query, state["seen"], state["count"]), state

    def _last_transition(self, before: Tensor, step: Step) -> Tensor:
        """Token ``[n, D]`` of the transition that led here (into the final observation of the
        episode before, at an episode's first step)."""
        after = step.observation
        if step.final_observation is not None:
            first = step.first.view(-1, *[1] * (after.dim() - 1))
            after = torch.where(first, step.final_observation, after)
        return self._token(before, step.prev_action, after, step.prev_reward)

    def finish_tokens(self, x: Tensor, position: Tensor, timestep: Tensor) -> Tensor:
        """What depends on a token's place; see :class:`TokenModel`."""
        return self.model.finish(x, position)


class GivenContext:
    """A policy for the rollout engine that is shown recorded transitions of each trial's task and
    adds nothing to them: DPT's offline use.

    Args:
        agent: shares its weights and acting options; ``decode="greedy"`` is what the paper does.
        contexts: windows of transitions ``[trials, T]``, the first for trial 0, all valid steps of
            which are taken.
    """

    memory = "episode"
    uses_returns = False

    def __init__(self, agent: DPT, contexts: Batch):
        if int(contexts.mask.sum(1).max()) > agent.config.context:
            raise SeqrlError(
                f"contexts of {int(contexts.mask.sum(1).max())} transitions, the agent takes "
                f"{agent.config.context}",
            )
        self.dpt, self.tasks, self.device = agent, agent.tasks, agent.device
        self.name = f"{agent.name}, given context"
        with torch.inference_mode():
            self.items = agent._transitions(contexts)
        self.count = contexts.mask.sum(1)

    def initial_state(self, n: int) -> None:
        """Nothing changes while acting."""

    def reset(self, state: None, rows: Tensor) -> None:
        """Nothing to forget."""

    def act(
        self, state: None, step: Step, generator: RowDraws | None = None
    ) -> tuple[Tensor, None]:
        """Actions for one step of every row."""
        if step.trial is None or int(step.trial.max()) >= len(self.count):
            raise SeqrlError(f"contexts for {len(self.count)} trials were given, more are run")
        query = self.dpt.embed(self.dpt.observe(step.observation))
        answer = self.dpt._ask(query, self.items[step.trial], self.count[step.trial])
        return self.dpt.decode(answer, generator), None
