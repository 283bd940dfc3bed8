"""``seqrl list``: agents, mixers, environments, datasets, presets, suites, runs, one table each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seqrl.cli import output
from seqrl.cli.flags import Flag, FlagSet, Positional
from seqrl.errors import SeqrlError, did_you_mean
from seqrl.units import grouped

Rows = list[dict[str, Any]]


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl list --help``."""
    return output.help_text(
        _flags(),
        "What exists: agents, sequence mixers, environments, datasets (built in, and in the local "
        "Minari store), presets, benchmark suites, and the runs under a folder.",
        examples=["seqrl list agents", "seqrl list presets --json", "seqrl list runs runs/hopper"],
    )


def _flags() -> FlagSet:
    kinds = "|".join(TABLES)
    return FlagSet(
        "list",
        [Flag("json", bool, "One JSON object on standard output.")],
        [
            Positional("WHAT", f"{kinds}; all but runs when missing", required=False),
            Positional("FOLDER", "where to look for runs (default: runs)", required=False),
        ],
    )


def main(argv: Sequence[str]) -> int:
    """Print one table, or all of them."""
    parsed = _flags().parse(argv)
    what, folder = parsed.get("what"), parsed.get("folder")
    if what is not None and what not in TABLES:
        raise SeqrlError(
            f"there is no list of '{what}'",
            hint=did_you_mean(what, TABLES, f"lists: {' '.join(TABLES)}"),
        )
    if folder is not None and what != "runs":
        raise SeqrlError(f"'seqrl list {what}' takes no folder", hint=f"seqrl list {what}")
    chosen = [what] if what else [k for k in TABLES if k != "runs"]
    rows = {k: runs(folder or "runs") if k == "runs" else TABLES[k]() for k in chosen}
    if parsed.get("json"):
        output.print_json(rows)
        return 0
    output.out("\n\n".join(_table(k, rows[k], folder or "runs") for k in chosen))
    return 0


def _table(what: str, rows: Rows, folder: str) -> str:
    if not rows:
        return f"no runs under {folder}" if what == "runs" else f"no {what}"
    hidden = ("source",)
    headers = [h for h in rows[0] if h not in hidden]
    cells = [["-" if r.get(h) is None else r[h] for h in headers] for r in rows]
    names = ["PARAMS*" if h == "params" else h.upper() for h in headers]
    return f"{output.table(names, cells)}\n{_FOOTNOTES.get(what, '')}".rstrip()


def agents() -> Rows:
    """Registered agents, from the registry's literal rows."""
    from seqrl.agents.registry import ROWS

    short = {"continuous": "cont", "discrete": "disc", "multidiscrete": "multi"}
    return [
        {
            "name": r.name,
            "actions": ", ".join(short.get(a, a) for a in r.actions),
            "acting": "|".join(dict.fromkeys(a.partition(":")[0] for a in r.acting)),
            "params": f"{r.parameters:.2f}M",
            "paper": r.paper,
        }
        for r in ROWS
    ]


def mixers() -> Rows:
    """Sequence layers that an agent's ``mixer`` field may name."""
    from seqrl.layers.shelf import ROWS

    return [{"name": r.name, "memory": r.memory, "what": r.what} for r in ROWS]


def envs() -> Rows:
    """Environments of this package, then Gymnasium's own by family, newest versions only."""
    from seqrl.envs import ENVIRONMENTS

    rows: Rows = [{"id": e.id, "what": e.summary} for e in ENVIRONMENTS]
    return rows + _gymnasium_families()


def _gymnasium_families() -> Rows:
    import gymnasium

    families: dict[str, dict[str, str]] = {}
    for env_id, spec in gymnasium.registry.items():
        module = str(spec.entry_point).partition(":")[0]
        if not module.startswith("gymnasium.envs.") or "/" in env_id:
            continue
        family = module.split(".")[2]
        base = re.sub(r"-v\d+$", "", env_id)
        newest = families.setdefault(family, {})
        if _version(env_id) >= _version(newest.get(base, "")):
            newest[base] = env_id
    return [
        {"id": f"({family})", "what": " ".join(ids.values())} for family, ids in families.items()
    ]


