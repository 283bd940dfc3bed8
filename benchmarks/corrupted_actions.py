"""What each part of Decision Mamba is worth when a fifth of the recorded actions is wrong.

    OMP_NUM_THREADS=1 python benchmarks/corrupted_actions.py --out RESULTS [--seeds 0-2] [--jobs 2]
    OMP_NUM_THREADS=1 python benchmarks/corrupted_actions.py --out RESULTS --rescale
    python benchmarks/corrupted_actions.py --out RESULTS --summary

The data are Hopper medium without its last 40 episodes, with 20 % of the steps' actions replaced by
uniform ones (the same steps for every cell; what the environment did then stays as it was, so a
wrong action stands in the window as the previous action, too). A cell is a variant and a seed:
``--steps`` updates of ``decision_mamba/hopper-small``, the last checkpoint. Measured are the error
of its predictions to the true actions of the 40 episodes left out, and its normalised return over
20 episodes a target. Uniform wrong actions have mean 0, so what minimises the squared error is 0.8
times the true action; ``--rescale`` plays the finished cells again with their actions divided by
0.8. Finished cells are files in RESULTS and are not run again; those measured so
far are in ``benchmarks/results/corrupted_actions``. The data are looked up in the local Minari
store (``MINARI_DATASETS_PATH``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import interval, table

DATA, LEFT_OUT, SHARE = "minari:seqrl/hopper/medium-v0", 40, 0.2
TARGETS = (1800.0, 3600.0)
CLONE = {"teacher": "none", "next_state_weight": 0.0, "next_return_weight": 0.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "all parts": {},
    "running average as teacher": {"teacher": "ema"},
    "no self-evolution": {"teacher": "none"},
    "no other objectives": {"next_state_weight": 0.0, "next_return_weight": 0.0},
    "no multi-grain": {"multi_grained": False},
    "none of them": {"multi_grained": False, **CLONE},
}
"""Name to settings over the preset's."""


def corrupted(path: Path) -> Path:
    """The training data as a file, made once."""
    import seqrl
    from seqrl.datasets.npz import write_npz

    if not path.exists():
        data = seqrl.load_dataset(DATA)
        data = data.select(np.arange(len(data) - LEFT_OUT)).compact()
        rng = np.random.default_rng(0)
        wrong = rng.random(data.num_steps) < SHARE
        low, high = np.array(data.task.action.low), np.array(data.task.action.high)
        data.actions = data.actions.copy()
        data.actions[wrong] = rng.uniform(low, high, (int(wrong.sum()), len(low)))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"making.{path.name}")
        write_npz(data, temporary)
        temporary.replace(path)
    return path


def clean_error(agent: Any) -> float:
    """Mean squared error to the actions of the episodes left out."""
    import torch

    import seqrl
    from seqrl.datasets.sampling import Sampler

    data = seqrl.load_dataset(DATA)
    data = data.select(np.arange(len(data) - LEFT_OUT, len(data)))
    sampler, total, count = Sampler([data], agent.config.window(), 256, seed=0), 0.0, 0
    with torch.inference_mode():
        for number in range(16):
            batch = sampler.batch(number)
            gap = (agent.predict(batch) - batch.actions).square()[batch.mask]
            total, count = total + float(gap.sum()), count + gap.numel()
    return total / count


