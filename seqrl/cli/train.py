"""``seqrl train``: resolve the settings, train one run or several seeds, say what came of it."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrl.cli import output, reporting
from seqrl.cli.flags import Flag
from seqrl.cli.settings import Request, find_agent, read_request, train_flag_set
from seqrl.errors import RunFailed, SeqrlError

if TYPE_CHECKING:
    from seqrl.experiment import ExperimentConfig, Run

DRY_RUN = Flag("dry-run", bool, "Print settings, data and size; train nothing.", group="output")


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl train --help`` and ``seqrl train AGENT --help``."""
    from seqrl.datasets.catalog import CATALOGUE

    agent = find_agent("train", argv, [DRY_RUN])
    data, entry = next(iter(CATALOGUE.items()))
    name = agent or next(iter(entry.presets))
    return output.help_text(
        train_flag_set("train", agent, [DRY_RUN]),
        "Train an agent and evaluate it. Settings: class default < --preset < --config FILE < "
        f"flags. Without --data the data are {data}; a dataset may bring a preset of its own "
        "(--preset none to do without).",
        examples=[
            f"seqrl train {name}",
            f"seqrl train {name} --data {data} --steps 5k --seeds 0-2 --out runs/three",
            f"seqrl train {name} --data minari:ID --best 10 --lr 3e-4 --agent.n-layer 2",
            "seqrl train --preset NAME --data d4rl:FILE.hdf5 --dry-run",
            "torchrun --nproc-per-node 2 -m seqrl train …",
        ],
    )


def main(argv: Sequence[str]) -> int:
    """Train as asked."""
    request = read_request("train", argv, [DRY_RUN])
    if request.parsed.get("out") and not request.parsed.get("dry_run"):
        _check_free(Path(request.parsed.get("out")), request.parsed.get("seeds"))
    from seqrl.experiment import ExperimentConfig

    config = ExperimentConfig.from_json(request.layered.settings)
    if request.parsed.get("dry_run"):
        return _dry_run(request, config)
    seeds = request.parsed.get("seeds")
    if seeds is None:
        runs, failed = (
            [_train(request, config, request.parsed.get("out"), ["seqrl", *sys.argv[1:]])],
            0,
        )
    else:
        runs, failed = _train_seeds(request, config, seeds)
    _report(request, runs)
    return 1 if failed else 0


def _check_free(out: Path, seeds: Sequence[int] | None) -> None:
    """Refuse a folder with something in it before the seconds that loading torch takes."""
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes the first makes the folder, maybe already
    for folder in [out] if seeds is None else [out / f"s{seed}" for seed in seeds]:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SeqrlError(
                f"run folder exists: {folder}",
                hint=f"seqrl resume {reporting.shown(folder)}, or another --out",
            )


def _train(
    request: Request,
    config: ExperimentConfig,
    out: str | Path | None,
    command: Sequence[str],
    data: Any = None,
) -> Run:
    from seqrl.distributed import Processes
    from seqrl.experiment import Watch, run_experiment

    quiet = bool(request.parsed.get("quiet"))
    silent = quiet or not Processes.from_env().first
    watch = Watch(
        stream=None if silent else sys.stderr,
        started=None if silent else reporting.starting(),
        episodes=reporting.episode_bar(silent),
    )
    name = request.parsed.get("name")
    return run_experiment(config, out=out, name=name, data=data, command=command, watch=watch)


def _train_seeds(
    request: Request, config: ExperimentConfig, seeds: Sequence[int]
) -> tuple[list[Run], int]:
    """One run a seed, one after the other; a run that breaks down does not stop the others."""
    from seqrl.datasets.catalog import load_sources

    data = load_sources(list(config.data), config.load)
    out = request.parsed.get("out")
    runs, failed = [], 0
    for seed in seeds:
        own = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=seed))
        where = Path(out) / f"s{seed}" if out else None
        try:
            runs.append(_train(request, own, where, ["seqrl", *sys.argv[1:]], data))
        except RunFailed as e:
            failed += 1
            output.error(f"seed {seed}: {e.message}", e.hint)
            continue
        if not request.parsed.get("json") and not request.parsed.get("quiet"):
            output.log(reporting.done_lines(runs[-1])[0])
    return runs, failed


def _report(request: Request, runs: Sequence[Run]) -> None:
    from seqrl.distributed import Processes

    if not Processes.from_env().first:
        return
    if request.parsed.get("json"):
        from seqrl.eval_report import across_seeds

        single = [run for run in runs if run.tasks is None]
        finals = [run.final.to_json() for run in single if run.final is not None]
        over = across_seeds(finals) if len(finals) == len(runs) > 1 else None
        output.print_json({"runs": [run.summary() for run in runs], "across_seeds": over})
    elif "seeds" in request.parsed and runs:
        output.out(reporting.seeds_table(runs))
        output.out(f"runs:  {' '.join(reporting.shown(run.dir) for run in runs)}")
    else:
        for run in runs:
            for line in reporting.done_lines(run):
                output.out(line)


def _dry_run(request: Request, config: ExperimentConfig) -> int:
    from seqrl.datasets.inspection import format_report, inspect
    from seqrl.devices import resolve_device
    from seqrl.experiment import prepare

    ready = prepare(config)
    device = resolve_device(config.train.device).type
    size = sum(p.numel() for p in ready.agent.parameters() if p.requires_grad)
    if request.parsed.get("json"):
        facts = [inspect(d) for d in ready.data]
        output.print_json({"config": config.to_json(), "parameters": size, "data": facts})
        return 0
    for line in reporting.describe(ready, reporting.device_text(device)):
        output.out(line)
    for d in ready.data:
        output.out()
        output.out(format_report(inspect(d)))
    output.out()
    output.out("nothing was trained (--dry-run)")
    return 0
