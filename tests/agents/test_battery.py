"""Every registered agent keeps every promise of the shared battery."""

import pytest

from seqrl.agents import registry
from seqrl.testing.battery import CHECKS, KINDS, serves


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__.removeprefix("check_"))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", registry.names())
def test_battery(name: str, kind: str, check) -> None:
    cls = registry.agent_class(name)
    row = registry.row(name)
    if serves(cls, kind):
        check(cls, kind)
    else:
        # An agent may refuse a kind of action only if its row says so.
        assert ("continuous" if kind == "continuous" else "discrete") not in row.actions
