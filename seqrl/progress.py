"""What a person sees of a run: the bar or the plain lines, and where the time goes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from seqrl.units import duration

WIDTH = 100
"""Characters of the widest line shown."""


class ProgressSink:
    """A bar on a terminal; elsewhere a plain line every 30 s. Lines also go to ``log.txt``.

    Uses no colours and no control characters but the carriage return on a terminal.

    Args:
        stream: usually stderr; None shows nothing.
        log: file the plain lines are added to as well.
        terminal: whether the stream is one; asked of the stream when not given.
        every: seconds between plain lines.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        log: Path | None = None,
        terminal: bool | None = None,
        every: float = 30.0,
    ):
        self.stream, self.log = stream, log
        if terminal is None:
            dumb = os.environ.get("TERM") == "dumb"
            terminal = stream is not None and stream.isatty() and not dumb
        self.terminal = terminal
        self.every = every
        self._bar_due = 0.0
        self._line_due = time.monotonic() + every
        self._shown = 0

    def offer(self, parts: Callable[[], Sequence[str]], share: float) -> None:
        """Show the state of the run if it is time to; cheap enough to call at every update.

        Args:
            parts: makes the pieces of the line, asked only when it is shown.
            share: how much of the run is done, in [0, 1].
        """
        now = time.monotonic()
        if self.terminal and now >= self._bar_due:
            self._bar_due = now + 0.1
            self._bar(parts(), share)
        if now >= self._line_due:
            self._line_due = now + self.every
            self._plain(parts(), show=not self.terminal)

    def line(self, parts: Sequence[str]) -> None:
        """Show the state of the run for good (at an evaluation)."""
        self._line_due = time.monotonic() + self.every
        self._plain(parts, show=True)

    def message(self, text: str) -> None:
        """Show a line of text for good."""
        self._plain([text], show=True)

    def close(self) -> None:
        """Leave the terminal at the beginning of an empty line."""
        self._clear()

    def _plain(self, parts: Sequence[str], show: bool) -> None:
        if self.log is not None:
            with contextlib.suppress(OSError), open(self.log, "a", encoding="utf-8") as f:
                f.write("  ".join(parts) + "\n")
        if show and self.stream is not None:
            self._clear()
            text = parts[0] if len(parts) == 1 else fit_line(parts, WIDTH)
            self._write(text + "\n")

    def _bar(self, parts: Sequence[str], share: float) -> None:
        width = WIDTH
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                columns = os.get_terminal_size(self.stream.fileno()).columns
                width = min(WIDTH, columns - 1) if columns > 0 else WIDTH  # 0: not known
        filled = round(12 * share)
        text = fit_line([f"[{'=' * filled}{' ' * (12 - filled)}]", *parts], width)
        self._write("\r" + text + " " * (self._shown - len(text)))
        self._shown = len(text)

    def _clear(self) -> None:
        if self._shown:
            self._write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def _write(self, text: str) -> None:
        if self.stream is not None:
            with contextlib.suppress(OSError, ValueError):  # a closed pipe must not stop training
                self.stream.write(text)
                self.stream.flush()


def fit_line(parts: Sequence[str], width: int) -> str:
    """Pieces joined by two spaces; those that say least go first when it is too long.

    >>> fit_line(["step 5/9", "loss 0.41", "lr 1.0e-4", "data 3%"], 30)
    'step 5/9  loss 0.41  lr 1.0e-4'
    """
    kept = list(parts)
    for expendable in ("data ", "lr ", "val ", "eta ", "["):
        if len("  ".join(kept)) <= width:
            break
        kept = [p for p in kept if not p.startswith(expendable)]
    return "  ".join(kept)[:width]


def three_digits(value: float) -> str:
    """A number to three digits, trailing zeros kept so that lines stay aligned.

    >>> three_digits(0.4), three_digits(1), three_digits(123.4), three_digits(2.5e-5)
    ('0.400', '1.00', '123', '2.50e-05')
    """
    return f"{value:#.3g}".rstrip(".")


def short_float(value: float) -> str:
    """A learning rate in the fewest characters.

    >>> short_float(1e-4), short_float(3.3e-05)
    ('1.0e-4', '3.3e-5')
    """
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


class Clock:
    """Where the wall-clock time of a run goes; evaluations and checkpoints are not counted."""

    def __init__(self) -> None:
        self.before = 0.0
        """Seconds of earlier sessions."""
        self._warned = False
        self.restart()

    def restart(self) -> None:
        """The session begins now."""
        self._begin = self._window = time.perf_counter()
        self._pause = self._window_pause = 0.0
        self._updates = self._window_updates = 0
        self._data = 0.0

    def fetched(self, seconds: float) -> None:
        """Count an update whose data took this long."""
        self._data += seconds
        self._updates += 1
        self._window_updates += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent inside does not count."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self._pause += seconds
            self._window_pause += seconds

    def total(self) -> float:
        """Seconds of all sessions so far, pauses included."""
        return self.before + time.perf_counter() - self._begin

    def rate(self) -> float:
        """Updates a second in this session."""
        busy = time.perf_counter() - self._begin - self._pause
        return self._updates / busy if busy > 0 else 0.0

    def share(self) -> float:
        """Share of the time since the last row that went into data, in [0, 1]."""
        busy = time.perf_counter() - self._window - self._window_pause
        return min(self._data / busy, 1.0) if busy > 0 else 0.0

    def read(self) -> dict[str, float]:
        """Updates a second and data share since the last call, and seconds in all."""
        busy = time.perf_counter() - self._window - self._window_pause
        values = {
            "it_per_s": self._window_updates / busy if busy > 0 else 0.0,
            "data_share": self.share(),
            "seconds": self.total(),
        }
        self._window, self._window_pause = time.perf_counter(), 0.0
        self._window_updates, self._data = 0, 0.0
        return values

    def warning(self, share: float) -> str | None:
        """What to tell the user, once, when data take more than 30 % of the time."""
        if share <= 0.3 or self._warned:
            return None
        self._warned = True
        return (
            f"warning: {share:.0%} of the time goes into waiting for data; "
            "a converted copy is faster: seqrl data convert"
        )


def status_parts(
    step: int, total: int, values: Mapping[str, float], rate: float, text: str = ""
) -> list[str]:
    """Pieces of the progress line.

    Args:
        values: ``lr``, ``data_share``, and ``loss`` and ``val_loss`` where they are known.
        rate: updates a second.
        text: what an evaluation has to say.

    >>> known = {"loss": 0.4119, "lr": 1e-4, "data_share": 0.03}
    >>> "  ".join(status_parts(1000, 5000, known, 62.0, "eval[1.0] success 0.50"))
    'step  1000/5000  loss 0.412  lr 1.0e-4  62 it/s  data 3%  eval[1.0] success 0.50  eta 1:05'
    """
    parts = [f"step {step:>{len(str(total)) + 1}}/{total}"]
    for label, name in (("loss", "loss"), ("val", "val_loss")):
        if name in values:
            parts.append(f"{label} {three_digits(values[name])}")
    parts.append(f"lr {short_float(values['lr'])}")
    parts.append(f"{rate:.0f} it/s" if rate >= 10 else f"{rate:.2g} it/s")
    parts.append(f"data {values['data_share']:.0%}")
    if text:
        parts.append(text)
    if rate > 0:
        parts.append(f"eta {duration((total - step) / rate)}")
    return parts
