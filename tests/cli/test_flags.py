"""Flags: scanning, conversion, and the messages for misspelt ones."""

from __future__ import annotations

from typing import Literal

import pytest

from seqrl.cli.fields import ConfigField
from seqrl.cli.flags import Flag, FlagSet, Positional, from_fields, literal
from seqrl.errors import SeqrlError


def flag_set() -> FlagSet:
    fields = [
        ConfigField("steps", int, 100_000, "Updates."),
        ConfigField("lr", float, 1e-4, "Learning rate."),
        ConfigField("scale", float | None, None, "Divisor."),
        ConfigField("activation", Literal["relu", "gelu"], "relu", "Between layers."),
        ConfigField("keep", bool, True, "Keep it."),
        ConfigField("sizes", tuple[int, ...], (1, 2), "Sizes."),
    ]
    return FlagSet(
        "demo",
        [
            *from_fields(fields),
            *from_fields(
                [ConfigField("kernel", int, 6, "Width of the filter.")],
                prefix="agent.",
                dest="agent_config.",
            ),
            Flag("data", str, many=True),
            Flag("env-kwargs", dict),
            Flag("quiet", bool, short="q"),
        ],
        [Positional("NAME", "who", required=False)],
    )


@pytest.mark.parametrize("text", ["100000", "1e5", "100k", "100_000", "0.1M"])
def test_counts_accept_exponents_and_suffixes(text: str) -> None:
    assert flag_set().parse(["--steps", text]).get("steps") == 100_000


@pytest.mark.parametrize(
    "argv",
    [
        ["--data", "a", "b"],
        ["--data", "a", "--data", "b"],
        ["--data=a", "--steps", "5", "--data", "b"],
    ],
)
def test_a_list_flag_repeated_adds_up(argv: list[str]) -> None:
    assert flag_set().parse(argv).get("data") == ["a", "b"]


def test_of_a_single_value_the_last_word_counts() -> None:
    assert flag_set().parse(["--steps", "5", "--steps=6"]).get("steps") == 6


def test_flags_follow_the_name_in_any_order() -> None:
    parsed = flag_set().parse(["dt", "--agent.kernel", "3", "-q", "--lr=3e-4", "--no-keep"])
    assert parsed.values == {
        "name": "dt",
        "agent_config.kernel": 3,
        "quiet": True,
        "lr": 3e-4,
        "keep": False,
    }


def test_values_follow_their_types() -> None:
    parsed = flag_set().parse(
        ["--scale", "none", "--sizes", "3,4", "--env-kwargs", "limit=30", "obs=vector", "x=-1.5"]
    )
    assert parsed.values == {
        "scale": None,
        "sizes": (3, 4),
        "env_kwargs": {"limit": 30, "obs": "vector", "x": -1.5},
    }


def test_negative_numbers_are_values() -> None:
    assert flag_set().parse(["--scale", "-200"]).get("scale") == -200.0


def test_underscores_and_switches_with_values_are_understood() -> None:
    assert flag_set().parse(["--env_kwargs", "a=1"]).get("env_kwargs") == {"a": 1}
    assert flag_set().parse(["--keep", "false"]).get("keep") is False
    assert flag_set().parse(["--keep=true"]).get("keep") is True


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (
            ["--agent.kernal", "5"],
            "'--agent.kernal'",
            "did you mean --agent.kernel (int, default 6)?",
        ),
        (["--kernel", "5"], "'--kernel'", "did you mean --agent.kernel (int, default 6)?"),
        (["--step", "5"], "'--step'", "did you mean --steps (int, default 100k)?"),
        (["--steps", "many"], "--steps takes int, got 'many'", "write 5000, 5k or 5e3"),
        (["--steps", "1.5"], "--steps takes int, got '1.5'", "write 5000, 5k or 5e3"),
        (["--activation", "relux"], "takes relu|gelu", "did you mean --activation relu?"),
        (["--steps"], "--steps needs a value", "--steps (int, default 100k)"),
        (["--steps", "--quiet"], "--steps needs a value", "--steps (int"),
        (["--env-kwargs", "limit"], "takes k=v words, got 'limit'", "limit=VALUE"),
        (["a", "b"], "does not know what to do with 'b'", "--help"),
        (["--keep=perhaps"], "--keep takes bool, got 'perhaps'", "--keep"),
    ],
)
def test_mistakes_are_named_with_a_remedy(argv: list[str], message: str, hint: str) -> None:
    with pytest.raises(SeqrlError) as caught:
        flag_set().parse(argv)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


def test_missing_positional() -> None:
    with pytest.raises(SeqrlError, match="needs RUN"):
        FlagSet("x", [], [Positional("RUN", "a run folder")]).parse([])


def test_lenient_first_look_skips_what_it_does_not_know() -> None:
    parsed = flag_set().parse(["dt", "--agent.unknown", "3", "--steps", "5"], lenient=True)
    assert parsed.values == {"name": "dt", "steps": 5}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("none", None), ("off", False), ('"x"', "x"), ("a:b", "a:b")],
)
def test_literal_words(text: str, value: object) -> None:
    assert literal(text) == value
