"""Which sequence mixers exist: one literal row each, so that listing them imports no torch."""

from __future__ import annotations

from typing import NamedTuple


class MixerRow(NamedTuple):
    """What ``seqrl list mixers`` shows."""

    name: str
    path: str
    """``module:Class``."""
    memory: str
    """What a state holds, for acting."""
    what: str


ROWS: tuple[MixerRow, ...] = (
    MixerRow(
        "aaren",
        "seqrl.layers.aaren:Aaren",
        "fixed size",
        "attention with one learned query, as a recurrence (Feng et al. 2024)",
    ),
    MixerRow(
        "attention",
        "seqrl.layers.attention:AttentionMixer",
        "window of tokens",
        "causal self-attention; eviction=window, window+first or tova",
    ),
    MixerRow(
        "conv",
        "seqrl.layers.conv:ThreeFilterConv",
        "last few tokens",
        "one causal filter for each kind of token (Decision ConvFormer, Kim et al. 2024)",
    ),
    MixerRow("gru", "seqrl.layers.rnn:GRUMixer", "fixed size", "gated recurrent unit"),
    MixerRow("lstm", "seqrl.layers.rnn:LSTMMixer", "fixed size", "long short-term memory"),
    MixerRow(
        "mlstm",
        "seqrl.layers.mlstm:MLSTM",
        "fixed size",
        "matrix memory with exponential gates (xLSTM, Beck et al. 2024)",
    ),
    MixerRow(
        "s4",
        "seqrl.layers.s4:S4",
        "fixed size",
        "state space with a diagonal plus low-rank matrix (Gu et al. 2022)",
    ),
    MixerRow(
        "s4d",
        "seqrl.layers.s4:S4D",
        "fixed size",
        "diagonal state space; init=legs, lin or inv (Gu et al. 2022)",
    ),
    MixerRow(
        "s6",
        "seqrl.layers.s6:S6",
        "fixed size",
        "selective state space (Mamba, Gu and Dao 2023)",
    ),
    MixerRow(
        "slstm",
        "seqrl.layers.slstm:SLSTM",
        "fixed size",
        "scalar memory with exponential gates (xLSTM, Beck et al. 2024)",
    ),
    MixerRow(
        "trxl",
        "seqrl.layers.trxl:TrXLMixer",
        "window of tokens",
        "attention with relative positions over cached states (Dai et al. 2019)",
    ),
)
