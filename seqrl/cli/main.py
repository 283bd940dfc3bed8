"""The ``seqrl`` command: finds the sub-command, turns errors into messages and exit codes.

Exit codes: 0 done, 1 failure, 2 mistake in what was asked, 3 a check did not hold, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import seqrl
from seqrl.cli import output
from seqrl.errors import CheckFailed, RunFailed, RunInterrupted, SeqrlError, did_you_mean

OK, FAILURE, USAGE, CHECK, INTERRUPTED = 0, 1, 2, 3, 130


class Command(NamedTuple):
    """One sub-command; its module is imported when it is called."""

    name: str
    module: str
    """Has ``main(argv) -> exit code`` and ``help_for(argv) -> text``."""
    usage: str
    summary: str


COMMANDS: tuple[Command, ...] = (
    Command(
        "list",
        "seqrl.cli.listing",
        "list [agents|envs|datasets|suites|…]",
        "what exists, one table each",
    ),
    Command("info", "seqrl.cli.info", "info", "versions, device, threads, paths"),
    Command(
        "data",
        "seqrl.cli.data",
        "data inspect|convert|collect|split ID",
        "look at, convert, record and split datasets",
    ),
    Command("train", "seqrl.cli.train", "train [AGENT] [options]", "train an agent"),
    Command(
        "finetune",
        "seqrl.cli.finetune",
        "finetune RUN [options]",
        "go on learning in the environment",
    ),
    Command("resume", "seqrl.cli.resume", "resume RUN", "continue a run exactly where it stopped"),
    Command("eval", "seqrl.cli.evaluation", "eval RUN [options]", "measure a trained policy"),
    Command("play", "seqrl.cli.play", "play RUN --video FILE", "film a trained policy"),
    Command(
        "export", "seqrl.cli.export", "export RUN FILE.pt2", "a trained policy for torch alone"
    ),
    Command("bench", "seqrl.cli.bench", "bench SUITE [options]", "run a benchmark, resumable"),
    Command("report", "seqrl.cli.report", "report DIR…", "tables and pictures of results"),
    Command(
        "config",
        "seqrl.cli.config",
        "config show|validate|diff …",
        "resolved settings, and how two of them differ",
    ),
    Command(
        "doctor",
        "seqrl.cli.doctor",
        "doctor [RUN|DATASET|ENV]",
        "check a run, a dataset or an environment",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.showwarning = _warner()
            code = _dispatch(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output went away (`seqrl list | head -1`): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        output.error("interrupted")
        return INTERRUPTED
    except Exception as e:
        if debug:
            traceback.print_exc()
        return _explain(e)
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        output.out(overview())
        return OK
    if words[0] in ("-V", "--version"):
        output.out(f"seqrl {seqrl.__version__}")
        return OK
    command = find(words[0])
    module: Any = importlib.import_module(command.module)
    rest = words[1:]
    if any(w in ("-h", "--help") for w in rest):
        output.out(module.help_for([w for w in rest if w not in ("-h", "--help")]))
        return OK
    return int(module.main(rest))


def find(name: str) -> Command:
    """The command of that name.

    Raises:
        SeqrlError: there is none; the hint names the nearest.
    """
    for c in COMMANDS:
        if c.name == name:
            return c
    known = [c.name for c in COMMANDS]
    if name.startswith("-"):
        raise SeqrlError(f"options come after a command, got '{name}' first", hint="seqrl --help")
    raise SeqrlError(
        f"no command '{name}'", hint=did_you_mean(name, known, f"commands: {' '.join(known)}")
    )


def overview() -> str:
    """The text of ``seqrl --help``."""
    from seqrl.datasets.catalog import CATALOGUE

    agent = next(iter(next(iter(CATALOGUE.values())).presets))
    rows = [(f"seqrl {c.usage}", c.summary) for c in COMMANDS]
    column = max(len(usage) for usage, _ in rows) + 2
    lines = [f"  {usage.ljust(column)}{summary}" for usage, summary in rows]
    return "\n".join(
        [
            f"seqrl {seqrl.__version__}: offline reinforcement learning with sequence policies",
            "",
            "commands (COMMAND --help explains each):",
            *lines,
            "",
            "everywhere:",
            "  --help, --version, --debug (show the traceback of an error)",
            "",
            "examples:",
            f"  seqrl train {agent:<24} train on the built-in data",
            "  seqrl eval runs/DATA/AGENT/RUN       measure the policy again",
            "  seqrl list presets                   published settings",
            "  seqrl data inspect npz:my_data.npz   look at your own data",
        ]
    )


def _explain(e: Exception) -> int:
    """Print an error the way users see it and choose the exit code."""
    if isinstance(e, SeqrlError):
        output.error(e.message, e.hint)
        codes = {RunInterrupted: INTERRUPTED, RunFailed: FAILURE, CheckFailed: CHECK}
        return next((code for kind, code in codes.items() if isinstance(e, kind)), USAGE)
    if isinstance(e, OSError):
        output.error(f"{e.strerror or e}{f': {e.filename}' if e.filename else ''}")
        return FAILURE
    first = next(iter(str(e).splitlines()), "")
    output.error(
        f"unexpected {type(e).__name__}: {first}",
        "add --debug for the traceback; seqrl info prints what a bug report needs",
    )
    return FAILURE


def _warner() -> Callable[..., None]:
    """Shows warnings in one line, each once, without the source line that Python adds."""
    seen: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        # Gymnasium colours its warnings whether or not there is a terminal.
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(message)).removeprefix("WARN: ")
        text = " ".join(text.split())
        if text not in seen:
            seen.add(text)
            output.log(f"warning: {text}")

    return show
