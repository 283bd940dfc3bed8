"""The sequence mixers: one interface, and how a config's text becomes one (see ``shelf.py``).

A mixer carries information along time, causally: output t depends on inputs 0..t alone. The same
weights serve a whole sequence at once (``forward``), a sequence in pieces (``forward`` with a
carried state) and one token at a time (``step``).

Shapes: B rows, L tokens, D width. A state is a dict, tuple or list of tensors with leading
dimension B, so that acting can keep, pick and reset single rows.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from seqrl.errors import SeqrlError, did_you_mean
from seqrl.layers.shelf import ROWS
from seqrl.layers.state import select_rows

Readers = slice | Tensor
"""Tokens whose output is wanted: a slice of the sequence, or positions ``[Q]`` or ``[B, Q]``."""

MIXERS: dict[str, str] = {r.name: r.path for r in ROWS}
"""Name to ``module:Class``."""


@dataclass(frozen=True)
class Place:
    """Where in a stack a mixer stands: what it may want to know when it is built."""

    width: int
    """D of its input and output."""
    heads: int = 1
    window: int = 60
    """Most tokens an attention cache keeps (mixers with a fixed-size state ignore it)."""
    period: int = 3
    """Tokens of one environment step; token p of a sequence has type ``p % period``."""
    layer: int = 0
    layers: int = 1
    dropout: float = 0.0
    """On attention weights, where there are any."""
    positions: str = "none"
    """``relative`` where the mixer itself must tell near from far."""


class Mixer(nn.Module, ABC):
    """Base class of all mixers."""

    unlimited: ClassVar[bool] = True
    """Whether the state remembers without limit; False for a window of past tokens."""
    tolerance: ClassVar[dict[str, float]] = {
        "causality": 0.0,
        "step": 1e-5,
        "chunk": 1e-5,
        "step64": 1e-10,
    }
    """Largest differences in the shared tests, relative to the largest output: what an input may
    change of earlier outputs, forward against step and pieces in float32, and both in float64."""

    @classmethod
    @abstractmethod
    def for_stack(cls, place: Place, **options: Any) -> Mixer:
        """A mixer for a place in a stack; ``options`` are the class's own arguments."""

    @abstractmethod
    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Mix a sequence.

        Args:
            x: ``[B, L, D]``.
            state: what came before, from ``initial_state`` or an earlier call. None means a fresh
                start whose end nobody wants to know (training): then no state is computed.

        Returns:
            ``[B, L, D]``, and the state after the last token (None for None).
        """

    def read(self, x: Tensor, readers: Readers, state: Any = None) -> tuple[Tensor, Any]:
        """As ``forward``, with the outputs ``[B, Q, D]`` of some tokens alone.

        Mixers that save work by it say how; the state is the one after all tokens.
        """
        y, state = self(x, state)
        return take_tokens(y, readers), state

    @abstractmethod
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix one more token ``x [B, D]``: output ``[B, D]`` and the new state.

        Numerically what ``forward`` gives at that token. The memory of the state that is handed
        in may be written to.
        """

    @abstractmethod
    def initial_state(self, rows: int) -> Any:
        """The state before the first token, for ``rows`` rows, on the parameters' device."""

    def reset(self, state: Any, rows: Tensor) -> Any:
        """``state`` with the rows where ``rows [B] bool`` is set made fresh, others untouched."""
        return select_rows(rows, self.initial_state(int(rows.shape[0])), state)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters that need other optimiser settings than the rest (no decay, a lower rate).

        Each a dict with ``params`` and ``weight_decay`` and/or ``lr_scale`` or ``lr_max``;
        parameters in none of them are the agent's to group.
        """
        return []


def take_tokens(x: Tensor, readers: Readers) -> Tensor:
    """Tokens ``[B, Q, D]`` of ``x [B, L, D]``; a view for a slice."""
    if isinstance(readers, slice) or readers.dim() == 1:
        return x[:, readers]
    return x.gather(1, readers.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def mixer_class(name: str) -> type[Mixer]:
    """The class of a mixer by its name in the table.

    Raises:
        SeqrlError: no such mixer, with the nearest names.
    """
    if name not in MIXERS:
        raise SeqrlError(
            f"no mixer '{name}'", hint=did_you_mean(name, sorted(MIXERS), " ".join(sorted(MIXERS)))
        )
    module, _, cls = MIXERS[name].partition(":")
    found: type[Mixer] = getattr(importlib.import_module(module), cls)
    return found


def build_mixer(text: str, place: Place) -> Mixer:
    """A mixer from ``name`` or ``name:option=value,option=value``, as a config field gives it.

    >>> type(build_mixer("gru", Place(8))).__name__
    'GRUMixer'

    Raises:
        SeqrlError: unknown mixer, option or value.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, eq, value = item.partition("=")
        if not eq:
            raise SeqrlError(
                f"mixer '{text}': '{item}' is no option=value", hint=f"as in {name}:dropout=0.1"
            )
        options[key.strip()] = _value(value.strip())
    try:
        return mixer_class(name).for_stack(place, **options)
    except TypeError as e:
        if not options:
            raise
        raise SeqrlError(f"mixer '{text}': {e}") from e


def build_mixers(texts: tuple[str, ...], place: Place, layers: int) -> list[Mixer]:
    """One mixer a layer, from one text for all or one each (last layer last).

    Raises:
        SeqrlError: neither one text nor ``layers``.
    """
    if len(texts) not in (1, layers):
        raise SeqrlError(
            f"mixer names {len(texts)} layers, the agent has {layers}",
            hint="name one mixer for all layers, or one a layer",
        )
    each = texts * layers if len(texts) == 1 else texts
    return [build_mixer(t, replace(place, layer=i, layers=layers)) for i, t in enumerate(each)]


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
