"""Published numbers for which nothing was measured here, with the command that would.

    python benchmarks/published_tables.py locomotion|atari

Read from ``seqrl/bench/published``. A cell stays empty until somebody runs its command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import table
from seqrl import presets
from seqrl.report.published import FOLDER, Published, read

SHARED = {"bc": "bc/gym", "bc-10%": "bc/10"}
"""Published settings that serve several datasets."""


def command(p: Published) -> str:
    """What trains at the published size and evaluates; empty where no preset has it."""
    if p.suite == "atari":
        name = "dt" if p.entrant == "bc" else p.entrant
        preset, data = f"{name}/atari-{p.row}", f"npz:{p.row}.npz --env ALE/{p.row.title()}-v5"
        if p.entrant == "bc":
            data += " --agent.no-return-tokens"
    else:
        preset = f"{p.entrant}/{p.row}"
        data = f"d4rl:{p.row.replace('-', '_')}-v2.hdf5"
    if preset not in presets.names():
        preset = SHARED.get(p.entrant, "")
    return f"`seqrl train --preset {preset} --data {data} --seeds 0-2`" if preset else ""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("suite", choices=["locomotion", "atari"])
    suite = parser.parse_args().suite
    found: dict[tuple[str, str], list[Published]] = {}
    for p in read(FOLDER / f"{suite}.csv"):
        found.setdefault((p.row, p.entrant), []).append(p)
    rows = []
    for (row, entrant), mine in found.items():
        said = []
        for p in mine:
            best = f", best of {p.best_of}" if p.best_of else ""
            value = f"{p.value} {p.spread}".strip()
            said.append(f"{value} ({p.source.split(',')[0]}{best})")
        rows.append([row, entrant, "; ".join(said), "", command(mine[0])])
    print(table(["data", "agent", "published", "measured here", "command"], rows))


if __name__ == "__main__":
    main()
