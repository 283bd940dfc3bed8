"""Action discretisers decode to where they encoded, and say no to nonsense."""

import math

import pytest
import torch

from seqrl.datasets.tokens import MuLawBins, TripletLayout, UniformBins
from seqrl.errors import SeqrlError


def test_uniform_bins_are_equal_and_decode_to_their_centres() -> None:
    bins = UniformBins((-1.0, 0.0), (1.0, 4.0), 256)
    index = torch.arange(256).unsqueeze(1).expand(-1, 2)
    assert torch.equal(bins.encode(bins.decode(index)), index)
    actions = torch.rand(1000, 2) * torch.tensor([2.0, 4.0]) - torch.tensor([1.0, 0.0])
    error = (bins.decode(bins.encode(actions)) - actions).abs().max(0).values
    assert float(error[0]) <= 1 / 256 + 1e-6
    assert float(error[1]) <= 2 / 256 + 1e-6


def test_uniform_bins_send_values_outside_to_the_ends() -> None:
    bins = UniformBins((-1.0,), (1.0,), 8)
    assert bins.encode(torch.tensor([[-5.0], [1.0], [7.0]])).flatten().tolist() == [0, 7, 7]


def test_mu_law_bins_are_finer_near_zero_and_round_trip() -> None:
    bins = MuLawBins()
    index = torch.arange(1024)
    values = bins.decode(index)
    assert torch.equal(bins.encode(values), index)
    assert bool((values[1:] > values[:-1]).all())
    gaps = values[1:] - values[:-1]
    assert float(gaps[512]) < float(gaps[-1]) / 100
    assert bins.encode(torch.tensor([0.0])).item() == 512
    # Gato's formula at one point: x = 1 compands to log(101) / log(25601).
    want = (math.log(101) / math.log(256 * 100 + 1) + 1) / 2 * 1024
    assert bins.encode(torch.tensor([1.0])).item() == int(want)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UniformBins((0.0,), (0.0,)),
        lambda: UniformBins((0.0, 0.0), (1.0,)),
        lambda: UniformBins((0.0,), (1.0,), 1),
        lambda: MuLawBins(mu=0.0),
        lambda: TripletLayout(("rtg", "action")),
    ],
)
def test_nonsense_is_refused(make) -> None:
    with pytest.raises(SeqrlError):
        make()
