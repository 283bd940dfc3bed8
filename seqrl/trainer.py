"""The training loop: one for every agent, and it knows none of them.

It asks a sampler for ``batch(u)``, the agent for its loss, and hands the rest to the optimiser,
the loggers and an injected evaluator. Order of one update::

    data -> autocast loss -> backward (x accumulation) -> clip -> step -> schedule
         -> after_update -> weight average -> log -> evaluate -> checkpoint

Everything random is addressed by counters: rows of a batch by (seed, update, row), torch's
generators by (seed, update, process, micro-batch), set before each loss. So a run killed at any
moment and resumed repeats exactly what it would have done, dropout included.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from seqrl import checkpoint as ckpt
from seqrl import distributed
from seqrl.datasets.sampling import Sampler, ordered_batches
from seqrl.datasets.trajectories import Trajectories
from seqrl.devices import StopNow, StopSignals, deterministic, precision_note, resolve_device
from seqrl.distributed import Processes
from seqrl.errors import RunFailed, RunInterrupted, SeqrlError
from seqrl.learner import Learner, NotFinite
from seqrl.loggers import DEFAULT_LOGGERS, Logger, Means, make_loggers
from seqrl.progress import Clock, ProgressSink, short_float, status_parts
from seqrl.runfolder import RunFolder, Status, now, step_name, write_json
from seqrl.training import (
    Callback,
    EvalOutcome,
    Evaluator,
    TrainConfig,
    TrainResult,
    check_sets,
    check_sharing,
    hold_out,
)
from seqrl.units import grouped

if TYPE_CHECKING:
    from seqrl.agents.agent import Agent

__all__ = ["Callback", "EvalOutcome", "TrainConfig", "TrainResult", "Trainer", "hold_out"]


class Trainer:
    """Trains an agent on trajectories.

    Under ``torchrun`` every process makes one; the first writes, evaluates and validates. Several
    machines need a shared file system to resume.

    Args:
        agent: trained in place.
        data: one ``Trajectories`` a task, in the order of the agent's tasks.
        config: see :class:`TrainConfig`.
        run: folder to write to; None writes nothing (as do all processes but the first).
        holdout: as ``data``, for the validation loss; see :func:`hold_out`.
        evaluator: called at every evaluation.
        loggers: where metrics go; None means the default files of ``run``.
        callbacks: hooks.
        progress: where the progress line goes; None shows nothing and writes ``log.txt``.
        targets: suggested target returns, saved with the policy.

    Raises:
        SeqrlError: a device, precision or batch size that cannot be had.
    """

    def __init__(
        self,
        agent: Agent,
        data: Sequence[Trajectories],
        *,
        config: TrainConfig,
        run: RunFolder | None = None,
        holdout: Sequence[Trajectories] | None = None,
        evaluator: Evaluator | None = None,
        loggers: Sequence[Logger] | None = None,
        callbacks: Sequence[Callback] = (),
        progress: ProgressSink | None = None,
        targets: Sequence[Any] = (),
    ):
        self.config, self.processes = config, Processes.from_env()
        p = self.processes
        self.agent, self.data, self.holdout = agent, list(data), list(holdout or ())
        check_sets(agent, self.data, self.holdout)
        check_sharing(config, p)
        self.window = agent.config.window()
        self.sampler = self._sampler(rank=p.rank, world=p.world)
        self.learner = Learner(
            agent,
            config.optim,
            steps=config.steps,
            seed=config.seed,
            precision=config.precision,
            device=resolve_device(config.device, p.local_rank),
            processes=p,
        )
        self.run = run if p.first else None
        self.evaluator, self.callbacks, self.targets = evaluator, list(callbacks), list(targets)
        if loggers is None and self.run is not None:
            loggers = make_loggers(DEFAULT_LOGGERS, self.run)
        self.loggers = list(loggers or ()) if p.first else []
        self.progress = progress if progress and p.first else ProgressSink()
        if self.run is not None and self.progress.log is None:
            self.progress.log = self.run.log
        self.signals = StopSignals(patient=distributed.under_torchrun())
        self.step = 0
        """Updates done."""
        self.best: dict[str, Any] | None = None
        """``step``, ``value`` and ``by`` (score or val_loss) of the best checkpoint so far."""
        self.row: dict[str, float] = {}
        """The last row of metrics."""
        self._means, self._clock = Means(), Clock()
        self._begun = False
        self._tail_done = True
        self._saved: Path | None = None

    # --- a run --------------------------------------------------------------------------------

    def fit(
        self, resume: bool = False, *, allow_change: bool = False, finish: bool = True
    ) -> TrainResult:
        """Train to the last step.

        Args:
            resume: go on from the run's last checkpoint (from the start when there is none yet).
            allow_change: resume although seed, batch size or data are not those of the checkpoint.
            finish: mark the run done at the end; False when more is to follow.

        Raises:
            RunFailed: the loss or the weights are not finite.
            RunInterrupted: Ctrl-C or SIGTERM; a checkpoint was saved.
            SeqrlError: a checkpoint that cannot be resumed.
        """
        with contextlib.ExitStack() as stack:
            if self.run is not None:
                stack.enter_context(self.run.locked())
            stack.enter_context(distributed.joined(self.processes, self.learner.device))
            stack.callback(self.learner.unwrap)
            stack.enter_context(deterministic(self.config.deterministic))
            stack.enter_context(self.signals)
            stack.enter_context(self._recorded(finish))
            self._start(resume, allow_change)
            if not self._tail_done:
                self._tail()
            while self.step < self.config.steps:
                self._update()
                self._tail()
        return TrainResult(self.step, self._clock.total(), self.row, self.best, self.run)

    @contextlib.contextmanager
    def _recorded(self, finish: bool) -> Iterator[None]:
        """Keeps the run's status true however the inside ends, and closes what it wrote to."""
        try:
            yield
        except KeyboardInterrupt as e:
            self._mark("interrupted", f"aborted during step {self.step + 1}")
            raise RunInterrupted(
                f"aborted at step {grouped(self.step)}, "
                "what came after the last checkpoint is lost",
                hint=self._resume_hint(),
            ) from e
        except RunInterrupted as e:
            self._mark("interrupted", e.message)
            raise
        except BaseException as e:
            reason = e.message if isinstance(e, SeqrlError) else f"{type(e).__name__}: {e}"
            self._mark("failed", reason)
            if distributed.lost_contact(e, self.processes):
                # Without its frames, which would keep the connections alive.
                gone = e.with_traceback(None)
                raise RunFailed("another process of this run ended", hint="see its error") from gone
            raise
        else:
            if finish:
                self._mark("done")
        finally:
            for logger in self.loggers:
                logger.close()
            self.progress.close()

    def _mark(self, status: Status, reason: str | None = None, **fields: Any) -> None:
        # What is refused before it begins leaves the record of the run as it was.
        if self.run is not None and self._begun:
            # The folder may be gone or the disk full: never hide the error that brought us here.
            with contextlib.suppress(OSError, SeqrlError):
                self.run.mark(status, reason, step=self.step, **fields)

    def _resume_hint(self) -> str | None:
        return f"seqrl resume {self.run.dir}" if self.run is not None else None

    def _start(self, resume: bool, allow_change: bool) -> None:
        self.agent.train()
        fields: dict[str, Any] = {}
        if resume:
            self._restore(allow_change)
            fields = {"resumed": {"step": self.step, "at": now()}}
        elif self.run is not None and ckpt.saved_steps(self.run.checkpoints):
            raise SeqrlError(
                f"{self.run.dir} has been trained in", hint="fit(resume=True), or a new folder"
            )
        self._begun = True
        self._mark("running", **fields)
        self.learner.wrap(self.config.compile)
        if note := precision_note(self.config.precision, self.learner.device):
            self.progress.message(note)
        self._clock.restart()

    def _update(self) -> None:
        begin = time.perf_counter()
        batch = self.sampler.batch(self.step)
        self._clock.fetched(time.perf_counter() - begin)
        try:
            values = self.learner.update(self.step, batch, stop=self.signals.requested is not None)
        except NotFinite as e:
            self._fail(e)
        self.step += 1
        self._means.add(values)
        for callback in self.callbacks:
            callback.on_step(self, self.step)
        self.progress.offer(self._parts, self.step / self.config.steps)

    def _tail(self) -> None:
        """What falls on the present step after its update: row, evaluation, checkpoint, the end."""
        c, step = self.config, self.step
        measured = self.evaluator is not None or bool(self.holdout)
        evaluate, save = measured and c.due("eval", step), c.due("save", step)
        stop = self._stopping()
        if not (evaluate or save or stop or c.due("log", step)):
            return
        try:
            self.learner.check_finite()
        except NotFinite as e:
            self._fail(e)
        if stop and evaluate:
            self._leave(tail_done=False)
        timing = self._clock.read()
        found = self._evaluate(timing) if evaluate else {}
        improved = self._improves(found)
        if evaluate or c.due("log", step):
            self._write_row(found, timing)
        if evaluate:
            for callback in self.callbacks:
                callback.on_eval(self, step, found)
        if save or improved:
            self._save()
        if stop:
            self._leave(tail_done=True)

    def _stopping(self) -> bool:
        """Whether to stop after this update; the same on every process."""
        if self.processes.alone:
            return self.signals.requested is not None
        votes = self.learner.stop_votes
        # On a GPU reading the votes makes the processor wait: only now and then.
        if votes is None or not (self.learner.immediate or self.step % 10 == 0):
            return False
        return float(votes) > 0

    def _leave(self, tail_done: bool) -> NoReturn:
        self._save(tail_done)
        where = f"interrupted at step {grouped(self.step)}"
        text = f"{where}, checkpoint saved" if self.run is not None else where
        raise RunInterrupted(text, hint=self._resume_hint())

    def _fail(self, problem: NotFinite) -> NoReturn:
        """Stop the run: nothing is saved but which windows did it."""
        step, c = problem.update + 1, self.config
        if self.run is not None:
            kept = ckpt.pointed(self.run.checkpoints, "last")
            record = {
                "step": step,
                "problem": str(problem),
                "last_finite_step": problem.update,
                "checkpoint": kept.name if kept else None,
                "seed": c.seed,
                "update": problem.update,
                **self._windows_of(problem.update),
            }
            write_json(self.run.dir / f"nan_{step_name(step)}.json", record)
        precision = "" if c.precision == "fp32" else "--precision fp32, "
        raise RunFailed(
            f"{problem} at step {grouped(step)} (last finite {grouped(problem.update)})",
            hint=f"--lr {short_float(c.optim.lr / 10)}, {precision}seqrl data inspect",
        ) from problem

    def _sampler(self, **share: int) -> Sampler:
        c = self.config
        return Sampler(
            self.data, self.window, c.batch_size, c.seed, best_share=c.best_share, **share
        )

    def _windows_of(self, update: int) -> dict[str, Any]:
        """Which windows the batch of an update held, over all processes."""
        batch = self._sampler().batch(update)
        task = int(batch.task[0])
        rows, data = batch.rows.numpy(), self.data[task]
        episodes = np.searchsorted(data.episode_starts, rows, side="right") - 1
        return {"source": data.source, "task": task, "rows": rows, "episodes": episodes}

    # --- rows, evaluations, checkpoints -------------------------------------------------------

    def _write_row(self, found: Mapping[str, float], timing: Mapping[str, float]) -> None:
        lr = self.learner.lr(self.step - 1)
        self.row = {**self._means.take(), "lr": lr, **found, **timing}
        for logger in self.loggers:
            logger.log(self.step, self.row)
        if warning := self._clock.warning(timing["data_share"]):
            self.progress.message(warning)

    def _evaluate(self, timing: Mapping[str, float]) -> dict[str, float]:
        """Evaluator and validation loss, on the first process; a signal ends them at once."""
        if not self.processes.first:
            return {}
        c, found, outcome = self.config, {}, EvalOutcome(None)
        urgent = self.signals.urgent() if self.processes.alone else contextlib.nullcontext()
        try:
            # A signal may raise anywhere within "urgent"; the weights are put back outside it.
            with self._clock.paused(), self.learner.evaluating(self.step), urgent:
                if self.evaluator is not None:
                    outcome = self.evaluator(self.agent, self.step)
                if self.holdout:
                    fixed = (self.holdout, self.window, c.batch_size, c.val_batches, c.seed)
                    found["val_loss"] = self.learner.validation_loss(ordered_batches(*fixed))
        except StopNow:
            self._leave(tail_done=False)
        scalars = {} if outcome.score is None else {"score": outcome.score}
        found.update({f"eval/{k}": v for k, v in {**scalars, **outcome.scalars}.items()})
        if self.run is not None and outcome.record:
            self.run.write_eval(self.step, outcome.record)
        if found:
            self.progress.line(self._parts({**found, **timing}, outcome.text))
        return found

    def _improves(self, found: Mapping[str, float]) -> bool:
        """Whether these results are the best so far (a tie goes to the earlier step)."""
        by = "score" if "eval/score" in found else "val_loss"
        value = found.get("eval/score", -found.get("val_loss", math.nan))
        known = self.best
        # A run whose evaluations have scores is judged by those alone.
        demoted = known is not None and (known["by"], by) == ("score", "val_loss")
        if not math.isfinite(value) or demoted:
            return False
        if known is not None and known["by"] == by and value <= known["value"]:
            return False
        self.best = {"step": self.step, "by": by, "value": value}
        return True

    def _save(self, tail_done: bool = True) -> None:
        """Save a checkpoint, then move ``last`` and ``best``, then remove old ones."""
        if self.run is None:
            return
        if not self.learner.weights_finite():
            raise RunFailed(
                f"weights are not finite after step {grouped(self.step)}",
                hint=f"--lr {short_float(self.config.optim.lr / 10)}; earlier ones are whole",
            )
        for logger in self.loggers:
            logger.flush()
        folder = self.run.checkpoints
        with self._clock.paused():
            state = self._state(tail_done)
            path = folder / step_name(self.step)
            if path == self._saved:
                # No update since: the weights there are these. What became known is in the state.
                ckpt.write_trainer_state(path, state)
            else:
                self._saved = self._write_checkpoint(folder, state)
            ckpt.point(folder, "last", path.name)
            if self.best and self.best["step"] == self.step:
                ckpt.point(folder, "best", path.name)
            ckpt.prune(folder, self.config.keep)
        for callback in self.callbacks:
            callback.on_checkpoint(self, self.step, path)

    def _write_checkpoint(self, folder: Path, state: Mapping[str, Any]) -> Path:
        tensors = self.learner.tensors()
        meta = ckpt.PolicyMeta.of(self.agent, self.step, targets=self.targets, data=self._sources())
        with self.learner.policy_weights():
            return ckpt.save_checkpoint(folder, self.agent, meta, optimizer=tensors, trainer=state)

    # --- resuming -----------------------------------------------------------------------------

    def _sources(self) -> list[dict[str, Any]]:
        def facts(d: Trajectories) -> dict[str, Any]:
            delayed = bool(d.notes.get("delayed"))
            return {"source": d.source, "fingerprint": d.fingerprint, "delayed": delayed}

        return [facts(d) for d in self.data]

    def _state(self, tail_done: bool) -> dict[str, Any]:
        """Contents of ``trainer.json``."""
        return {
            "step": self.step,
            "steps": self.config.steps,
            "tail_done": tail_done,
            "best": self.best,
            "means": self._means.state(),
            "row": self.row,
            "seconds": self._clock.total(),
            **self._conditions(),
        }

    def _conditions(self) -> dict[str, dict[str, Any]]:
        """What has to be as it was for a resumed run to make sense, and to be exact."""
        c = self.config
        return {
            "must_match": {
                "seed": c.seed,
                "batch size": c.batch_size,
                "data": [d.fingerprint for d in self.data],
            },
            "exact_with": {
                "threads": torch.get_num_threads(),
                "processes": self.processes.world,
                "accumulation": c.optim.accumulation,
                "precision": c.precision,
                "torch": torch.__version__,
                "device": self.learner.device.type,
            },
        }

    def _restore(self, allow_change: bool) -> None:
        """Go back to the last checkpoint, files included; to the start when there is none."""
        path: Path | None = None
        if self.run is not None and ckpt.saved_steps(self.run.checkpoints):
            path = ckpt.find_checkpoint(self.run.dir, "last")
        path = distributed.from_first(path, self.processes)
        if path is not None:
            self._load(path, allow_change)
        for logger in self.loggers:
            logger.rewind(self.step)
        if self.run is not None:
            self._saved = path
            best = self.best["step"] if self.best else None
            ckpt.rewind(self.run.checkpoints, self.step, best)
            self.run.rewind(self.step)

    def _load(self, path: Path, allow_change: bool) -> None:
        record, tensors = ckpt.read_trainer_state(path)
        try:
            self._check_same(record, allow_change)
            self.step, self.best = int(record["step"]), record["best"]
            self._tail_done = bool(record["tail_done"])
            self._means.load(record["means"])
            self.row = dict(record["row"])
            self._clock.before = float(record["seconds"])
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise SeqrlError(
                f"{path / 'trainer.json'} is damaged: {type(e).__name__} {e}",
                hint=f"remove {path}: the checkpoint before it is used then",
            ) from e
        ckpt.load_weights(self.agent, path, ckpt.read_policy(path).extra_state)
        try:
            self.learner.restore(tensors)
        except SeqrlError as e:
            raise SeqrlError(f"{path / 'optimizer.pt'}: {e.message}", hint=e.hint) from e

    def _check_same(self, record: Mapping[str, Any], allow_change: bool) -> None:
        """Refuse to go on with other data; say so where the result will not be bit-identical."""
        if record["step"] > self.config.steps:
            raise SeqrlError(
                f"the run is at step {record['step']}, past the {self.config.steps} asked for",
                hint=f"--steps {record['step']} or more",
            )
        here = self._conditions()
        for name, value in here["must_match"].items():
            if record["must_match"][name] != value and not allow_change:
                raise SeqrlError(
                    f"{name} changed since the checkpoint: {record['must_match'][name]} → {value}",
                    hint="resume with what the run was started with, or add --allow-change",
                )
        for name, value in here["exact_with"].items():
            if record["exact_with"][name] != value:
                self.progress.message(
                    f"note: {name} {record['exact_with'][name]} → {value}: "
                    "the run goes on, but not bit for bit as it would have"
                )

    def _parts(self, found: Mapping[str, float] | None = None, text: str = "") -> list[str]:
        """Pieces of the progress line."""
        values = {**self.row, "data_share": self._clock.share(), **(found or {})}
        values["lr"] = self.learner.lr(max(self.step - 1, 0))
        if self.learner.immediate and (loss := self._means.now("loss")) is not None:
            values["loss"] = loss
        return status_parts(self.step, self.config.steps, values, self._clock.rate(), text)
