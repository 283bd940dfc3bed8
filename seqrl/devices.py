"""Where and how a run computes: device, precision, random generators, signals that stop it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch

from seqrl.draws import draw_seed
from seqrl.errors import SeqrlError

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("fp32", "bf16", "fp16")


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device meant by ``auto``, ``cpu`` or ``cuda``.

    Args:
        local_rank: which CUDA device, where several processes share a machine.

    Raises:
        SeqrlError: CUDA was asked for and there is none.
    """
    if name not in DEVICES:
        raise SeqrlError(f"device is {name!r}, must be one of {', '.join(DEVICES)}")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.backends.cuda.is_built():
        raise SeqrlError("--device cuda, but torch was built for cpu", hint="drop --device")
    if not torch.cuda.is_available():
        raise SeqrlError("--device cuda, but no CUDA device is visible", hint="drop --device")
    if local_rank >= torch.cuda.device_count():
        raise SeqrlError(
            f"process {local_rank} of this machine has no CUDA device, "
            f"there are {torch.cuda.device_count()}",
            hint="start no more processes than devices (torchrun --nproc-per-node)",
        )
    return torch.device("cuda", local_rank)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context forward passes run in; may be entered again and again.

    Raises:
        SeqrlError: a precision the device does not have.
    """
    if precision == "fp32":
        return contextlib.nullcontext()
    if precision == "fp16" and device.type != "cuda":
        raise SeqrlError(
            f"--precision fp16 needs a CUDA device, this run is on {device.type}",
            hint="use --precision bf16 or fp32",
        )
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise SeqrlError("this CUDA device has no bf16", hint="use --precision fp16 or fp32")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype=dtype)


def precision_note(precision: str, device: torch.device) -> str | None:
    """What to say of a precision that works here but is emulated; None when all is well."""
    if precision != "bf16" or device.type != "cpu":
        return None
    # torch tells of the two instruction sets only under private names, which may go away.
    known = [getattr(torch.cpu, f"_is_{n}_supported", None) for n in ("avx512_bf16", "amx_tile")]
    if any(ask is None or ask() for ask in known):
        return None
    return "note: this processor has no bf16 instructions, bf16 will be slower than fp32"


def seed_generators(device: torch.device, *parts: int) -> None:
    """Set torch's generators of the CPU and of ``device`` from a tuple of integers.

    ``torch.manual_seed`` visits every backend torch knows and takes 90 us; this takes a tenth.
    """
    seed = draw_seed(*parts)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, torch refuses operations without a deterministic implementation, if wanted."""
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    debugging: Any = torch.utils.deterministic
    fill = debugging.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    debugging.fill_uninitialized_memory = False  # slow, and of use only when looking for bugs
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        debugging.fill_uninitialized_memory = fill


class StopSignals:
    """Ctrl-C and SIGTERM as a request to stop, while used as a context.

    The first signal sets ``requested``; a second Ctrl-C raises KeyboardInterrupt at once. Inside
    :meth:`urgent` the first one raises as well: for work that can be thrown away. Handlers are
    left alone outside the main thread, where Python does not allow any.

    Args:
        patient: a repeated Ctrl-C changes nothing (``torchrun`` hands every signal on twice).
    """

    def __init__(self, patient: bool = False):
        self.requested: str | None = None
        """Name of the signal received, such as ``SIGINT``."""
        self._patient = patient
        self._urgent = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def urgent(self) -> Iterator[None]:
        """Inside, a signal raises :class:`StopNow` wherever the program is."""
        self._urgent = True
        try:
            if self.requested:
                raise StopNow
            yield
        finally:
            self._urgent = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = signal.Signals(number).name
        if self._urgent:
            self._urgent = False
            raise StopNow
        if again and number == signal.SIGINT and not self._patient:
            raise KeyboardInterrupt


class StopNow(BaseException):
    """Raised by a signal inside ``StopSignals.urgent``; no ``except Exception`` stops it."""
