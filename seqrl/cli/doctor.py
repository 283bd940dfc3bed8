"""``seqrl doctor``: check a run, a dataset, an environment, or the installation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from seqrl.cli import output
from seqrl.cli.data import options_of
from seqrl.cli.flags import Flag, FlagSet, Parsed, Positional
from seqrl.cli.settings import load_flags
from seqrl.errors import CheckFailed

if TYPE_CHECKING:
    from seqrl.doctor import Check

_WHAT = Positional(
    "WHAT", "run folder, dataset or environment; the installation when missing", required=False
)


def _flags() -> FlagSet:
    return FlagSet(
        "doctor",
        [
            Flag("checkpoint", str, "Of a run: last, best, a step or a path.", "last"),
            Flag("trust", bool, "Of a run: import agent code that the checkpoint names."),
            *(f for f in load_flags("of a dataset") if f.name != "env"),
            Flag("json", bool, "One JSON object on standard output.", group="output"),
        ],
        [_WHAT],
    )


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl doctor --help``."""
    return output.help_text(
        _flags(),
        "Check that a run can be loaded, acts as it was trained and can be resumed; that a "
        "dataset is sound; that an environment keeps Gymnasium's contract; or, without an "
        "argument, that the installation works. Exit code 3 when a check fails.",
        examples=[
            "seqrl doctor",
            "seqrl doctor runs/DATA/AGENT/RUN",
            "seqrl doctor npz:my_data.npz",
            "seqrl doctor CartPole-v1",
        ],
    )


def main(argv: Sequence[str]) -> int:
    """Run the checks of what was named."""
    parsed = _flags().parse(argv)
    checks = _checks(parsed)
    failed = sum(c.level == "fail" for c in checks)
    if parsed.get("json"):
        output.print_json({"checks": checks, "failed": failed})
        return 3 if failed else 0
    for c in checks:
        output.out(f"{c.level:<4} {c.text}" + (f"   ({c.hint})" if c.hint else ""))
    if failed:
        raise CheckFailed(f"{failed} of {len(checks)} checks failed", hint=None)
    return 0


def _checks(parsed: Parsed) -> list[Check]:
    from seqrl import doctor

    what = parsed.get("what")
    if what is None:
        return doctor.check_installation()
    if Path(what).exists():
        checkpoint = parsed.get("checkpoint", "last")
        return doctor.check_run(what, checkpoint, trust=bool(parsed.get("trust")))
    if _is_environment(what):
        return doctor.check_environment(what, parsed.get("load.env_kwargs"))
    return doctor.check_dataset([what], options_of(parsed))


def _is_environment(name: str) -> bool:
    """True for a registered id, and for what looks like one and is no dataset."""
    import gymnasium

    import seqrl.envs  # noqa: F401  (registers ours)
    from seqrl.datasets.catalog import SCHEMES
    from seqrl.datasets.minari_store import is_local

    if name in gymnasium.registry:
        return True
    scheme = name.partition(":")[0]
    looks = re.search(r"-v\d+$", name) is not None and scheme not in SCHEMES
    return looks and not is_local(name)
