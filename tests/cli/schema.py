"""A schema check in twenty lines: types by example, no library."""

from __future__ import annotations

from typing import Any


def check(value: Any, schema: Any, where: str = "$") -> None:
    """Assert that ``value`` has the shape of ``schema``.

    A schema is a type, a tuple of alternatives, None, a one-element list for lists of that, or a
    mapping whose keys must be there (others may be, too).
    """
    if isinstance(schema, tuple):
        for alternative in schema:
            try:
                return check(value, alternative, where)
            except AssertionError:
                continue
        raise AssertionError(f"{where} is {value!r}, none of {schema}")
    if schema is None:
        assert value is None, f"{where} is {value!r}, must be null"
    elif isinstance(schema, list):
        assert isinstance(value, list), f"{where} is no list"
        for i, v in enumerate(value):
            check(v, schema[0], f"{where}[{i}]")
    elif isinstance(schema, dict):
        assert isinstance(value, dict), f"{where} is no object"
        for key, inner in schema.items():
            assert key in value, f"{where}.{key} is missing"
            check(value[key], inner, f"{where}.{key}")
    else:
        kinds = (int, float) if schema is float else (schema,)
        exact = isinstance(value, kinds) and (schema is bool or not isinstance(value, bool))
        assert exact, f"{where} is {value!r}, must be {schema.__name__}"


SPREAD = {"mean": float, "std": float, "ci": [float], "ci_kind": str, "iqm": float}
SUMMARY = {
    "target": (float, None),
    "target_label": str,
    "n": int,
    "return": SPREAD,
    "length": SPREAD,
    "normalized": (SPREAD, None),
    "success": ({"rate": float, "n": int, "ci": [float]}, None),
}
EVAL = {
    "schema": int,
    "episodes": [
        {
            "seed": int,
            "target": (float, None),
            "return": float,
            "length": int,
            "success": (bool, None),
        }
    ],
    "summary": [SUMMARY],
    "env": {"id": str, "kwargs": dict, "version": str},
    "policy": {"agent": str, "checkpoint": (str, None), "step": (int, None)},
    "normaliser": ({"name": str, "random": float, "expert": float, "source": str}, None),
    "protocol": {"seed": int, "stream": int, "row_block": int, "max_steps": int},
    "timing": {"steps_per_s": float, "policy_ms": {"median": float, "p95": float}},
}
RUN = {
    "run": str,
    "agent": str,
    "data": [str],
    "seed": int,
    "steps": int,
    "seconds": float,
    "metrics": dict,
    "best": ({"step": int}, None),
    "final": ([SUMMARY], None),
}
ACROSS = {"target_label": str, "seeds": int, "episodes": int, "return": (dict, None)}
TRAIN = {"runs": [RUN], "across_seeds": ([ACROSS], None)}
