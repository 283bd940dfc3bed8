"""How far do agents remember? T-Maze, trained on corridors up to one limit, tried on longer ones.

    OMP_NUM_THREADS=1 python benchmarks/tmaze_memory.py --out RESULTS \\
        --cells rate/tmaze-90 rate/tmaze-90-rmt lstm --seeds 0-2 [--max-minutes 20]
    python benchmarks/tmaze_memory.py --out RESULTS --summary

A cell is a name of ``--cells`` and a seed. A name is a preset, an agent with its default settings,
or a key of ``--settings FILE``, a JSON object of settings as ``seqrl.train`` takes them
(``{"dt-90": {"preset": "dt/tmaze-30", "context": 90, "steps": 2000}}``). Every cell is trained on
``--data`` (limits 30, 60 and 90, oracle) whatever its preset names, and its last checkpoint walks
corridors of every length with alternating goals: 0.50 is chance. Lengths of ``--long`` are for
agents that act by a ``stream`` rule, whose cost does not grow with the length.

A finished (cell, length) is one line of ``RESULTS/NAME_sSEED.jsonl`` and is not run again. A cell
that takes longer than ``--max-minutes`` is interrupted and goes on from its checkpoint next time.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import seqrl
from benchmarks.common import machine, table
from seqrl import presets
from seqrl.errors import RunInterrupted, SeqrlError

SUITE = "tmaze"
SOLVED = 0.99


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results")
    parser.add_argument("--cells", nargs="+", default=[], help="presets, agents or --settings keys")
    parser.add_argument("--settings", type=Path, help="JSON file: name to settings")
    parser.add_argument("--seeds", default="0-2", help="0-9 or 0,1,7")
    parser.add_argument("--data", default="tmaze-90", help="what every cell is trained on")
    parser.add_argument("--steps", type=int, help="updates, instead of each cell's own")
    parser.add_argument("--lengths", default="30,90,150,300,600,900")
    parser.add_argument("--long", default="1800,4800,9600", help="for stream rules; '' for none")
    parser.add_argument("--episodes", type=int, default=20, help="per length")
    parser.add_argument("--max-minutes", type=float, help="wall-clock time of one cell")
    parser.add_argument("--summary", action="store_true", help="print the table and stop")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    return parser


def numbers(text: str) -> list[int]:
    """``0-2`` or ``0,1,7`` as numbers."""
    if "-" in text:
        first, _, last = text.partition("-")
        return list(range(int(first), int(last) + 1))
    return [int(t) for t in text.split(",") if t.strip()]


def settings_of(name: str, file: Path | None) -> dict[str, Any]:
    """What ``seqrl.train`` is given for a cell of this name."""
    own = json.loads(file.read_text()) if file is not None else {}
    if name in own:
        return dict(own[name])
    return {"preset": name} if name in presets.names() else {"agent": name}


def record_file(out: Path, name: str, seed: int) -> Path:
    """Where the lines of a cell stand."""
    return out / f"{re.sub('[^0-9A-Za-z.-]+', '.', name)}_s{seed}.jsonl"


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a cell; a last one torn by a crash is left out."""
    lines = []
    for text in file.read_text().splitlines() if file.exists() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


# --- one cell -----------------------------------------------------------------------------------


def train(args: argparse.Namespace, name: str, seed: int) -> Path:
    """Train the cell, or go on with it; its run folder."""
    from seqrl.experiment import resume_experiment
    from seqrl.runfolder import RunFolder

    folder = args.out / "runs" / record_file(args.out, name, seed).stem
    if (folder / "run.json").exists():
        if RunFolder(folder).read().get("status") != "done":
            resume_experiment(folder)
        return folder
    given = settings_of(name, args.settings)
    if args.steps is not None:
        given["steps"] = args.steps
    # Nothing is evaluated on the way: what is asked for is the last checkpoint.
    quiet = {"eval_every": 0, "evaluate": False, "loggers": ["jsonl"]}
    seqrl.train(data=args.data, out=folder, seed=seed, **quiet, **given)
    return folder


def line_of(folder: Path, name: str, seed: int, report: Any, command: str) -> dict[str, Any]:
    """The record of one length."""
    from seqrl.runfolder import RunFolder

    run = RunFolder(folder)
    config, _ = run.config()
    policy = seqrl.load_policy(folder, trust=":" in str(config["agent"]))
    task = policy.agent.tasks[0]
    protocol = report.protocol
    import torch

    return {
        "suite": SUITE,
        "name": name,
        "agent": config["agent"],
        "preset": config.get("preset"),
        "settings": {k: config[k] for k in ("agent_config", "train", "data")},
        "seed": seed,
        "updates": policy.info.get("step"),
        "train_limit": task.env_kwargs.get("limit"),
        "length": report.env["kwargs"]["limit"],
        "success": report.summary[0]["success"]["rate"],
        "episodes": report.summary[0]["n"],
        "acting": protocol.get("rule"),
        "train_seconds": run.read().get("summary", {}).get("seconds"),
        "eval_seconds": report.timing["wall_s"],
        "parameters": sum(p.numel() for p in policy.agent.parameters()),
        "versions": {
            "seqrl": seqrl.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "environment": report.env["version"],
        },
        "machine": machine(),
        "command": command,
    }


