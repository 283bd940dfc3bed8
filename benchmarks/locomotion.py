"""All agents on locomotion data at one small budget: train, evaluate last and best, tabulate.

    python benchmarks/locomotion.py --out RESULTS [--agents dt dc ...] [--seeds 0-2] [--jobs 2]
    python benchmarks/locomotion.py --out RESULTS --summary

A cell is one agent, dataset and seed: 2,500 updates of batch 64 (decision_s4: of 16 whole
episodes), width 64 and 2 layers (bc: its published network), the presets ``AGENT/hopper-small``
with warm-up over a tenth of the updates. It is evaluated over 20 episodes a target by its last
checkpoint and by its best one (chosen by 10 other episodes a target, halfway and at the end).
Finished cells are files in RESULTS and are not run again; a killed cell is started anew. The cells
measured so far are in ``benchmarks/results/locomotion``.
The datasets are looked up in the local Minari store (``MINARI_DATASETS_PATH``).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import interval, table
from seqrl.checkpoint import load_agent

DATA = {
    "hopper-medium": ("minari:seqrl/hopper/medium-v0", "1800,3600"),
    "hopper-medium-replay": ("minari:seqrl/hopper/medium-replay-v0", "1800,3600"),
    "walker2d-medium-replay": ("minari:seqrl/walker2d/medium-replay-v0", "2500,5000"),
}
AGENTS: dict[str, list[str]] = {
    "bc": ["--preset", "bc/hopper-small"],
    "bc-10%": ["--preset", "bc/hopper-small", "--best", "10"],
    "lstm": ["--preset", "lstm/hopper-small"],
    "dt": ["--preset", "dt/hopper-small"],
    "dc": ["--preset", "dc/hopper-small"],
    "decision_mamba": ["--preset", "decision_mamba/hopper-small"],
    "dmamba": ["--preset", "dmamba/hopper-small"],
    "decision_s4": ["--preset", "decision_s4/hopper-small"],
    "lram": ["--preset", "lram/hopper-small"],
    "rate": ["--preset", "rate/hopper-small"],
}


def seqrl(*words: str) -> Any:
    """Run a seqrl command with ``--json``; what it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "seqrl", *words, "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def train_words(agent: str, data: str, seed: int, steps: int, run: Path) -> list[str]:
    """The training command of a cell."""
    uri, targets = DATA[data]
    words = {
        "--data": uri, "--seed": seed, "--steps": steps, "--optim.warmup-steps": steps // 10,
        "--targets": targets, "--eval.episodes": 20, "--eval-every": steps // 2,
        "--eval-episodes": 10,
    }  # fmt: skip
    if agent == "decision_mamba":  # it has to be told how long it will be trained
        words |= {"--agent.total-updates": steps, "--agent.teacher-every": steps // 20}
    words["--out"] = run
    return ["train", *AGENTS[agent], *(str(w) for pair in words.items() for w in pair)]


def run_cell(agent: str, data: str, seed: int, steps: int, out: Path) -> str:
    """Train and evaluate one cell, and write its file."""
    cell, run = out / f"{data}.{agent}.s{seed}.json", out / "runs" / f"{data}.{agent}.s{seed}"
    if cell.exists():
        return f"{cell.name} is there"
    shutil.rmtree(run, ignore_errors=True)
    words = train_words(agent, data, seed, steps, run)
    begin = time.perf_counter()
    trained = seqrl(*words)
    run_record = trained["runs"][0]
    if (run_record["best"] or {}).get("step") == steps:  # the same policy over the same episodes
        best = json.loads((run / "eval" / "final.json").read_text())
    else:
        best = seqrl("eval", str(run), "--checkpoint", "best", "--episodes", "20")
    network, _ = load_agent(str(run))
    record = {
        "suite": "locomotion",
        "agent": agent,
        "data": data,
        "seed": seed,
        "steps": steps,
        "command": "seqrl " + " ".join(words[: words.index("--out")]),
        "run": {
            **{k: run_record[k] for k in ("steps", "seconds", "best")},
            "final": brief(run_record["final"]),
            **{k: run_record["metrics"].get(k) for k in ("loss", "val_loss")},
        },
        "parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "best": brief(best["summary"]),
        "policy_ms": best["timing"]["policy_ms"]["median"],
        "versions": best["env"]["version"],
        "minutes": (time.perf_counter() - begin) / 60,
    }
    temporary = cell.with_suffix(".tmp")
    temporary.write_text(json.dumps(record))
    temporary.replace(cell)
    return f"{cell.name} took {record['minutes']:.1f} min"


def brief(summaries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the table needs of an evaluation's summary."""
    return [
        {
            "target": s["target"],
            "n": s["n"],
            "return": {k: s["return"][k] for k in ("mean", "std")},
            "normalized": {"mean": s["normalized"]["mean"]},
        }
        for s in summaries
    ]


def summary(out: Path) -> str:
    """Markdown: normalised score by agent and data, of the last and of the best checkpoint.

    The score of a cell is that of its better target (both stand in the cell's file); the interval
    is a bootstrap over seeds, so with three seeds it is their range at most.
    """
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(out.glob("*.json")):
        record = json.loads(path.read_text())
        cells.setdefault((record["data"], record["agent"]), []).append(record)
    header = ["data", "agent", "last", "best", "seeds (last)", "by target (last)", "params", "it/s"]
    rows = []
    for (data, agent), found in sorted(cells.items(), key=lambda kv: order(*kv[0])):
        by_target = np.array([scores(r["run"]["final"]) for r in found])  # (seeds, targets)
        best = np.array([scores(r["best"]) for r in found])
        pick = int(by_target.mean(0).argmax())
        last, top = by_target[:, pick], best[:, int(best.mean(0).argmax())]
        speed = np.median([r["run"]["steps"] / r["run"]["seconds"] for r in found])
        rows.append(
            [
                *(data, agent, interval(last), interval(top), " ".join(f"{v:.1f}" for v in last)),
                " / ".join(f"{v:.1f}" for v in by_target.mean(0)),
                f"{found[0]['parameters'] / 1e6:.2f}M",
                f"{speed:.0f}",
                f"{np.median([r['policy_ms'] for r in found]):.2f}",
            ]
        )
    return table([*header, "ms/action"], rows)


def order(data: str, agent: str) -> tuple[int, int]:
    """Rows in the order of the tables above."""
    return list(DATA).index(data), list(AGENTS).index(agent)


def scores(summaries: list[dict[str, Any]]) -> list[float]:
    """Normalised mean of every target."""
    return [s["normalized"]["mean"] for s in summaries]


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--agents", nargs="+", default=list(AGENTS), choices=list(AGENTS))
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--summary", action="store_true")
    args = parser.parse_args()
    if args.summary:
        print(summary(args.out))
        return
    (args.out / "runs").mkdir(parents=True, exist_ok=True)
    low, _, high = args.seeds.partition("-")
    seeds = range(int(low), int(high or low) + 1)
    cells = [(a, d, s) for s in seeds for d in args.data for a in args.agents]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(run_cell, *c, args.steps, args.out) for c in cells]
        for job, cell in zip(jobs, cells, strict=True):
            try:
                print(job.result(), flush=True)
            except RuntimeError as e:
                print(f"{cell} failed: {e}", flush=True)


if __name__ == "__main__":
    main()
