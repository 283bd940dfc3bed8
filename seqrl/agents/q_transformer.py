"""Q-Transformer (Chebotar et al. 2023, arXiv 2309.10150): offline Q-learning, bin by bin.

Each of A action dimensions is cut into bins and is a decision of its own, so that a maximum over
actions is A maxima over bins. With h_t the last w observations and Q' a slow copy of Q::

    y_i = max_b Q'(h_t, a_1..a_i, b)                           i < A: the next dimension
    y_A = r_t + gamma (1 - terminated) max_b Q'(h_{t+1}, b)    the next step's first dimension
    y_i <- max(y_i, G_t)                                       the logged return is a lower bound
    loss = 1/2 mean (Q(a) - y)^2 + alpha/2 mean over untaken bins of Q(b)^2

Values are sigmoids: returns are moved and stretched to [0, 1] exactly (``value_range``), and 0,
what untaken bins are pulled to, is the worst logged return. No code of the paper was published.
What re-implementations do (lucidrains, 2M-kotb, Marcel256, DI-engine), and why not here:

=====================================  ============================================================
others                                 here
=====================================  ============================================================
no reward in the last target           r + gamma (1 - terminated) max Q'
terminated steps bootstrap, or cut     termination alone ends a return; a cut episode bootstraps
episodes do not                        from its true last observation, or the step is left out
untaken bins: raw logits, or sums      the mean over bins, dimensions and batch, of values
over bins and batch                    (``conservative_reduction="sum"`` for the ablation)
lower bound of the step after          G_t of the very step; behind a cut stands the floor
rewards scaled without the offset      r' = (r - (1 - gamma) m) / R, and (r - m) / R at the end
random bins while acting               greedy
decoding by another function           ``BinValues.read`` is the only one
unequal grids to encode and decode     encode(decode(b)) = b; both bounds are bins
=====================================  ============================================================
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from seqrl.agents.agent import Agent, AgentConfig, require, require_fractions, require_sizes
from seqrl.datasets.bins import LevelBins, finite_bounds
from seqrl.datasets.discounting import value_range
from seqrl.datasets.transitions import Transitions, read_transitions
from seqrl.draws import RowDraws
from seqrl.errors import SeqrlError
from seqrl.layers.action_decoder import ACTION, REWARD, STATE, ActionBins, BinValues
from seqrl.spec import ActionSpec, Batch, DataStats, LossOut, Step, TaskSpec, WindowSpec

if TYPE_CHECKING:
    from seqrl.datasets.trajectories import Trajectories


@dataclass(frozen=True)
class QTransformerConfig(AgentConfig):
    """Q-Transformer settings; defaults fit a CPU (robots of the paper: 256 bins)."""

    context: int = 4
    """Observations w a value depends on: the current one and those before it."""
    history_tokens: tuple[str, ...] = ("state",)
    """Tokens of a past step: state, and for memory tasks also action and reward."""
    width: int = 128
    """Size D of the token vectors."""
    n_layer: int = 2
    """Transformer blocks."""
    n_head: int = 4
    """Attention heads; must divide the width."""
    bins: int = 32
    """Bins of each continuous action dimension (paper: 256)."""
    bin_edges: Literal["uniform", "quantile"] = "uniform"
    """Bins evenly spread between the bounds, or holding equal shares of the data."""
    decode_bins: Literal["centre", "bin_mean"] = "centre"
    """What a bin stands for: its centre, or the mean of the data's actions in it."""
    bounds: Literal["space", "data"] = "space"
    """Where bins end: at the space's bounds (the data's where it has none), or at the data's."""
    gamma: float = 0.99
    """Discount of a time step; dimensions within a step have none (paper: 0.98)."""
    alpha: float = 1.0
    """Weight of the pull on untaken bins; 0.1 for random or replay data."""
    conservative_reduction: Literal["mean", "sum"] = "mean"
    """Over untaken bins; sum multiplies alpha by bins - 1 (an ablation)."""
    mc_lower_bound: bool = True
    """No target below the logged discounted return; off where rewards or dynamics are noisy."""
    value_max: Literal["auto", "data"] = "auto"
    """Return that value 1 stands for: the largest possible by the rewards, or a tenth above the
    data's largest."""
    backup: Literal["dim", "dim_nstep"] = "dim"
    """Targets from the next dimension, or for all from the next step's last one (logged prefix)."""
    n_step: int = 1
    """Time steps whose logged rewards stand before the bootstrap."""
    target_tau: float = 0.005
    """The target network moves by this share of the way at each update."""
    double: bool = False
    """The network chooses the bin whose value the target network gives."""
    dueling: bool = False
    """Heads of a value and advantages, with a hidden layer."""
    twin: bool = False
    """Two heads: targets take the smaller value, acting the mean."""
    head_per_dimension: bool = False
    """A head of its own for every action dimension."""
    head_init: float = 0.0
    """Standard deviation of the heads' first weights; at 0 all bins start at the mean return."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_sizes(self, "context", "width", "n_layer", "n_head", "n_step")
        require(self.width % self.n_head == 0, "n_head", self.n_head, f"a divisor of {self.width}")
        require(self.bins >= 2, "bins", self.bins, "at least 2")
        require_fractions(self, "gamma")
        require(self.alpha >= 0, "alpha", self.alpha, "at least 0")
        require(self.head_init >= 0, "head_init", self.head_init, "at least 0")
        require(0 < self.target_tau <= 1, "target_tau", self.target_tau, "in (0, 1]")
        known, kinds = (STATE, ACTION, REWARD), self.history_tokens
        ok = STATE in kinds and set(kinds) <= set(known) and len(set(kinds)) == len(kinds)
        require(ok, "history_tokens", kinds, "state, perhaps with action and reward, each once")

    @property
    def reach(self) -> int:
        """Steps of a window from a trained one on: as many as its target looks at."""
        return self.n_step + int(self.backup == "dim_nstep")

    def window(self) -> WindowSpec:
        length = self.context + self.reach - 1
        return WindowSpec("any_end", length, next_observation=True, discount=self.gamma)


# --- losses -------------------------------------------------------------------------------------


def pick(values: Tensor, bins: Tensor) -> Tensor:
    """``values [..., A, B]`` at ``bins [..., A]``."""
    return values.gather(-1, bins.unsqueeze(-1)).squeeze(-1)


def q_losses(
    values: Tensor, bins: Tensor, targets: Tensor, legal: Tensor, reduction: str
) -> tuple[Tensor, Tensor]:
    """Squared error of logged bins, and squared values of the others: both without their 1/2.

    Args:
        values: ``[N, H, A, B]`` of every bin, by each of H heads.
        bins: ``[N, A]`` logged.
        targets: ``[N, A]``.
        legal: ``[A, B]`` bool.
        reduction: over a dimension's untaken legal bins; over all else it is the mean.
    """
    taken = bins.unsqueeze(1).expand(-1, values.shape[1], -1)  # (N, H, A)
    entries = max(taken.numel(), 1)
    td = (pick(values, taken) - targets.unsqueeze(1)).square().sum() / entries
    others = legal.expand_as(values).scatter(-1, taken.unsqueeze(-1), False)
    pull = (values.square() * others).sum(-1)
    if reduction == "mean":
        pull = pull / others.sum(-1).clamp_min(1)
    return td, pull.sum() / entries


class QTransformer(Agent):
    """See the module's docstring. Acting state: ``past [n, w, m, D]`` tokens of the last w steps
    (newest last, before positions) and ``count [n]`` steps among them that are real.

    Predictions are Q' of every choice ``[B, T, n]`` for a discrete action, and the greedy action
    itself for a continuous or multi-discrete one.
    """

    name = "q_transformer"
    config_class = QTransformerConfig
    action_kinds = ("continuous", "discrete", "multidiscrete")
    uses_returns = False
    overfit_measure = ("off_data", 0.2)  # the worst logged return is 0, like what was never tried
    battery_config = {
        "context": 3, "width": 32, "bins": 8, "alpha": 0.1, "gamma": 0.9, "value_max": "data",
        "head_init": 0.5,
    }  # fmt: skip
    config: QTransformerConfig

    def __init__(self, config: QTransformerConfig, tasks: list[TaskSpec], stats: list[DataStats]):
        super().__init__(config, tasks, stats)
        c, task = config, self.tasks[0]
        self.bins = ActionBins(task.action, self._levels(c, task.action, self.stats[0]))
        facts = self.stats[0].custom.get("values", {})
        self.floor, self.span = facts.get("floor", 0.0), facts.get("span", 1.0)
        kinds = tuple(k for k in (STATE, ACTION, REWARD) if k in c.history_tokens)
        start = min(max(facts.get("mean", 0.0), 0.02), 0.5)  # all at 1/2 would be optimistic
        spread = c.head_init or (0.02 if c.twin else 0.0)  # two heads that start equal stay equal
        self.net = BinValues(
            task.observation, self.bins.sizes, width=c.width, layers=c.n_layer, heads=c.n_head,
            context=c.context, kinds=kinds, value_heads=2 if c.twin else 1, start=start,
            dueling=c.dueling, per_dimension=c.head_per_dimension, head_std=spread,
        )  # fmt: skip
        self.target = copy.deepcopy(self.net).requires_grad_(False)

    @classmethod
    def statistics(cls, config: AgentConfig, data: Trajectories) -> dict[str, Any]:
        """``values``: of :func:`value_range`; ``bins``: those of a continuous action."""
        assert isinstance(config, QTransformerConfig)
        facts: dict[str, Any] = {"values": value_range(data, config.gamma, config.value_max)}
        if data.task.action.kind == "continuous":
            means = config.decode_bins == "bin_mean"
            bins = LevelBins.fitted(data, config.bins, config.bin_edges, config.bounds, means)
            facts["bins"] = {"values": bins.values, "edges": bins.edges}
        return facts

    @staticmethod
    def _levels(c: QTransformerConfig, spec: ActionSpec, stats: DataStats) -> LevelBins | None:
        """Bins of a continuous action, from the statistics or, without data, from its space."""
        if spec.kind != "continuous":
            return None
        if kept := stats.custom.get("bins"):
            return LevelBins(*(tuple(map(tuple, kept[k])) for k in ("values", "edges")))
        if (c.bin_edges, c.decode_bins, c.bounds) != ("uniform", "centre", "space"):
            raise SeqrlError(
                "bins by quantiles, means or bounds of data need data",
                hint="make the agent from a dataset",
            )
        return LevelBins.uniform(*finite_bounds(spec.low, spec.high), c.bins)

    # --- learning -----------------------------------------------------------------------------

    def loss(self, batch: Batch) -> LossOut:
        c = self.config
        found = read_transitions(batch, c.n_step, c.reach)
        every = self.bins.encode(batch.actions)  # (B, T, A)
        bins = every[found.row, found.step]  # (N, A)
        observed = self._observed(batch)
        own = self._steps(self.net, observed, every, batch.rewards)
        values, _ = self.net.read(self._history(own, found.row, found.step), bins[:, :-1])
        with torch.no_grad():
            slow = self._steps(self.target, observed, every, batch.rewards)
            value = self._bootstrap(found, every, own, slow)
            targets = self._targets(batch, found, bins, value, values, slow).clamp(0, 1)
            bound = self._logged(batch, found).clamp(max=1).unsqueeze(1)
            raised = (bound > targets) & c.mc_lower_bound
            targets = torch.where(raised, bound, targets)
        td, pull = q_losses(values, bins, targets, self.net.legal, c.conservative_reduction)
        metrics: dict[str, Tensor | float] = {"td": td.detach(), "reg": pull.detach()}
        if len(bins):
            metrics |= {"mc_active": raised.float().mean(), "mc_return": bound.mean()}
            metrics |= self._metrics(values.detach(), bins, targets)
        return LossOut(0.5 * td + 0.5 * c.alpha * pull, len(bins), metrics)

    def _logged(self, batch: Batch, found: Transitions) -> Tensor:
        """``[N]`` logged returns G_t, scaled; behind the end of a cut episode stands the floor."""
        g, tail = batch.discounted_returns, batch.discounted_tails
        if g is None or tail is None:
            raise SeqrlError("the windows lack discounted returns", hint="WindowSpec(discount)")
        at = (found.row, found.step)
        return (g[at] + self.floor * (tail[at] - 1)) / self.span

    def _bootstrap(self, found: Transitions, every: Tensor, own: Tensor, slow: Tensor) -> Tensor:
        """``[N]`` values of where the transitions lead; see :meth:`_targets`."""
        at, (row, place) = self._history, (found.row, found.next_step)
        prefix = every.new_zeros(len(row), 0)
        if self.config.backup == "dim_nstep":
            prefix = every[row, place.clamp(max=every.shape[1] - 1)][:, :-1]
        ahead, _ = self.target.read(at(slow, row, place), prefix)
        chooser = self.net.read(at(own, row, place), prefix)[0] if self.config.double else None
        best = self._best(ahead, chooser)  # (N, 1), or (N, A) along the bins logged there
        # Nothing is logged behind an episode's end: the best of the first dimension stands in.
        return torch.where(found.over, best[:, 0], best[:, -1])

    def _targets(
        self,
        batch: Batch,
        found: Transitions,
        bins: Tensor,
        value: Tensor,
        values: Tensor,
        slow: Tensor,
    ) -> Tensor:
        """Bootstrapped targets ``[N, A]``.

        Args:
            bins: ``[N, A]`` logged.
            value: ``[N]`` of the bootstraps.
            values: ``[N, H, A, B]`` of the network.
            slow: history tokens ``[B, T+1, m, D]`` of the target network.
        """
        c = self.config
        # Discounted sums of these are (G - floor) / span.
        rest = torch.where(batch.terminations, 1.0, 1 - c.gamma)
        rewards = (batch.rewards - rest * self.floor) / self.span
        discount = c.gamma ** (found.next_step - found.step) * ~found.terminated
        last = (found.discounted(rewards, c.gamma, c.n_step) + discount * value).unsqueeze(1)
        if c.backup == "dim_nstep" or self.net.dims == 1:
            return last.expand(-1, self.net.dims)
        now, _ = self.target.read(self._history(slow, found.row, found.step), bins[:, :-1])
        now = self._best(now, values if c.double else None)
        return torch.cat([now[:, 1:], last], 1)

    def _best(self, values: Tensor, chooser: Tensor | None) -> Tensor:
        """The smaller head's value ``[N, Q]`` of the bin that ``chooser [N, H, Q, B]`` likes best,
        or of the best one."""
        trusted = values.amin(1)
        liked = trusted if chooser is None else chooser.mean(1)
        liked = liked.masked_fill(~self.net.legal[: values.shape[2]], -1.0)
        return pick(trusted, liked.argmax(-1))

    def _metrics(self, values: Tensor, bins: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """How values stand to their targets; ``off_data``: the share of dimensions whose best bin,
        given the logged ones before it, is not the logged one."""
        legal, mean = self.net.legal, values.mean(1)
        taken, best = pick(mean, bins).mean(), mean.masked_fill(~legal, -1.0).max(-1)
        top = best.values.mean()
        return {
            "q_data": taken,
            "q_best": top,
            "gap": top - taken,
            "off_data": (best.indices != bins).float().mean(),
            "target_min": targets.min(),
            "target_max": targets.max(),
            "q_min": mean.masked_fill(~legal, 1.0).min(),
            "q_max": best.values.max(),
        }

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """Move the target network a little towards the network."""
        own, slow = list(self.net.parameters()), list(self.target.parameters())
        torch._foreach_lerp_(slow, own, self.config.target_tau)  # type: ignore[arg-type]

    # --- tokens -------------------------------------------------------------------------------

    def _observed(self, batch: Batch) -> Tensor:
        """Network inputs ``[B, T+1, ...]``: the window's observations and, behind the last real
        one, the next."""
        x, n = batch.observations, batch.mask.sum(1)
        assert batch.next_observations is not None
        x = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
        rows = torch.arange(len(n), device=n.device)
        x[rows, n] = batch.next_observations[rows, (n - 1).clamp(min=0)]
        return self.observe(x)

    def _steps(self, net: BinValues, observed: Tensor, bins: Tensor, rewards: Tensor) -> Tensor:
        """History tokens ``[B, T', m, D]`` of observations ``[B, T', ...]``, bins and rewards of
        perhaps fewer steps: what comes after the newest state is not looked at."""
        parts = [net.token(STATE, observed)]
        for kind in net.kinds[1:]:
            x = net.token(kind, bins if kind == ACTION else self.scaled(rewards))
            parts.append(F.pad(x, (0, 0, 0, observed.shape[1] - x.shape[1])))
        return torch.stack(parts, 2)

    def _history(self, steps: Tensor, row: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """The last w steps ``[N, w, m, D]`` up to places ``step [N]`` in windows ``row [N]`` of
        ``steps [B, T', m, D]``, and which of them exist ``[N, w]``."""
        place = step.unsqueeze(1) + torch.arange(1 - self.config.context, 1, device=step.device)
        flat = row.unsqueeze(1) * steps.shape[1] + place.clamp(min=0)
        picked = steps.flatten(0, 1).index_select(0, flat.flatten())
        return picked.view(*place.shape, *steps.shape[2:]), place >= 0

    # --- acting -------------------------------------------------------------------------------

    @property
    def can_sample(self) -> bool:
        return self.tasks[0].action.kind == "discrete"  # of others the one action is predicted

    def predict(self, batch: Batch) -> Tensor:
        b, t = batch.mask.shape
        bins = self.bins.encode(batch.actions)
        steps = self._steps(self.net, self.observe(batch.observations), bins, batch.rewards)
        row = torch.arange(b, device=bins.device).repeat_interleave(t)
        place = torch.arange(t, device=bins.device).repeat(b)
        return self._prediction(self._history(steps, row, place)).unflatten(0, (b, t))

    def _prediction(self, history: tuple[Tensor, Tensor]) -> Tensor:
        bins, values = self.net.greedy(history)
        return values[:, 0] if self.bins.kind == "discrete" else self.bins.decode(bins)

    def initial_state(self, n: int) -> dict[str, Tensor]:
        c, place = self.config, self.net.place
        past = place.new_zeros(n, c.context, len(self.net.kinds), c.width)
        return {"past": past, "count": torch.zeros(n, dtype=torch.int64, device=place.device)}

    def step(self, state: dict[str, Tensor], step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        net, past = self.net, state["past"]
        x, bins = self.observe(step.observation), self.bins.encode(step.prev_action)
        new = (v.unsqueeze(1) for v in (x, bins, step.prev_reward))
        now = self._steps(net, *new)  # (n, 1, m, D)
        # Action and reward came belated: they belong to the step before.
        before = torch.cat([past[:, -1:, :1], now[:, :, 1:]], 2)
        past = torch.cat([past[:, 1:-1], before, now], 1)[:, -self.config.context :]
        count = (state["count"] + 1).clamp(max=self.config.context)
        place = torch.arange(self.config.context, device=count.device)
        real = place >= self.config.context - count.unsqueeze(1)
        return self._prediction((past, real)), {"past": past, "count": count}

    def decode(self, prediction: Tensor, generator: RowDraws | None) -> Tensor:
        return super().decode(prediction, generator) if self.bins.kind == "discrete" else prediction