def _version(env_id: str) -> int:
    match = re.search(r"-v(\d+)$", env_id)
    return int(match[1]) if match else -1


def datasets() -> Rows:
    """Built-in datasets by short name, and what the local Minari store holds."""
    from seqrl.datasets.catalog import CATALOGUE

    rows: Rows = [
        {"name": name, "source": e.uri, "description": e.description}
        for name, e in CATALOGUE.items()
    ]
    return rows + _minari_rows()


def _minari_rows() -> Rows:
    from seqrl.datasets.minari_store import list_local

    return [
        {
            "name": f"minari:{d.id}",
            "source": "local store",
            "description": d.problem
            or f"{d.env_id}, {grouped(d.episodes)} episodes, {grouped(d.steps)} steps",
        }
        for d in list_local()
    ]


def presets() -> Rows:
    """Published and tested settings."""
    from seqrl import presets as store

    return [
        {
            "name": p.name,
            # Arguments would leave no room for the description; the preset's command has them.
            "data": "yours" if p.data is None else " ".join(d.partition("?")[0] for d in p.data),
            "description": p.description,
        }
        for p in map(store.load, store.names())
    ]


def suites() -> Rows:
    """Benchmark suites."""
    from seqrl.bench import suite as store

    return [
        {"name": s.name, "rows": len(s.rows), "entrants": len(s.entrants()), "what": s.title}
        for s in map(store.load, store.names())
    ]


def runs(folder: str) -> Rows:
    """Run folders under ``folder``, oldest first."""
    from seqrl.runfolder import RunFolder

    if not Path(folder).is_dir():
        if folder == "runs":
            return []
        raise SeqrlError(f"no folder '{folder}'", hint="seqrl list runs FOLDER")
    found = []
    for path in sorted(Path(folder).rglob("run.json")):
        try:
            record = RunFolder(path.parent).read()
        except SeqrlError as e:
            output.log(f"warning: {e.message}")
            continue
        found.append((str(record.get("started")), _run_row(path.parent, record)))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


def _run_row(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    summary = record.get("summary") or {}
    final, mean = summary.get("final"), summary.get("mean_normalized")
    result = _result(final[-1]) if final else None
    if mean is not None:
        result = f"mean normalised {mean:.1f} ({len(summary['tasks'])} tasks)"
    config = record.get("config") or {}
    return {
        "run": str(folder),
        "agent": config.get("agent"),
        "status": record.get("status"),
        "step": record.get("step"),
        "final": result,
    }


def _result(entry: dict[str, Any]) -> str:
    """The result at the last-listed target in a few words."""
    if entry.get("success"):
        return f"success {entry['success']['rate']:.2f}"
    if entry.get("normalized"):
        return f"normalised {entry['normalized']['mean']:.1f}"
    return f"return {entry['return']['mean']:.4g}"


TABLES: dict[str, Callable[..., Rows]] = {
    "agents": agents,
    "mixers": mixers,
    "envs": envs,
    "datasets": datasets,
    "presets": presets,
    "suites": suites,
    "runs": runs,
}

_FOOTNOTES = {
    "agents": "* default config.  Train one:  seqrl train AGENT --data DATASET",
    "mixers": "Use one:  seqrl train dt --agent.mixer NAME[:option=value,...]",
    "envs": "Any Gymnasium environment works by its id, those of other packages as module:EnvId.",
    "datasets": "Other sources: minari:ID d4rl:FILE.hdf5 npz:FILE.npz cache:FOLDER oracle:ENV?k=v "
    "random:ENV?k=v",
    "suites": "Run one:  seqrl bench NAME [--dry-run]",
    "presets": "Use one:  seqrl train --preset NAME [--data URI]",
}
