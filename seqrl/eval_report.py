"""The report of an evaluation: its data, the table for people, the numbers for a training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl import scores
from seqrl.errors import SeqrlError
from seqrl.trials import trial_lines

if TYPE_CHECKING:
    from seqrl.rollout import EpisodeRecord
    from seqrl.targets import Target

SCHEMA = 1


@dataclass
class EvalReport:
    """What an evaluation found; plain JSON data throughout."""

    episodes: list[dict[str, Any]]
    """One entry an episode, targets in order, episodes in order within each."""
    summary: list[dict[str, Any]]
    """One entry a target."""
    env: dict[str, Any]
    policy: dict[str, Any]
    normaliser: dict[str, Any] | None
    """Name, the two returns that map to 0 and 100, and their source; None when unknown."""
    protocol: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    trials: list[dict[str, Any]] | None = None
    """One entry a target, see ``trial_summary``; None for policies and environments without."""
    timing: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, ``schema`` first, ``timing`` last."""
        names = [f.name for f in dataclasses.fields(self)]
        names = ["schema", *[n for n in names if n not in ("schema", "timing")], "timing"]
        return {n: getattr(self, n) for n in names}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EvalReport:
        """Rebuild a report written by :meth:`to_json`."""
        if data.get("schema") != SCHEMA:
            raise SeqrlError(
                f"evaluation has schema {data.get('schema')!r}, this seqrl reads {SCHEMA}"
            )
        known = {"trials": None, **data}  # records of earlier versions have no trials
        return cls(**{f.name: known[f.name] for f in dataclasses.fields(cls)})


@dataclass(frozen=True)
class Outcome:
    """A report as a training loop wants it."""

    score: float
    """Decides the best checkpoint: mean return at one target."""
    scalars: dict[str, float]
    """Metrics such as ``eval/return[1.0]``."""
    line: str
    """A few words for a status line."""
    report: dict[str, Any]
    """The report as JSON data."""


def episode_rows(
    records: Sequence[EpisodeRecord],
    targets: Sequence[Target],
    normaliser: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """The entry of each episode in a report; ``records`` are those of the targets in order."""
    per_target = len(records) // len(targets)
    # Some environments speak of success only when there is some.
    spoken = any(r.success is not None for r in records)
    out = []
    for number, r in enumerate(records):
        target = targets[number // per_target]
        score = None
        if normaliser is not None:
            score = scores.normalized(r.episode_return, normaliser["random"], normaliser["expert"])
        out.append(
            {
                "index": r.plan.index,
                "seed": r.plan.seed,
                "target": None if target.label == "-" else target.value,
                "target_label": target.label,
                "return": r.episode_return,
                "length": r.length,
                "success": bool(r.success) if spoken else None,
                "terminated": r.terminated,
                "truncated": r.truncated,
                "normalized": score,
            }
        )
    return out


def target_summary(
    label: str, episodes: list[dict[str, Any]], seed: int, per_trial: int = 1
) -> dict[str, Any]:
    """The entry of a target in a report: averages and intervals over its episodes.

    Args:
        label: of the target.
        episodes: rows of :func:`episode_rows`.
        seed: of the resampling.
        per_trial: episodes of a trial. Those of one trial are of one task and share a memory, so
            with several of them intervals are over the trials.
    """
    mine = [e for e in episodes if e["target_label"] == label]
    normed = [e["normalized"] for e in mine]
    wins = [e["success"] for e in mine]

    def spread(name: str) -> dict[str, Any]:
        values = [e[name] for e in mine]
        over = {} if per_trial == 1 else _over_trials(values, per_trial, seed)
        return scores.summary(values, seed) | over

    success = None
    if wins[0] is not None:
        rate, n = sum(wins) / len(wins), len(wins)
        ci = list(scores.wilson(sum(wins), n))
        success = {"rate": rate, "n": n, "ci": ci, "ci_kind": f"wilson over {n} episodes"}
        if per_trial > 1:
            success |= _over_trials(wins, per_trial, seed)
    return {
        "target": mine[0]["target"],
        "target_label": label,
        "n": len(mine),
        "return": spread("return"),
        "normalized": None if normed[0] is None else spread("normalized"),
        "length": spread("length"),
        "success": success,
    }


def trial_means(values: Sequence[float], per_trial: int) -> np.ndarray:
    """Mean of every ``per_trial`` values that follow each other.

    >>> trial_means([1, 3, 5, 9], 2).tolist()
    [2.0, 7.0]
    """
    means: np.ndarray = np.asarray(values, dtype=np.float64).reshape(-1, per_trial).mean(axis=1)
    return means


def _over_trials(values: Sequence[float], per_trial: int, seed: int) -> dict[str, Any]:
    """``ci`` and ``ci_kind`` of a mean whose independent parts are trials."""
    means = trial_means(values, per_trial)
    ci = list(scores.bootstrap(means, seed=seed))
    return {"ci": ci, "ci_kind": f"bootstrap over {len(means)} trials"}


def across_seeds(records: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """One entry a target over the evaluations of several training seeds.

    Args:
        records: ``EvalReport.to_json()`` of each seed, with the same targets.
        seed: of the resampling.

    Returns:
        Per target: ``target_label``, ``seeds``, ``episodes`` of each, and for ``return``,
        ``normalized`` and ``success`` (None where unknown) the mean over seeds, their standard
        deviation (ddof 0), and a 95 % interval that says what it is over: the seeds when there are
        three or more, else all episodes (or all trials, where they have several episodes).
    """
    out = []
    per_trial = int(records[0].get("protocol", {}).get("trial_episodes", 1))
    for label in dict.fromkeys(s["target_label"] for s in records[0]["summary"]):
        mine = [[e for e in r["episodes"] if e["target_label"] == label] for r in records]
        if not all(mine):
            continue
        row: dict[str, Any] = {
            "target_label": label,
            "seeds": len(mine),
            "episodes": len(mine[0]),
        }
        for name in ("return", "normalized", "success"):
            groups = [[e[name] for e in episodes] for episodes in mine]
            if any(v is None for g in groups for v in g):
                row[name] = None
                continue
            means = np.array([np.mean(g) for g in groups])
            parts = [trial_means(g, per_trial) for g in groups]
            low, high, kind = scores.interval(parts, seed=seed)
            kind = kind if per_trial == 1 else kind.replace("episodes", "trials")
            row[name] = {
                "mean": float(means.mean()),
                "std": float(means.std()),
                "ci": [low, high],
                "ci_kind": kind,
            }
        out.append(row)
    return out


def format_report(report: EvalReport) -> str:
    """A table of at most 100 columns: a line a target, then how it was measured."""
    normed = any(s["normalized"] is not None for s in report.summary)
    wins = any(s["success"] is not None for s in report.summary)
    head = ["target", "episodes", "return mean [95% CI]"]
    head += ["norm."] * normed + ["length"] + ["success [95% CI]"] * wins
    rows = [head]
    for s in report.summary:
        r = s["return"]
        row = [_target_text(s), str(s["n"]), _with_interval(r["mean"], r["ci"])]
        if normed:
            row.append("-" if s["normalized"] is None else f"{s['normalized']['mean']:.1f}")
        row.append(f"{s['length']['mean']:.0f}")
        if wins:
            row.append(_with_interval(s["success"]["rate"], s["success"]["ci"], ".2f"))
        rows.append(row)
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            [r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))]
        )
        for r in rows
    ]
    return "\n".join([*lines, *trial_lines(report.trials or []), *_footer(report)])


