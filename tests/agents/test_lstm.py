"""What the recurrent agent has beyond the battery: where its memory starts."""

from typing import Literal

import pytest
import torch

from seqrl.agents.lstm import RecurrentAgent
from seqrl.testing.battery import build, tiny_data


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_forget_bias_keeps_more_from_step_to_step(cell: Literal["lstm", "gru"]) -> None:
    data, kept = tiny_data("continuous"), []
    for bias in (0.0, 5.0):
        torch.manual_seed(0)
        agent = build(RecurrentAgent, data, cell=cell, n_layer=2, forget_bias=bias).eval()
        width = agent.config.width
        parts = torch.ones(2, 1, width)
        state = (parts, parts) if cell == "lstm" else parts
        after = agent.cell(torch.zeros(1, 1, width), state)[1]
        memory = after[1] if cell == "lstm" else after
        kept.append(float(memory.mean().detach()))
    assert kept[0] < 0.75
    assert kept[1] > 0.95