def run_cell(args: argparse.Namespace, name: str, seed: int) -> None:
    """Train one cell and append a line for every length that has none yet."""
    import torch

    torch.set_num_threads(1)
    file = record_file(args.out, name, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = train(args, name, seed)
    wanted = numbers(args.lengths)
    wanted += numbers(args.long) if acting_rule(folder).startswith("stream") else []
    done = {line["length"] for line in read_lines(file)}
    words = ["RESULTS" if Path(w).resolve() == args.out else w for w in without_one(sys.argv[1:])]
    command = shlex.join(["python", "benchmarks/tmaze_memory.py", *words])
    for length in wanted:
        if length in done:
            continue
        report = seqrl.evaluate(
            folder,
            targets=[1.0],
            episodes=args.episodes,
            env_kwargs={"limit": length},
            trust=True,
            normaliser="none",
        )
        line = line_of(folder, name, seed, report, command)
        with file.open("a") as f:
            f.write(json.dumps(line) + "\n")


def acting_rule(folder: Path) -> str:
    """The rule a run is evaluated by: its settings' own, or the agent's first."""
    from seqrl.runfolder import RunFolder

    asked = RunFolder(folder).config()[0]["eval"].get("acting")
    return str(asked or seqrl.load_policy(folder, trust=True).agent.acting.rule)


def without_one(words: Sequence[str]) -> list[str]:
    """The arguments but for the hidden ``--one NAME SEED``."""
    if "--one" not in words:
        return list(words)
    at = list(words).index("--one")
    return [*words[:at], *words[at + 3 :]]


# --- all of them --------------------------------------------------------------------------------


def launch(name: str, seed: int, minutes: float | None) -> str:
    """Run a cell in a process of its own; how it ended."""
    words = [sys.executable, __file__, *sys.argv[1:], "--one", name, str(seed)]
    process = subprocess.Popen(words)
    try:
        code = process.wait(None if minutes is None else 60 * minutes)
    except subprocess.TimeoutExpired:
        process.terminate()  # training saves itself and can be resumed
        process.wait()
        return "out of time, goes on next time"
    return "done" if code == 0 else f"failed ({code})"


def complete(args: argparse.Namespace, name: str, seed: int) -> bool:
    """Whether every length of a cell has its line."""
    lines = read_lines(record_file(args.out, name, seed))
    there = {line["length"] for line in lines}
    streams = any(str(line["acting"]).startswith("stream") for line in lines)
    return there >= {*numbers(args.lengths), *(numbers(args.long) if streams else ())}


def summary(out: Path) -> str:
    """Markdown: success by length, mean over the seeds and how many of them solved it."""
    lines = [line for file in sorted(out.glob("*.jsonl")) for line in read_lines(file)]
    if not lines:
        return "no results yet"
    lengths = sorted({line["length"] for line in lines})
    rows = []
    for name in dict.fromkeys(line["name"] for line in lines):
        mine = [line for line in lines if line["name"] == name]
        row = [name, f"{mine[0]['parameters']:,}", str(mine[0]["updates"])]
        seconds = {line["seed"]: line["train_seconds"] for line in mine}
        row.append(f"{np.mean([s for s in seconds.values() if s is not None]):.0f}")
        for length in lengths:
            rates = [line["success"] for line in mine if line["length"] == length]
            solved = sum(r >= SOLVED for r in rates)
            row.append(f"{np.mean(rates):.2f} ({solved}/{len(rates)})" if rates else "")
        rows.append(row)
    header = ["success (solved seeds)", "parameters", "updates", "train s", *map(str, lengths)]
    return table(header, rows)


def main() -> None:
    """Run what is missing, one cell after the other, then print the table."""
    args = arguments().parse_args()
    args.out = args.out.resolve()
    if args.one:
        try:
            run_cell(args, args.one[0], int(args.one[1]))
        except RunInterrupted as e:
            sys.exit(e.message)
        except SeqrlError as e:
            sys.exit(f"{args.one[0]}: {e.message}" + (f"\n  {e.hint}" if e.hint else ""))
        return
    if not args.summary:
        for seed in numbers(args.seeds):
            for name in args.cells:
                if complete(args, name, seed):
                    ending = "is there"
                else:
                    ending = launch(name, seed, args.max_minutes)
                print(f"{name} seed {seed}: {ending}", flush=True)
    print(summary(args.out))


if __name__ == "__main__":
    main()