def _target_text(s: Mapping[str, Any]) -> str:
    label, value = s["target_label"], s["target"]
    if value is None or label == f"{value:g}" or label == str(value):
        return str(label)
    return f"{value:.6g} ({label})"


def _with_interval(mean: float, ci: list[float], form: str | None = None) -> str:
    spread = max(abs(mean), abs(ci[0]), abs(ci[1]))
    form = form or (".0f" if spread >= 100 else ".2f" if spread >= 1 else ".3g")
    return f"{mean:{form}} [{ci[0]:{form}}, {ci[1]:{form}}]"


def _footer(report: EvalReport) -> list[str]:
    p, t = report.policy, report.timing
    parts = []
    if n := report.normaliser:
        parts.append(f"normaliser {n['name']}: random {n['random']:.6g}, expert {n['expert']:.6g}")
    if p.get("checkpoint") is not None:
        step = "" if p.get("step") is None else f" (step {p['step']})"
        parts.append(f"checkpoint {p['checkpoint']}{step}")
    lines = [" · ".join(parts)] if parts else []
    kind = report.summary[0]["return"]["ci_kind"]
    facts = [f"intervals: {kind}"]
    if t:
        ms = t["policy_ms"]
        facts.append(f"policy {ms['median']:.2g} / {ms['p95']:.2g} ms a step (median / p95)")
        facts.append(f"{t['steps_per_s']:.0f} steps/s")
    return [*lines, " · ".join(facts), *(f"note: {n}" for n in report.notes)]


def to_outcome(report: EvalReport, target_index: int = -1) -> Outcome:
    """A report as a training loop wants it.

    Args:
        report: of a periodic evaluation.
        target_index: the target whose mean return is the score; the last listed by default.
    """
    scalars: dict[str, float] = {}
    for s in report.summary:
        at = "" if s["target_label"] == "-" else f"[{s['target_label']}]"
        scalars[f"eval/return{at}"] = s["return"]["mean"]
        scalars[f"eval/length{at}"] = s["length"]["mean"]
        if s["normalized"] is not None:
            scalars[f"eval/normalized{at}"] = s["normalized"]["mean"]
        if s["success"] is not None:
            scalars[f"eval/success{at}"] = s["success"]["rate"]
    chosen = report.summary[target_index]
    at = "" if chosen["target_label"] == "-" else f"[{chosen['target_label']}]"
    r, win = chosen["return"], chosen["success"]
    what = (
        f"return {_with_interval(r['mean'], r['ci'])}"
        if win is None
        else f"success {_with_interval(win['rate'], win['ci'], '.2f')}"
    )
    return Outcome(r["mean"], scalars, f"eval{at} {what}", report.to_json())
