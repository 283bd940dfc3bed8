"""The loop keeps its promises: weights, weighting, order, best, stops, and what it refuses."""

from __future__ import annotations

import ast
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_agent import TinyAgent, TinyConfig, tiny, tiny_data
from tiny_run import build, config

from seqrl import devices
from seqrl.checkpoint import find_checkpoint, load_agent, saved_steps
from seqrl.datasets.sampling import Sampler, ordered_batches
from seqrl.errors import RunFailed, SeqrlError
from seqrl.loggers import JsonlLogger
from seqrl.optim import OptimConfig, lr_factor
from seqrl.runfolder import RunFolder
from seqrl.spec import Batch, LossOut
from seqrl.trainer import Callback, EvalOutcome, TrainConfig, Trainer, hold_out

PLAIN: dict[str, Any] = {"ema": None, "accumulation": 1, "schedule": "constant", "warmup_steps": 0}


def train(
    folder: Path | None = None, *, agent: Any = None, optim: Any = None, **options: Any
) -> Trainer:
    """A plain trainer on tiny data, without hold-out or evaluator unless they are given."""
    known = {k: options.pop(k) for k in ("evaluator", "holdout", "callbacks") if k in options}
    values: dict[str, Any] = {
        "steps": 10,
        "batch_size": 8,
        "device": "cpu",
        "log_every": 1,
        "save_every": 0,
    }
    values.update(options)
    conf = TrainConfig(optim=OptimConfig(**{"lr": 1e-2, **(optim or {})}), **values)
    run = RunFolder.create(folder, config=conf.to_json()) if folder else None
    loggers = [JsonlLogger(run.metrics_jsonl)] if run else []
    agent = tiny() if agent is None else agent
    return Trainer(agent, [tiny_data()], config=conf, run=run, loggers=loggers, **known)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


# --- what is learned ---------------------------------------------------------------------------