def run_cell(args: argparse.Namespace, variant: str, seed: int) -> None:
    """Train and measure one cell, and write its file."""
    import torch

    import seqrl

    torch.set_num_threads(1)
    begin = time.perf_counter()
    steps = args.steps
    own = {**VARIANTS[variant], "total_updates": steps, "teacher_every": max(1, steps // 20)}
    run = seqrl.train(
        data=f"npz:{corrupted(args.out / 'data' / 'hopper-medium-corrupted.npz')}",
        preset="decision_mamba/hopper-small",
        agent_config=own,
        out=args.out / "runs" / f"{cell_name(variant, seed)}.{time.time_ns()}",
        seed=seed,
        steps=steps,
        holdout=0.0,
        eval_every=0,
        loggers=["jsonl"],
        targets=list(TARGETS),
        optim={"warmup_steps": steps // 20},
        eval={"episodes": 20},
    )
    summary = run.summary()
    policy = run.policy()
    record = {
        "suite": "corrupted_actions",
        "variant": variant,
        "settings": own,
        "seed": seed,
        "steps": steps,
        "clean_mse": clean_error(policy.agent),
        "final": [
            {"target": s["target"], "n": s["n"], "normalized": s["normalized"]["mean"]}
            for s in summary["final"]
        ],
        "metrics": {k: summary["metrics"].get(k) for k in ("loss", "label_shift", "beta")},
        "minutes": (time.perf_counter() - begin) / 60,
        "command": f"python benchmarks/corrupted_actions.py --out RESULTS --steps {steps}",
        "torch": torch.__version__,
    }
    file = args.out / f"{cell_name(variant, seed)}.json"
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(record) + "\n")
    temporary.replace(file)


def cell_name(variant: str, seed: int) -> str:
    """File name of a cell, without its ending."""
    return f"{variant.replace(' ', '-')}.s{seed}"


def rescale(out: Path, variant: str, seed: int) -> bool:
    """Play a finished cell with its actions divided by 1 - SHARE; False where that is known."""
    import gymnasium
    import torch

    import seqrl
    from seqrl.scores import normalized, reference_scores

    torch.set_num_threads(1)
    name = cell_name(variant, seed)
    file = out / f"{name}.json"
    record = json.loads(file.read_text())
    if "rescaled" in record:
        return False

    def environment(**options: Any) -> gymnasium.Env[Any, Any]:
        env = gymnasium.make("Hopper-v5", **options)
        low, high = env.action_space.low, env.action_space.high  # type: ignore[attr-defined]
        larger = lambda a: np.clip(np.asarray(a) / (1 - SHARE), low, high).astype(low.dtype)  # noqa: E731
        return gymnasium.wrappers.TransformAction(env, larger, env.action_space)

    if "RescaledHopper-v5" not in gymnasium.registry:
        gymnasium.register("RescaledHopper-v5", environment)
    # Seeds of unfinished attempts have folders, too: the last one is the one that was measured.
    run = sorted((out / "runs").glob(f"{name}.*"))[-1]
    report = seqrl.evaluate(
        run, env="RescaledHopper-v5", targets=list(TARGETS), episodes=20, normaliser="none"
    )
    scores = reference_scores(seqrl.load_dataset(DATA).task)
    assert scores is not None
    record["rescaled"] = [
        {
            "target": s["target"],
            "n": s["n"],
            "normalized": normalized(s["return"]["mean"], scores.random, scores.expert),
        }
        for s in report.summary
    ]
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(record) + "\n")
    temporary.replace(file)
    return True


def launch(args: argparse.Namespace, variant: str, seed: int) -> str:
    """Run a cell in a process of its own, unless it is there; how it ended."""
    name = cell_name(variant, seed)
    if (args.out / f"{name}.json").exists():
        return f"{name} is there"
    words = [sys.executable, __file__, "--out", str(args.out), "--steps", str(args.steps)]
    done = subprocess.run([*words, "--one", variant, str(seed)], check=False)
    return f"{name} {'done' if done.returncode == 0 else f'failed ({done.returncode})'}"


def summary(out: Path) -> str:
    """Markdown: error and return by variant, with intervals over the seeds."""
    records = [json.loads(f.read_text()) for f in sorted(out.glob("*.json"))]
    rows = []
    for variant in VARIANTS:
        mine = [r for r in records if r["variant"] == variant]
        if not mine:
            continue
        error = np.array([r["clean_mse"] for r in mine])
        row = [variant, str(len(mine)), interval(error, 4)]
        for i, target in enumerate(TARGETS):
            found = np.array([r["final"][i]["normalized"] for r in mine])
            assert all(r["final"][i]["target"] == target for r in mine)
            row.append(interval(found))
        for i, _ in enumerate(TARGETS):
            known = [r["rescaled"][i]["normalized"] for r in mine if "rescaled" in r]
            row.append(interval(np.array(known)) if len(known) == len(mine) else "-")
        rows.append(row)
    asked = [f"normalised, target {t:.0f}" for t in TARGETS]
    asked += [f"actions / {1 - SHARE:.1f}, target {t:.0f}" for t in TARGETS]
    return table(["variant", "seeds", "squared error to true actions", *asked], rows)


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="print the table and stop")
    parser.add_argument("--rescale", action="store_true", help="play finished cells, rescaled")
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out = args.out.resolve()
    if args.one:
        run_cell(args, args.one[0], int(args.one[1]))
        return
    low, _, high = args.seeds.partition("-")
    cells = [(v, s) for s in range(int(low), int(high or low) + 1) for v in args.variants]
    if args.rescale:
        for variant, seed in cells:
            if rescale(args.out, variant, seed):
                print(f"{cell_name(variant, seed)} played, rescaled", flush=True)
    elif not args.summary:
        corrupted(args.out / "data" / "hopper-medium-corrupted.npz")
        with ThreadPoolExecutor(args.jobs) as pool:
            for line in pool.map(lambda c: launch(args, *c), cells):
                print(line, flush=True)
    print(summary(args.out))


if __name__ == "__main__":
    main()
