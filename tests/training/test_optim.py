"""Schedule, clipping, groups and weight averages are what they say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_agent import tiny
from torch import nn

from seqrl.errors import SeqrlError
from seqrl.optim import (
    OptimConfig,
    WeightAverage,
    build_optimizer,
    clip_gradients,
    describe_extension,
    load_optimizer,
    lr_factor,
    set_learning_rate,
)

CPU = torch.device("cpu")


def test_warm_up_equals_the_published_rule() -> None:
    c = OptimConfig(warmup_steps=10_000)
    published = torch.optim.lr_scheduler.LambdaLR(
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0),
        lambda steps: min((steps + 1) / 10_000, 1),
    )
    rule: Any = published.lr_lambdas[0]
    for u in (0, 1, 4999, 9998, 9999, 10_000, 50_000):
        assert lr_factor(u, c, 100_000) == rule(u)
    assert lr_factor(0, c, 100_000) == 1 / 10_000
    assert lr_factor(9999, c, 100_000) == 1.0


def test_cosine_and_linear_fall_from_one_to_their_floor_and_stay_there() -> None:
    for schedule in ("cosine", "linear"):
        c = OptimConfig(warmup_steps=10, schedule=schedule, min_lr_ratio=0.1)  # type: ignore[arg-type]
        values = [lr_factor(u, c, 110) for u in range(10, 130)]
        assert values[0] == 1.0
        assert values == sorted(values, reverse=True)
        assert values[50] == pytest.approx(0.5)
        assert values[-20:] == [0.1] * 20
    c = OptimConfig(schedule="cosine", schedule_steps=50)
    assert lr_factor(25, c, 1000) == pytest.approx(0.5)
    assert lr_factor(40, c, 1000) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.8)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lr": 0.0}, "optim.lr is 0.0, must be above 0"),
        ({"lr": math.nan}, "optim.lr is nan, must be above 0"),
        ({"betas": (0.9, 1.0)}, "must be two numbers in"),
        ({"weight_decay": -1.0}, "optim.weight_decay is -1.0, must be at least 0"),
        ({"warmup_steps": -1}, "optim.warmup_steps is -1"),
        ({"schedule": "step"}, "must be one of constant, cosine, linear"),
        ({"min_lr_ratio": 1.5}, r"must be in \[0, 1\]"),
        ({"grad_clip": -0.1}, "optim.grad_clip is -0.1"),
        ({"accumulation": 0}, "optim.accumulation is 0, must be at least 1"),
        ({"ema": 1.0}, r"optim.ema is 1.0, must be in \(0, 1\)"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_range(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(SeqrlError, match=said) as error:
        OptimConfig(**fields)
    assert "--" in (error.value.hint or "")


def test_extending_a_run_says_what_the_schedule_does() -> None:
    assert "stays 1.0e-04" in describe_extension(OptimConfig(), 10, 10, 20)
    said = describe_extension(OptimConfig(schedule="linear"), 10, 10, 20)
    assert "recomputed for 20 steps instead of 10" in said
    assert "5.0e-05" in said
    fixed = OptimConfig(schedule="cosine", schedule_steps=10)
    assert "still ends at step 10" in describe_extension(fixed, 10, 10, 20)


def test_groups_keep_their_own_decay_and_rate() -> None:
    agent = tiny()
    optimizer = build_optimizer(agent.parameter_groups(), OptimConfig(weight_decay=0.3), CPU)
    set_learning_rate(optimizer, 0.1)
    rest, head = optimizer.param_groups
    assert (rest["weight_decay"], head["weight_decay"]) == (0.3, 0.0)
    assert (rest["lr"], head["lr"]) == (0.1, 0.2)
    assert rest["fused"]
    with pytest.raises(SeqrlError, match="no parameters to train"):
        build_optimizer([{"params": []}], OptimConfig(), CPU)


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_clipping_equals_the_library_s(limit: float) -> None:
    shapes = [(4, 3), (7,), (2, 2, 2)]
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.zeros(s)) for s in shapes]
    theirs = [nn.Parameter(torch.zeros(s)) for s in shapes]
    for a, b in zip(ours, theirs, strict=True):
        a.grad = torch.randn_like(a)
        b.grad = a.grad.clone()
    unused = nn.Parameter(torch.zeros(1))
    norm = clip_gradients([*ours, unused], limit)
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs, limit)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert unused.grad is None


def test_the_weight_average_follows_its_formula_and_gives_the_weights_back() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    average = WeightAverage(module, 0.9)
    expected = module.weight.detach().clone()
    for n in range(1, 150):
        with torch.no_grad():
            module.weight.add_(0.1 * torch.randn_like(module.weight))
        average.update(n)
        d = min(0.9, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * module.weight.detach()
    torch.testing.assert_close(average.average[0], expected)
    raw = module.weight.detach().clone()
    with average.applied():
        assert torch.equal(module.weight, average.average[0])
    assert torch.equal(module.weight, raw)
    assert len(average.average) == 1, "frozen weights are not averaged"


def test_an_optimiser_state_of_other_parameters_is_refused() -> None:
    mine = build_optimizer(tiny().parameter_groups(), OptimConfig(), CPU)
    wide = tiny(width=8)
    other = build_optimizer(wide.parameter_groups(), OptimConfig(), CPU)
    for p in other.param_groups[0]["params"]:
        p.grad = torch.zeros_like(p)
    other.step()
    for state in (other.state_dict(), {}, {"state": 3, "param_groups": []}):
        with pytest.raises(SeqrlError, match="does not fit"):
            load_optimizer(mine, state)


def test_settings_of_now_win_over_saved_ones() -> None:
    agent = tiny()
    old = build_optimizer(agent.parameter_groups(), OptimConfig(weight_decay=0.5), CPU)
    new = build_optimizer(agent.parameter_groups(), OptimConfig(weight_decay=0.1), CPU)
    load_optimizer(new, old.state_dict())
    assert new.param_groups[0]["weight_decay"] == 0.1
    assert new.param_groups[1]["lr_scale"] == 2.0
