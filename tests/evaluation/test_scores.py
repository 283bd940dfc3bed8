"""Scores and intervals against values worked out by hand or published."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from eval_toys import stats_of, task_of

from seqrl import scores
from seqrl.errors import SeqrlError
from seqrl.targets import resolve_targets


def test_wilson_interval_equals_the_textbook_one():
    # Brown, Cai and DasGupta (2001): the centre is (x + z^2/2) / (n + z^2).
    for x, n, low, high in ((0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)):
        assert scores.wilson(x, n) == pytest.approx((low, high), abs=5e-5)
    assert scores.wilson(97, 100) == pytest.approx((0.9155, 0.9897), abs=5e-5)
    with pytest.raises(SeqrlError):
        scores.wilson(1, 0)


def test_iqm_drops_a_quarter_at_either_end_rounded_down():
    assert scores.iqm([9, 1, 2, 3, 4, 5, 6, 7]) == 4.5
    assert scores.iqm([0, 10, 20]) == 10  # none dropped of three
    assert scores.iqm([100, 1, 2, 3, -50]) == 2  # one dropped at either end of five


def test_bootstrap_is_seeded_and_near_the_normal_interval():
    x = np.random.default_rng(0).normal(5, 2, 400)
    low, high = scores.bootstrap(x, seed=3)
    assert (low, high) == scores.bootstrap(x, seed=3) != scores.bootstrap(x, seed=4)
    half = 1.96 * x.std() / 20
    assert low == pytest.approx(x.mean() - half, abs=0.03)
    assert high == pytest.approx(x.mean() + half, abs=0.03)
    assert scores.bootstrap([7.0]) == (7.0, 7.0)
    # Two values: a resample's mean is 0, 0.5 or 1, so the interval is the range.
    assert scores.bootstrap([0.0, 1.0]) == (0.0, 1.0)


def test_the_interval_is_over_seeds_when_there_are_three():
    groups = [[1.0, 3.0], [2.0, 2.0], [2.0]]  # all seed means are 2
    assert scores.interval(groups) == (2.0, 2.0, "bootstrap over 3 seeds")
    over = scores.interval(groups[:2])
    assert over.kind == "bootstrap over 4 episodes"
    assert over.low < 2 < over.high
    by_iqm = scores.interval([[0, 0, 0, 100]], statistic=scores.iqm)
    assert by_iqm.low == 0


def test_summary_uses_the_population_standard_deviation():
    s = scores.summary([1.0, 2.0, 3.0, 6.0])
    assert (s["mean"], s["median"], s["iqm"], s["min"], s["max"]) == (3, 2.5, 2.5, 1, 6)
    assert s["std"] == pytest.approx(np.sqrt(3.5))


def test_the_shipped_table_holds_the_published_constants():
    rows = [r for r in scores.reference_table() if r.get("source", "d4rl") == "d4rl"]
    assert len(rows) == 182
    task = task_of("CartPole-v1")
    found = scores.reference_scores(_replace(task, name="hopper-medium-v2"))
    assert scores.normalized(3234.3, found.random, found.expert) == 100
    assert scores.normalized(-20.272305, found.random, found.expert) == 0
    found = scores.reference_scores(_replace(task, name="halfcheetah-medium-v2"))
    score = scores.normalized(5000, found.random, found.expert)
    assert score == pytest.approx(42.53003, abs=5e-6)
    assert scores.denormalized(score, found.random, found.expert) == pytest.approx(5000)


def _replace(task, **changes):
    import dataclasses

    return dataclasses.replace(task, **changes)


def test_reference_scores_are_looked_for_in_order():
    task = task_of("CartPole-v1")
    assert scores.reference_scores(task) is None  # unknown is no error
    own = _replace(task, reference_scores=(1.0, 2.0), reference_source="the file")
    assert scores.reference_scores(own) == (1.0, 2.0, "the file")
    named = _replace(task, name="hopper_medium-v2", env_id="Ant-v5")
    assert scores.reference_scores(named).expert == 3234.3
    by_env = scores.reference_scores(_replace(task, env_id="Hopper-v5"))
    assert (by_env.random, by_env.expert) == (-20.272305, 3234.3)
    assert "hopper" in by_env.source
    # Versions of this one have different constants, so the environment alone does not tell.
    assert scores.reference_scores(_replace(task, env_id="maze2d-umaze-v9")) is None
    maze = scores.reference_scores(_replace(task, env_id="seqrl/TMaze-v0", env_kwargs={"limit": 3}))
    assert maze[:2] == (0.125, 1.0)
    toy = _replace(task, env_id="toy/Walk-v0")
    assert scores.reference_scores(toy) is None  # its class refuses: unknown, no crash
    toy = scores.reference_scores(_replace(toy, env_kwargs={"reward": 0.5}))
    assert toy[:2] == (0.0, 30.0)


def test_equal_references_give_no_score():
    assert scores.normalized(3.0, 1.0, 1.0) is None


def test_targets_are_numbers_quantiles_multiples_or_normalised():
    task = _replace(task_of("CartPole-v1"), reference_scores=(10.0, 110.0))
    got = resolve_targets(["1.0", 2, "-3e1", "p50", "max*1.5", "n100", "n50"], stats_of(task), task)
    assert [t.value for t in got] == [1, 2, -30, 3, 9, 110, 60]
    assert [t.label for t in got] == ["1.0", "2", "-3e1", "p50", "max*1.5", "n100", "n50"]


def test_multiples_ask_for_more_also_where_returns_are_negative():
    task = task_of("CartPole-v1")
    stats = stats_of(task, min=-400.0, p50=-200.0, max=-100.0)
    got = resolve_targets(["max*0.5", "max", "max*1.1", "max*1.5"], stats, task)
    assert [t.value for t in got] == pytest.approx([-150, -100, -90, -50])


def test_equal_targets_run_once_and_the_last_listed_stays_last():
    task = task_of("CartPole-v1")
    notes: list[str] = []
    stats = stats_of(task, p50=1.0, p90=1.0, max=1.0)
    got = resolve_targets(["p50", "0.5", "p90", "max"], stats, task, notes)
    assert got == [("0.5", 0.5), ("max", 1.0)]
    assert notes == ["target p50 is p90 (1): run once", "target p90 is max (1): run once"]


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("p91", "p90"),
        ("maximum", "did you mean 'max'?"),
        ("max*", "a multiple such as max*1.5"),
        ("nan", "mean"),
        ("1e999", "a number"),
        ("", "a number"),
    ],
)
def test_targets_not_understood_say_what_is(spec, hint):
    task = task_of("CartPole-v1")
    with pytest.raises(SeqrlError) as e:
        resolve_targets([spec], stats_of(task), task)
    assert hint in e.value.hint


def test_normalised_targets_need_reference_scores_and_quantiles_need_data():
    task = task_of("CartPole-v1")
    with pytest.raises(SeqrlError, match="no reference scores are known for CartPole-v1"):
        resolve_targets(["n100"], stats_of(task), task)
    with pytest.raises(SeqrlError, match="needs statistics"):
        resolve_targets(["p90"], None, task)
    with pytest.raises(SeqrlError, match="no target returns"):
        resolve_targets([], None, task)


def test_scores_references_and_reports_import_no_torch():
    code = (
        "import sys, seqrl.scores, seqrl.targets, seqrl.references, seqrl.eval_report;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_seeds_are_summed_up_over_seeds_and_labelled_so() -> None:
    from seqrl.eval_report import across_seeds

    def record(returns: list[float]) -> dict:
        rows = [
            {"target_label": "max", "return": r, "normalized": None, "success": r > 1}
            for r in returns
        ]
        return {"summary": [{"target_label": "max"}], "episodes": rows}

    three = across_seeds([record([1, 3]), record([2, 2]), record([4, 0])])[0]
    assert (three["seeds"], three["episodes"]) == (3, 2)
    assert three["return"]["mean"] == 2
    assert three["return"]["std"] == 0
    assert three["return"]["ci_kind"] == "bootstrap over 3 seeds"
    assert three["success"]["mean"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert three["normalized"] is None
    two = across_seeds([record([1, 3]), record([2, 2])])[0]
    assert two["return"]["ci_kind"] == "bootstrap over 4 episodes"
