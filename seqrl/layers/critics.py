"""Critics: networks that value an action in a state, without memory.

Shapes: n rows, S observation dimension, A action dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqrl.errors import SeqrlError, did_you_mean

HIDDEN = 256


class MLPCritic(nn.Module):
    """Two hidden layers of 256 units over state, return-to-go (optional) and action."""

    def __init__(self, observation: int, action: int, see_returns: bool = False):
        super().__init__()
        self.observation, self.see_returns = observation, see_returns
        self.hidden1 = nn.Linear(observation + int(see_returns) + action, HIDDEN)
        self.hidden2 = nn.Linear(HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, 1)

    def forward(self, inputs: Tensor, action: Tensor) -> Tensor:
        """Values ``[n]`` of actions ``[n, A]`` at ``inputs [n, S + 1]`` (last: return-to-go)."""
        seen = inputs if self.see_returns else inputs[..., : self.observation]
        x = F.relu(self.hidden1(torch.cat([seen, action], -1)))
        return self.out(F.relu(self.hidden2(x))).squeeze(-1)


class ResNetCritic(nn.Module):
    """State and action through residual layers of their own, then joined (as in DS4's code).

    ``s <- W s; s <- s + W2 GELU(W1 s)`` (W1 to twice the width), ``a <- W a; a <- a + W GELU(a)``,
    ``x <- tanh(W [s, a]); x <- x + tanh(W x)``, value ``w x``. Sizes are those of the inputs.
    """

    def __init__(self, observation: int, action: int, see_returns: bool = False):
        super().__init__()
        s, both = observation + int(see_returns), observation + int(see_returns) + action
        self.observation, self.see_returns = observation, see_returns
        self.state_in, self.action_in = nn.Linear(s, s), nn.Linear(action, action)
        self.state_up, self.state_down = nn.Linear(s, 2 * s), nn.Linear(2 * s, s)
        self.action_mid = nn.Linear(action, action)
        self.join, self.mid = nn.Linear(both, both), nn.Linear(both, both)
        self.out = nn.Linear(both, 1)

    def forward(self, inputs: Tensor, action: Tensor) -> Tensor:
        """Values ``[n]`` of actions ``[n, A]`` at ``inputs [n, S + 1]`` (last: return-to-go)."""
        s = self.state_in(inputs if self.see_returns else inputs[..., : self.observation])
        s = s + self.state_down(F.gelu(self.state_up(s)))
        a = self.action_in(action)
        a = a + self.action_mid(F.gelu(a))
        x = torch.tanh(self.join(torch.cat([s, a], -1)))
        x = x + torch.tanh(self.mid(x))
        return self.out(x).squeeze(-1)


CRITICS: dict[str, type[nn.Module]] = {"mlp": MLPCritic, "ds4_resnet": ResNetCritic}


def build_critic(kind: str, observation: int, action: int, see_returns: bool) -> nn.Module:
    """A critic by name.

    Raises:
        SeqrlError: no such critic.
    """
    if kind not in CRITICS:
        hint = did_you_mean(kind, CRITICS, f"critics: {', '.join(CRITICS)}")
        raise SeqrlError(f"no critic '{kind}'", hint=hint)
    return CRITICS[kind](observation, action, see_returns)
