"""Recurrent actor-critic fine-tuning: one-step deterministic policy gradients with stabilisers.

After Decision S4 (David et al. 2023) and the code of its successors. The actor acts from the state
that was remembered with a transition; no gradient goes through that state::

    y = r + gamma (1 - terminated) min_i Q_i'(s', pi'(s', a, R', x'))
    critics:  minimise (Q_i(s, a) - y)^2          actor:  maximise Q_1(s, pi(s, a_prev, R, x))

What keeps it stable: it starts from the offline policy; critics learn alone at first; the actor's
learning rate is a fraction of theirs; what the agent freezes stays as it is (the recurrence of
S4); targets follow slowly, or are copied now and then; R is what the episode really went on to
earn. Rewards are divided by the largest one of the offline data: in units of the return scale they
are so small (0.003 a step) that fresh critics drown them for thousands of updates.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from seqrl.agents.actor import RecurrentActor
from seqrl.devices import seed_generators
from seqrl.distributed import Processes
from seqrl.errors import SeqrlError
from seqrl.finetune.config import ActorCriticConfig
from seqrl.finetune.replay import Transitions
from seqrl.learner import Learner
from seqrl.optim import OptimConfig, build_optimizer


class ActorCriticLearner(Learner):
    """An actor, its critics and the slow copies of both; takes the place of the plain learner.

    Args:
        agent: the actor, trained in place; what must not change is frozen.
        config: see :class:`ActorCriticConfig`.
        optim: of the critics; the actor's rate is ``config.actor_lr``.
        steps: updates of the whole run.
        seed: decides the critics' first weights.
        device: where to compute.
    """

    def __init__(
        self,
        agent: RecurrentActor,
        config: ActorCriticConfig,
        optim: OptimConfig,
        *,
        steps: int,
        seed: int,
        device: torch.device,
    ):
        agent.freeze_for_finetune()
        super().__init__(
            agent,
            optim,
            steps=steps,
            seed=seed,
            precision="fp32",
            device=device,
            processes=Processes(),
        )
        self.actor, self.config = agent, config
        stats = agent.stats[0]
        self.reward_scale = max(abs(stats.reward_min), abs(stats.reward_max)) or 1.0
        """Divides rewards: the largest of the offline data."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = [
                agent.make_critic(config.critic, config.critic_sees_returns)
                for _ in range(config.critics)
            ]
        self.critics = nn.ModuleList(made).to(device)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.target_actor = copy.deepcopy(agent).requires_grad_(False).eval()
        self._slow_critics: list[Tensor] = list(self.target_critics.parameters())
        self._fast_critics: list[Tensor] = list(self.critics.parameters())
        self._slow_actor: list[Tensor] = list(self.target_actor.parameters())
        self._fast_actor: list[Tensor] = list(agent.parameters())
        # One optimiser for both: a parameter without a gradient is left alone, decay included.
        ratio = config.actor_lr / optim.lr
        groups = [
            {"weight_decay": 0.0, **g, "lr_scale": ratio * g.get("lr_scale", 1.0)}
            for g in agent.parameter_groups()
        ]
        groups.append({"params": list(self.critics.parameters())})
        self.optimizer = build_optimizer(groups, optim, device)
        self.params = [p for g in self.optimizer.param_groups for p in g["params"]]

    # --- an update ----------------------------------------------------------------------------

    def warming_up(self, update: int) -> bool:
        """Whether the actor is still left alone at an update (from 0)."""
        return update < self.config.warmup

    def update(self, update: int, batch: Any, stop: bool = False) -> dict[str, Any]:
        """Critic steps, perhaps an actor step, and the slow copies.

        Args:
            update: its number, from 0.
            batch: :class:`Transitions` for each critic step, in a list.
            stop: not used.

        Returns:
            ``loss`` (of the critics), ``value``, and ``actor_value`` where the actor took a step.

        Raises:
            NotFinite: before the weights change.
        """
        seed_generators(self.device, self.seed, update, 0, 0)
        training = self.actor.training
        self.actor.eval()  # as it acted: without dropout
        values: dict[str, Any] = {}
        try:
            for part in batch:
                values = self._critic_step(update, part)
            if not self.warming_up(update) and update % self.config.actor_every == 0:
                values |= self._actor_step(update, batch[-1])
        finally:
            self.actor.train(training)
        self._follow(update + 1)
        self.actor.after_update(update + 1)
        return {k: float(v) for k, v in values.items()}

    def _critic_step(self, update: int, t: Transitions) -> dict[str, Any]:
        actor = self.actor
        with torch.no_grad():
            following = self.target_actor.act_with_grad(t.next_state, t.next_step)
            seen = actor.critic_inputs(t.next_step.observation, t.next_step.rtg)
            future = self._least(self.target_critics, seen, actor.in_unit_box(following))
            goes_on = self.config.gamma * (~t.terminated).to(future.dtype)
            target = t.reward / self.reward_scale + goes_on * future
        seen = actor.critic_inputs(t.step.observation, t.step.rtg)
        values = torch.stack([q(seen, actor.in_unit_box(t.action)) for q in self.critics])
        loss = (values - target).square().mean()
        loss.backward()
        metrics = {"value": values.detach().mean()}
        return self._step(update, loss.detach(), metrics)

    def _actor_step(self, update: int, t: Transitions) -> dict[str, Any]:
        actor = self.actor
        with _frozen(self.critics):
            action = actor.act_with_grad(t.state, t.step)
            seen = actor.critic_inputs(t.step.observation, t.step.rtg)
            value = self.critics[0](seen, actor.in_unit_box(action)).mean()
            (-value).backward()
        # Its loss is not the critics', which is the one that is shown.
        found = self._step(update, -value.detach(), {})
        return {"actor_value": value.detach(), "actor_grad_norm": found.get("grad_norm", 0.0)}

    @staticmethod
    def _least(critics: nn.ModuleList, seen: Tensor, action: Tensor) -> Tensor:
        return torch.stack([q(seen, action) for q in critics]).amin(0)

    @torch.no_grad()
    def _follow(self, number: int) -> None:
        """Let the slow copies follow after update ``number`` (from 1).

        The actor's copy stays as it is until the actor moves.
        """
        tau = self.config.tau
        if tau == 0 and number % self.config.copy_every:
            return
        torch._foreach_lerp_(self._slow_critics, self._fast_critics, tau or 1.0)
        if number > self.config.warmup:
            torch._foreach_lerp_(self._slow_actor, self._fast_actor, tau or 1.0)

    # --- what a checkpoint holds --------------------------------------------------------------

    def _parts(self) -> dict[str, nn.Module]:
        return {
            "critics": self.critics,
            "target_critics": self.target_critics,
            "target_actor": self.target_actor,
        }

    def tensors(self) -> dict[str, Any]:
        """As of any learner, with critics and slow copies."""
        own = {k: m.state_dict() for k, m in self._parts().items()}
        return {**super().tensors(), **own}

    def restore(self, state: Mapping[str, Any]) -> None:
        """As of any learner, with critics and slow copies."""
        super().restore(state)
        for name, module in self._parts().items():
            try:
                module.load_state_dict(state[name])
            except (KeyError, RuntimeError) as e:
                raise SeqrlError(f"the {name} saved do not fit: {e}") from e


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Inside, a module's parameters get no gradients."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
