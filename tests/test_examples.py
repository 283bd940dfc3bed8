"""The worked example of docs/adding-an-agent.md keeps the promises of the battery."""

import pytest

from examples.causal_conv import CausalConv
from seqrl.testing.battery import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__.removeprefix("check_"))
def test_the_worked_example_passes_the_battery(check) -> None:
    check(CausalConv, "discrete")


def test_the_worked_example_takes_continuous_actions() -> None:
    for check in CHECKS[:5]:
        check(CausalConv, "continuous")
