"""``seqrl play``: film a trained policy."""

from __future__ import annotations

from collections.abc import Sequence

from seqrl.cli import output, reporting
from seqrl.cli.evaluation import load, policy_flags
from seqrl.cli.flags import Flag, FlagSet, Positional
from seqrl.errors import SeqrlError
from seqrl.units import grouped

_FLAGS = FlagSet(
    "play",
    [
        Flag("video", str, "File to write: .mp4 (extra video) or .gif.", metavar="FILE"),
        Flag("episodes", int, "How many, one after the other in one file.", 1),
        Flag("target", str, "Target return, as for seqrl eval --targets.", metavar="R"),
        Flag("seed", int, "Seed of the evaluation whose first episodes are filmed.", 10_000),
        Flag("max-steps", int, "Cut episodes at this many steps."),
        *policy_flags(),
        Flag("json", bool, "One JSON object on standard output.", group="output"),
    ],
    [Positional("RUN", "run folder, checkpoint, or anything inside a run")],
)


def help_for(argv: Sequence[str]) -> str:
    """The text of ``seqrl play --help``."""
    return output.help_text(
        _FLAGS,
        "Film the first episodes that seqrl eval would run; needs no display.",
        examples=[
            "seqrl play runs/DATA/AGENT/RUN --video play.mp4",
            "seqrl play runs/DATA/AGENT/RUN --video play.gif --episodes 3 --target max",
        ],
    )


def main(argv: Sequence[str]) -> int:
    """Film and say what is to be seen."""
    parsed = _FLAGS.parse(argv)
    video = parsed.get("video")
    if video is None:
        raise SeqrlError("no file to write", hint="--video play.mp4, or play.gif without ffmpeg")
    from seqrl.video import check_writer, record_video

    check_writer(video.rpartition(".")[2] if "." in video else "mp4")
    policy = load(parsed)
    env_id = parsed.get("env") or policy.task.env_id
    if env_id is None:
        raise SeqrlError("the policy's data name no environment", hint="add --env ID")
    own = policy.task.env_kwargs if env_id == policy.task.env_id else {}
    records = record_video(
        policy,
        env_id,
        video,
        parsed.get("episodes", 1),
        env_kwargs={**own, **parsed.get("env_kwargs", {})},
        target=_target(parsed.get("target"), policy),
        seed=parsed.get("seed", 10_000),
        max_steps=parsed.get("max_steps"),
    )
    rows = [
        {"seed": r.plan.seed, "return": r.episode_return, "length": r.length, "success": r.success}
        for r in records
    ]
    if parsed.get("json"):
        output.print_json({"video": video, "episodes": rows})
        return 0
    for i, r in enumerate(records):
        won = "" if r.success is None else f", {'success' if r.success else 'no success'}"
        output.out(f"episode {i}: return {r.episode_return:.6g}, {grouped(r.length)} steps{won}")
    output.out(f"written {reporting.shown(video)}")
    return 0


def _target(asked: str | None, policy: object) -> float | None:
    """A target return in raw units, None for the policy's own."""
    if asked is None:
        return None
    from seqrl.targets import resolve_targets

    agent, task = policy.agent, policy.task  # type: ignore[attr-defined]
    stats = getattr(agent, "stats", ())
    return resolve_targets([asked], stats[0] if stats else None, task)[0].value
