"""Videos of a policy at work: MP4 through imageio (extra ``video``), GIF through pillow alone.

MuJoCo renders without a display here, and without shadows, reflections and multisampling: in
software that is the difference between 100 ms and 8 ms a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import gymnasium
import numpy as np

from seqrl.acting import ActingPolicy, RtgUpdate
from seqrl.envs.pool import EnvFactory, LocalPool, env_factory, step_limit, task_of
from seqrl.errors import SeqrlError
from seqrl.rollout import FINAL, EpisodePlan, EpisodeRecord, plan_episodes, rollout

_DEFAULT_FPS = 30


class FrameWriter(Protocol):
    """A file that takes pictures."""

    def append_data(self, frame: np.ndarray) -> Any:
        """Add one picture ``[H, W, 3]`` uint8."""

    def close(self) -> None:
        """Finish the file."""


def record_video(
    policy: Any,
    env_id: str,
    path: str | Path,
    episodes: int = 1,
    *,
    env_kwargs: dict[str, Any] | None = None,
    target: float | None = None,
    seed: int = 10_000,
    max_steps: int | None = None,
) -> list[EpisodeRecord]:
    """Film the first episodes that ``seqrl eval`` would run with this seed.

    Args:
        policy: an agent, a reference policy, or a :class:`seqrl.policy.Policy`.
        env_id: environment.
        path: ``.mp4`` (and what else ffmpeg writes) or ``.gif``.
        episodes: how many, one after the other in one file.
        env_kwargs: arguments of the environment.
        target: target return; the policy's last suggested one by default, 0 for a bare agent.
        seed: of the evaluation.
        max_steps: cuts episodes; needed where the environment has no limit.

    Returns:
        The records of the episodes filmed.

    Raises:
        SeqrlError: no writer for this kind of file, or an environment that cannot be rendered.
    """
    agent, rtg = policy, target
    if hasattr(policy, "agent"):
        agent = policy.agent
        rtg = policy.default_target if target is None else target
    tasks = getattr(agent, "tasks", None)
    keys = tasks[0].observation.keys if tasks else ()
    factory = env_factory(env_id, env_kwargs, "rgb_array", keys)
    with LocalPool(factory, 1) as pool:
        limit = step_limit(pool, max_steps, task_of(pool, env_id, env_kwargs))
        plans = plan_episodes(pool, episodes, [float(rtg or 0.0)], seed=seed, stream=FINAL)
    training = getattr(agent, "training", False)
    try:
        if training:
            agent.eval()
        return film(agent, factory, plans, path, max_steps=limit)
    finally:
        if training:
            agent.train()


def film(
    policy: ActingPolicy,
    factory: EnvFactory,
    plans: Sequence[EpisodePlan],
    path: str | Path,
    *,
    row_block: int = 8,
    rtg_update: RtgUpdate = "reward",
    max_steps: int | None = None,
    task: int = 0,
) -> list[EpisodeRecord]:
    """Run planned episodes one after the other and write every picture to one file.

    Args:
        factory: makes the environment with ``render_mode="rgb_array"``.
        plans: the episodes.
        path: file to write; its folder is made.
    """
    path = Path(path)
    check_writer(path.suffix.lstrip(".") or "mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    fps = _DEFAULT_FPS

    def made() -> gymnasium.Env[Any, Any]:
        nonlocal fps
        env = factory()
        lighten(env)
        fps = int(env.metadata.get("render_fps") or _DEFAULT_FPS)
        return env

    writer: list[FrameWriter] = []

    def frame(plan: EpisodePlan, draw: Callable[[], np.ndarray]) -> None:
        if not writer:
            writer.append(open_writer(path, fps))
        writer[0].append_data(even_sized(draw()))

    try:
        return rollout(
            policy,
            made,
            plans,
            row_block=row_block,
            rtg_update=rtg_update,
            max_steps=max_steps,
            task=task,
            frames=frame,
        )
    finally:
        for open_file in writer:
            open_file.close()


def lighten(env: gymnasium.Env[Any, Any]) -> None:
    """Switch off what makes MuJoCo slow in software; does nothing to other environments."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    model: Any = getattr(env.unwrapped, "model", None)
    if renderer is None or not hasattr(model, "vis"):
        return
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    viewer_of = getattr(renderer, "_get_viewer", None)
    if viewer_of is None:
        return
    import mujoco

    try:
        # The viewer looks at the simulation, which exists after the first reset.
        env.reset(seed=0)
        scene = viewer_of("rgb_array").scn
    except Exception as e:
        raise SeqrlError(
            f"MuJoCo cannot render here: {type(e).__name__}: {e}",
            hint="without a display: set MUJOCO_GL=egl before Python starts",
        ) from e
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        scene.flags[flag] = False


def even_sized(frame: np.ndarray) -> np.ndarray:
    """The picture with an even height and width, which video codecs want (edges repeated)."""
    h, w = frame.shape[:2]
    if h % 2 == 0 and w % 2 == 0:
        return frame
    return np.pad(frame, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")


# --- writers ----------------------------------------------------------------------------------


def check_writer(kind: str) -> None:
    """Raise SeqrlError unless files of this kind can be written."""
    if kind == "gif":
        return
    try:
        import imageio.v2  # noqa: F401
        import imageio_ffmpeg  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401
    except ImportError as e:
        raise SeqrlError(
            f"writing .{kind} needs {e.name}",
            hint='pip install "seqrl[video]", or name a .gif file',
        ) from e


def open_writer(path: Path, fps: int) -> FrameWriter:
    """A file for pictures at ``fps`` a second."""
    if path.suffix == ".gif":
        return GifWriter(path, fps)
    import imageio.v2

    # Pictures are even-sized already; without this imageio scales them to multiples of 16.
    return imageio.v2.get_writer(path, fps=fps, macro_block_size=1)


class GifWriter:
    """An animated GIF through pillow; needs no ffmpeg. Pictures are kept until it is closed."""

    def __init__(self, path: Path, fps: int):
        self.path, self.fps = path, fps
        self._frames: list[Any] = []

    def append_data(self, frame: np.ndarray) -> None:
        """Add one picture ``[H, W, 3]`` uint8."""
        from PIL import Image

        self._frames.append(Image.fromarray(frame).quantize(64))

    def close(self) -> None:
        """Write the file."""
        if self._frames:
            first, *rest = self._frames
            milliseconds = max(20, round(1000 / self.fps))
            first.save(self.path, save_all=True, append_images=rest, duration=milliseconds, loop=0)