def test_the_loop_equals_a_dozen_plain_lines(tmp_path: Path) -> None:
    agent, c = tiny(), OptimConfig(lr=1e-2, warmup_steps=3, schedule="linear", grad_clip=0.1)
    sampler = Sampler([tiny_data()], agent.config.window(), 8, seed=5)
    rest, head = agent.parameter_groups()
    optimizer = torch.optim.AdamW(
        [rest, {**head, "lr_scale": 2.0}], lr=c.lr, weight_decay=c.weight_decay
    )
    losses = []
    for u in range(10):
        loss = agent.loss(sampler.batch(u)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(agent.parameters(), 0.1)
        for g in optimizer.param_groups:
            g["lr"] = c.lr * lr_factor(u, c, 10) * g.get("lr_scale", 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    fields = {"warmup_steps": 3, "schedule": "linear", "grad_clip": 0.1}
    trainer = train(tmp_path / "run", optim=fields, seed=5)
    trainer.fit()
    found = [r["loss"] for r in rows(tmp_path / "run")]
    assert found == pytest.approx(losses, rel=1e-5)
    for a, b in zip(agent.parameters(), trainer.agent.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_learns_what_the_whole_batch_does(tmp_path: Path, parts: int) -> None:
    one = train(tmp_path / "one", agent=tiny())
    many = train(tmp_path / "many", agent=tiny(), optim={"accumulation": parts})
    one.fit()
    many.fit()
    for a, b in zip(rows(tmp_path / "one"), rows(tmp_path / "many"), strict=True):
        for name in ("loss", "action_error", "grad_norm"):
            tolerance = 1e-6 if name == "loss" else 0.3  # a mean of roots is no root of a mean
            assert a[name] == pytest.approx(b[name], rel=tolerance)
    for a, b in zip(one.agent.parameters(), many.agent.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


class _Counting(TinyAgent):
    """Loss 1 on windows with an odd row number, 0 on others, with counts 3 and 1."""

    name = "counting"

    def loss(self, batch: Batch) -> LossOut:
        assert batch.size == 1
        odd = int(batch.rows[0]) % 2
        weight = self.head.bias[0]
        return LossOut(weight * 0 + weight + odd, torch.tensor(3 if odd else 1), {"odd": odd})


def test_micro_batches_are_weighted_by_their_valid_entries(tmp_path: Path) -> None:
    data = tiny_data()
    agent = _Counting(TinyConfig(), [data.task], [data.stats])
    torch.nn.init.zeros_(agent.head.bias)
    trainer = train(tmp_path / "run", agent=agent, optim={"accumulation": 8}, steps=1)
    odd = int((trainer.sampler.batch(0).rows % 2).sum())
    assert 0 < odd < 8
    trainer.fit()
    (row,) = rows(tmp_path / "run")
    assert row["loss"] == pytest.approx(3 * odd / (3 * odd + (8 - odd)))
    assert row["odd"] == pytest.approx(row["loss"])
    # The gradient of the weight is 1 whatever the counts: weights of the parts sum to one.
    assert row["grad_norm"] == pytest.approx(1.0)


def test_a_batch_without_any_valid_entry_is_no_division_by_zero(tmp_path: Path) -> None:
    class Empty(TinyAgent):
        name = "empty"

        def loss(self, batch: Batch) -> LossOut:
            return LossOut(self.head.bias.sum() * 0.0, 0, {"x": 1.0})

    data = tiny_data()
    agent = Empty(TinyConfig(), [data.task], [data.stats])
    train(tmp_path / "run", agent=agent, optim={"accumulation": 2}, steps=2).fit()
    assert rows(tmp_path / "run")[-1]["loss"] == 0.0


def test_dropout_depends_on_seed_and_update_alone() -> None:
    def weights(seed: int, disturb: bool) -> list[torch.Tensor]:
        class Disturb(Callback):
            def on_step(self, trainer: Trainer, step: int) -> None:
                torch.rand(step)

        callbacks = [Disturb()] if disturb else []
        agent = tiny(dropout=0.5)
        train(agent=agent, seed=seed, callbacks=callbacks).fit()
        return [p.detach() for p in agent.parameters()]

    calm = weights(1, False)
    assert all(map(torch.equal, calm, weights(1, True)))
    assert not all(map(torch.equal, calm, weights(2, False)))


def test_the_average_is_what_is_evaluated_and_saved(tmp_path: Path) -> None:
    seen = {}

    def evaluator(agent: Any, step: int) -> EvalOutcome:
        seen[step] = agent.head.weight.detach().clone()
        return EvalOutcome(None)

    trainer = train(tmp_path / "run", optim={"ema": 0.8}, evaluator=evaluator, eval_every=5)
    trainer.fit()
    average = trainer.learner.average
    assert average is not None
    expected = average.average[average.names.index("head.weight")]
    assert torch.equal(seen[10], expected)
    assert not torch.equal(trainer.agent.head.weight, expected)
    loaded, _ = load_agent(tmp_path / "run")
    assert torch.equal(loaded.head.weight, expected)
    assert int(loaded.updates) == 10


def test_after_update_is_called_with_the_number_of_each_update() -> None:
    agent, steps = tiny(), []
    agent.after_update = steps.append  # type: ignore[method-assign]
    train(agent=agent, steps=4).fit()
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_bf16_stays_finite_and_close_to_fp32(tmp_path: Path, accumulation: int) -> None:
    optim = {"accumulation": accumulation}
    for precision in ("fp32", "bf16"):
        train(tmp_path / precision, optim=optim, precision=precision, steps=30).fit()
    exact, rough = (rows(tmp_path / p)[-1] for p in ("fp32", "bf16"))
    assert math.isfinite(rough["loss"])
    assert rough["loss"] == pytest.approx(exact["loss"], rel=0.1)


def test_a_compiled_agent_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced as ever, but run by the plain backend: generating code takes half a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    for name, compiled in (("eager", False), ("compiled", True)):
        train(tmp_path / name, compile=compiled, steps=5).fit()
    a, b = (rows(tmp_path / n)[-1]["loss"] for n in ("eager", "compiled"))
    assert a == pytest.approx(b, rel=1e-4)
    assert load_agent(tmp_path / "compiled")[1].step == 5


def test_deterministic_mode_ends_with_the_run() -> None:
    during = []

    class Look(Callback):
        def on_step(self, trainer: Trainer, step: int) -> None:
            during.append(torch.are_deterministic_algorithms_enabled())

    train(deterministic=True, steps=2, callbacks=[Look()]).fit()
    assert during == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()


# --- rows, evaluations, best -------------------------------------------------------------------


def test_rows_say_what_was_asked_at_the_steps_asked(tmp_path: Path) -> None:
    build(tmp_path / "run", config(steps=12)).fit()
    found = {r["step"]: r for r in rows(tmp_path / "run")}
    assert list(found) == [3, 5, 6, 9, 10, 12]
    assert {"loss", "action_error", "grad_norm", "lr", "it_per_s", "data_share", "seconds"} <= set(
        found[3]
    )
    assert [s for s, r in found.items() if "val_loss" in r] == [5, 10, 12]
    assert found[3]["lr"] == pytest.approx(3e-3 * 3 / 10)
    record = json.loads((tmp_path / "run/eval/step_0000010.json").read_text())
    assert record["score"] == found[10]["eval/score"]
    with open(tmp_path / "run/metrics.csv") as f:
        assert len(f.readlines()) == 7
    lines = (tmp_path / "run/log.txt").read_text().splitlines()
    assert lines[0].startswith("step   5/12  loss ")
    assert "eval[1.0] ok" in lines[0]


def test_rows_are_means_since_the_row_before(tmp_path: Path) -> None:
    train(tmp_path / "fine", log_every=1).fit()
    train(tmp_path / "coarse", log_every=4).fit()
    fine = [r["loss"] for r in rows(tmp_path / "fine")]
    coarse = [r["loss"] for r in rows(tmp_path / "coarse")]
    expected = [np.mean(fine[:4]), np.mean(fine[4:8]), np.mean(fine[8:])]
    assert coarse == pytest.approx(expected)


def test_validation_loss_is_the_mean_over_valid_entries_in_evaluation_mode(tmp_path: Path) -> None:
    held = tiny_data(5, seed=9)
    agent = tiny(dropout=0.5)
    options = {"holdout": [held], "eval_every": 10, "val_batches": 3, "seed": 4}
    result = train(tmp_path / "run", agent=agent, **options).fit()
    agent.eval()
    with torch.no_grad():
        outs = [agent.loss(b) for b in ordered_batches([held], agent.config.window(), 8, 3, 4)]
    expected = sum(float(o.loss) * o.count for o in outs) / sum(o.count for o in outs)
    assert result.metrics["val_loss"] == pytest.approx(expected, rel=1e-6)


def scored(scores: Mapping[int, float | None]) -> Any:
    return lambda agent, step: EvalOutcome(scores[step])


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({2: 1.0, 4: 3.0, 6: 3.0, 8: 2.0}, 4),
        ({2: 1.0, 4: 1.0, 6: 1.0, 8: 1.0}, 2),
        ({2: math.nan, 4: -5.0, 6: math.nan, 8: -6.0}, 4),
        ({2: None, 4: None, 6: 0.0, 8: None}, 6),
    ],
)
def test_best_is_the_highest_score_and_ties_go_to_the_earlier_step(
    tmp_path: Path, scores: dict[int, float | None], best: int
) -> None:
    options = {"steps": 8, "eval_every": 2, "save_every": 8}
    result = train(tmp_path / "run", evaluator=scored(scores), **options).fit()
    assert result.best is not None
    assert result.best["step"] == best
    assert find_checkpoint(tmp_path / "run", "best").name == f"step_{best:07d}"


def test_without_scores_best_is_the_lowest_validation_loss(tmp_path: Path) -> None:
    agent = tiny()
    values = iter([3.0, 1.0, 2.0, 1.0])
    trainer = train(
        tmp_path / "run", agent=agent, holdout=[tiny_data(4)], steps=8, eval_every=2, save_every=0
    )
    trainer.learner.validation_loss = lambda batches: next(values)  # type: ignore[method-assign]
    result = trainer.fit()
    assert result.best == {"step": 4, "by": "val_loss", "value": -1.0}
    assert saved_steps(tmp_path / "run/checkpoints") == [4, 8]


def test_without_any_measure_there_is_no_best(tmp_path: Path) -> None:
    assert train(tmp_path / "run").fit().best is None
    with pytest.raises(SeqrlError, match="no checkpoint 'best'"):
        find_checkpoint(tmp_path / "run", "best")


def test_the_newest_and_the_best_checkpoints_are_kept(tmp_path: Path) -> None:
    scores = {s: float(-s) for s in range(1, 13)}
    options = {"steps": 12, "eval_every": 1, "save_every": 2, "keep": 3}
    train(tmp_path / "run", evaluator=scored(scores), **options).fit()
    assert saved_steps(tmp_path / "run/checkpoints") == [1, 8, 10, 12]


def test_callbacks_see_steps_then_evaluations_then_checkpoints(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Spy(Callback):
        def on_step(self, trainer: Trainer, step: int) -> None:
            seen.append(step)

        def on_eval(self, trainer: Trainer, step: int, values: Mapping[str, float]) -> None:
            seen.append(("eval", step, values["eval/score"]))

        def on_checkpoint(self, trainer: Trainer, step: int, path: Path) -> None:
            seen.append(("saved", step, path.name))

    options = {"steps": 2, "eval_every": 2, "save_every": 2, "callbacks": [Spy()]}
    train(tmp_path / "run", evaluator=scored({2: 7.0}), **options).fit()
    assert seen == [1, 2, ("eval", 2, 7.0), ("saved", 2, "step_0000002")]


def test_a_policy_carries_its_data_and_targets(tmp_path: Path) -> None:
    data = tiny_data()
    conf = TrainConfig(steps=2, batch_size=4, device="cpu")
    run = RunFolder.create(tmp_path / "run", config={})
    Trainer(tiny(data), [data], config=conf, run=run, targets=["p50", 2.0]).fit()
    _, meta = load_agent(tmp_path / "run")
    assert meta.targets == ("p50", 2.0)
    assert meta.data[0]["source"] == data.source
    assert meta.data[0]["fingerprint"] == data.fingerprint
    assert (tmp_path / "run" / "tb").is_dir()


# --- what stops a run --------------------------------------------------------------------------


@pytest.mark.parametrize("immediate", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_nan_loss_stops_the_run_and_names_step_and_rows(
    tmp_path: Path, immediate: bool, accumulation: int
) -> None:
    update = 7
    agent = tiny(poison=update)
    options = {"steps": 30, "save_every": 3, "log_every": 20}
    trainer = train(tmp_path / "run", agent=agent, optim={"accumulation": accumulation}, **options)
    trainer.learner.immediate = immediate  # as on a GPU, where losses are looked at now and then
    with pytest.raises(RunFailed) as error:
        trainer.fit()
    step = update + 1
    assert error.value.message == f"loss is NaN at step {step} (last finite {update})"
    assert error.value.hint == "--lr 1.0e-3, seqrl data inspect"
    record = json.loads((tmp_path / f"run/nan_step_{step:07d}.json").read_text())
    batch = Sampler([tiny_data()], agent.config.window(), 8).batch(update)
    assert record["rows"] == batch.rows.tolist()
    assert (record["update"], record["problem"]) == (update, "loss is NaN")
    assert max(record["episodes"]) < 20
    run = RunFolder(tmp_path / "run").read()
    assert (run["status"], run["reason"]) == ("failed", error.value.message)
    loaded, meta = load_agent(tmp_path / "run")
    assert meta.step == 6
    assert record["checkpoint"] == f"step_{meta.step:07d}"
    assert all(bool(torch.isfinite(p).all()) for p in loaded.parameters())


def test_an_infinite_gradient_stops_the_run_before_it_harms_the_weights(tmp_path: Path) -> None:
    class Steep(TinyAgent):
        name = "steep"

        def loss(self, batch: Batch) -> LossOut:
            out = super().loss(batch)
            if int(self.updates) == 3:
                return replace(out, loss=out.loss + (self.head.bias * 0).sqrt().sum())
            return out

    data = tiny_data()
    agent = Steep(TinyConfig(), [data.task], [data.stats])
    with pytest.raises(RunFailed, match="gradient is NaN at step 4"):
        train(tmp_path / "run", agent=agent).fit()
    assert all(bool(torch.isfinite(p).all()) for p in agent.parameters())


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    class Break(Callback):
        def on_step(self, trainer: Trainer, step: int) -> None:
            if step == 4:
                with torch.no_grad():
                    trainer.agent.head.bias.fill_(math.inf)

    with pytest.raises(RunFailed, match="weights are not finite after step 4"):
        train(tmp_path / "run", save_every=2, callbacks=[Break()]).fit()
    assert load_agent(tmp_path / "run")[1].step == 2


def test_any_other_error_marks_the_run_failed(tmp_path: Path) -> None:
    def broken(agent: Any, step: int) -> EvalOutcome:
        raise SeqrlError("no such environment")

    with pytest.raises(SeqrlError, match="no such environment"):
        train(tmp_path / "run", evaluator=broken, eval_every=3).fit()
    record = RunFolder(tmp_path / "run").read()
    assert (record["status"], record["reason"]) == ("failed", "no such environment")


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"steps": 0}, "steps is 0, must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1, must be at least 1"),
        ({"seed": -1}, "seed is -1"),
        ({"holdout": 1.0}, "holdout is 1.0, must be at least 0 and below 1"),
        ({"holdout": math.nan}, "holdout is nan"),
        ({"eval_every": -5}, "eval_every is -5"),
        ({"keep": 0}, "keep is 0"),
        ({"precision": "fp8"}, "precision is 'fp8', must be one of fp32, bf16, fp16"),
        ({"device": "tpu"}, "device is 'tpu', must be one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_range(
    fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(SeqrlError, match=said) as error:
        TrainConfig(**fields)
    assert "--" in (error.value.hint or "")


def test_the_config_survives_json() -> None:
    conf = TrainConfig(steps=7, optim=OptimConfig(ema=0.5, betas=(0.9, 0.95)), eval_every=3)
    assert TrainConfig.from_json(json.loads(json.dumps(conf.to_json()))) == conf


def test_intervals_default_to_shares_of_the_run() -> None:
    conf = TrainConfig(steps=1000)
    assert [s for s in range(1, 1001) if conf.due("eval", s)] == list(range(50, 1001, 50))
    assert [s for s in range(1, 1001) if conf.due("save", s)] == list(range(100, 1001, 100))
    short = TrainConfig(steps=7, eval_every=0, save_every=0)
    assert not any(short.due("eval", s) for s in range(1, 8))
    assert [s for s in range(1, 8) if short.due("save", s)] == [7]


def test_cuda_is_refused_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    said = "torch was built for cpu" if not torch.backends.cuda.is_built() else "no CUDA device"
    with pytest.raises(SeqrlError, match=f"--device cuda, but {said}") as error:
        train(device="cuda")
    assert error.value.hint == "drop --device"
    assert devices.resolve_device("auto").type == "cpu"


def test_fp16_is_refused_on_a_cpu() -> None:
    with pytest.raises(SeqrlError, match="--precision fp16 needs a CUDA device") as error:
        train(precision="fp16")
    assert "bf16" in (error.value.hint or "")


def test_batches_that_cannot_be_split_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SeqrlError, match="batch size 8 cannot be split into 3 micro-batches") as e:
        train(optim={"accumulation": 3})
    assert e.value.hint == "use a multiple of 3"
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SeqrlError, match="names no valid process"):
        train()


def test_holding_out_is_by_episode_and_refuses_what_cannot_be() -> None:
    data = tiny_data()
    kept, held = hold_out([data], 0.25, 0)
    assert held is not None
    assert (len(kept[0]), len(held[0])) == (15, 5)
    assert not set(kept[0].episode_ids) & set(held[0].episode_ids)
    assert hold_out([data], 0.0, 0) == ([data], None)
    one = data.first(1)
    assert hold_out([one], 0.5, 0) == ([one], None)
    with pytest.raises(SeqrlError, match="has one episode"):
        hold_out([data, one], 0.5, 0)
    for share in (1.0, 3.0, -0.1):
        with pytest.raises(SeqrlError, match="holdout is"):
            hold_out([data], share, 0)


def test_data_and_hold_out_must_match_the_agent_s_tasks() -> None:
    data = tiny_data()
    with pytest.raises(SeqrlError, match="serves 1 tasks, but 2 data sets"):
        Trainer(tiny(data), [data, data], config=TrainConfig())
    with pytest.raises(SeqrlError, match="2 hold-out sets for 1 data sets"):
        Trainer(tiny(data), [data], config=TrainConfig(), holdout=[data, data])


def test_the_training_code_names_no_agent_and_no_environment() -> None:
    from seqrl.agents import registry
    from seqrl.envs import ENVIRONMENTS

    banned = {*registry.names(), *(r.path for r in registry.ROWS), *(e.id for e in ENVIRONMENTS)}
    root = Path(registry.__file__).parents[1]
    modules = ("trainer", "training", "learner", "optim", "progress", "checkpoint", "rollout")
    for path in (root / f"{m}.py" for m in modules):
        tree = ast.parse(path.read_text())
        # "at" is an agent's name, and also the key of a time in what is stored.
        dicts = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
        keys = {id(key) for node in dicts for key in node.keys}
        for node in ast.walk(tree):
            if id(node) in keys:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in banned, f"{path.name}:{node.lineno} says {node.value!r}"


def test_emulated_bf16_is_said(monkeypatch):
    from seqrl.devices import precision_note

    cpu = torch.device("cpu")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert "slower than fp32" in (precision_note("bf16", cpu) or "")
    assert precision_note("fp32", cpu) is None
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert precision_note("bf16", cpu) is None
