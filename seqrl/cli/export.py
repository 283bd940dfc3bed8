"""``seqrl export``: a trained policy as a file that runs with torch alone."""

from __future__ import annotations

from collections.abc import Sequence

from seqrl.cli import output, reporting
from seqrl.cli.flags import Flag, FlagSet, Positional
from seqrl.units import grouped

_FLAGS = FlagSet(
    "export",
    [
        Flag("checkpoint", str, "last, best, a step or a path.", "last", group="policy"),
        Flag("acting", str, "Rule beyond the trained context; the policy's own by default.",
             metavar="RULE", group="policy"),
        Flag("batch", int, "Environments the file steps at once.", 1, group="policy"),
        Flag("task", int, "Which of the policy's tasks.", 0, group="policy"),
        Flag("trust", bool, "Import agent code that the checkpoint names.", group="policy"),
        Flag("json", bool, "The description as one JSON object on standard output.",
             group="output"),
    ],
    [
        Positional("RUN", "run folder, checkpoint, or anything inside a run"),
        Positional("FILE", "file to write, .pt2; its description goes beside it as .json"),
    ],
)  # fmt: skip


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl export --help``."""
    return output.help_text(
        _FLAGS,
        "Write one acting step (weights, normalisation, memory, greedy actions) as a graph that "
        "torch.export.load reads anywhere, without seqrl. Memory goes in and comes out as named "
        "tensors, which the description lists.",
        examples=[
            "seqrl export runs/DATA/AGENT/RUN policy.pt2",
            "seqrl export runs/DATA/AGENT/RUN policy.pt2 --checkpoint best --acting stream",
        ],
    )


def main(argv: Sequence[str]) -> int:
    """Export and say what was written."""
    parsed = _FLAGS.parse(argv)
    from seqrl.export import export_policy

    out = parsed.get("file")
    described = export_policy(
        parsed.get("run"),
        out,
        parsed.get("checkpoint", "last"),
        acting=parsed.get("acting"),
        rows=parsed.get("batch", 1),
        task=parsed.get("task", 0),
        trust=bool(parsed.get("trust")),
    )
    if parsed.get("json"):
        output.print_json(described)
        return 0
    numbers = sum(_size(t["shape"]) for t in described["state"])
    output.out(
        f"{described['agent']} at step {grouped(described['step'])}, acting by "
        f"{described['acting']}, batch {described['batch']}: "
        f"{len(described['inputs'])} inputs, {grouped(numbers)} numbers of state"
    )
    output.out(f"written {reporting.shown(out)} and its description beside it (.json)")
    return 0


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
