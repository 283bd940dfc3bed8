"""Command-line flags: finding them in the words typed, turning words into values, explaining them.

tyro's rules convert words to annotated types (``float | None``, ``Literal``, tuples). The scanning
is our own, because the conventions here go beyond what a dataclass parser offers: ``1e5`` counts,
list flags that add up when repeated, agent options known only once the agent is, and a misspelt
flag answered in one line with the nearest one, its type and its default.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from seqrl.cli.fields import REQUIRED, ConfigField
from seqrl.errors import SeqrlError, nearest
from seqrl.presets.settings import as_text
from seqrl.units import parse_count

_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


@dataclass(frozen=True)
class Flag:
    """One option of a command."""

    name: str
    """As typed, without the leading dashes: ``batch-size``, ``agent.n-layer``."""
    type: Any = str
    """Annotation of the value; bool makes a switch, dict takes ``k=v`` words."""
    help: str = ""
    default: Any = None
    """For the help text only."""
    dest: str = ""
    """Key of the value in the parsed result; the name with underscores when empty."""
    short: str = ""
    """One-letter form."""
    many: bool = False
    """Takes one or more words, and adds up when repeated."""
    commas: bool = False
    """Words are split at commas."""
    metavar: str = ""
    group: str = "options"
    hidden: bool = False
    """Understood, but left out of the help text: another name of a flag that is in it."""
    parse: Callable[[str], Any] | None = None
    """Converts one word, in place of the type's rule."""

    @property
    def key(self) -> str:
        """Where the value goes."""
        return self.dest or self.name.replace("-", "_")

    @property
    def takes_many(self) -> bool:
        """Whether several words belong to it."""
        return self.many or self.type is dict or typing.get_origin(self.type) is dict

    def describe(self) -> str:
        """``--agent.kernel (int, default 6)``, for hints."""
        if self.type is bool:
            return f"--{self.name}"
        default = "" if self.default in (None, (), "") else f", default {show(self.default)}"
        return f"--{self.name} ({self.metavar or type_name(self.type)}{default})"


@dataclass(frozen=True)
class Positional:
    """A word that is not a flag."""

    name: str
    help: str = ""
    required: bool = True
    many: bool = False


@dataclass
class Parsed:
    """What a command line said: only what was given, nothing defaulted."""

    values: dict[str, Any] = field(default_factory=dict)
    """By ``Flag.key`` or the positional's name in lower case."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a flag or positional, or ``default`` when it was not given."""
        return self.values.get(key, default)

    def __contains__(self, key: str) -> bool:
        return key in self.values


def from_fields(
    fields: Iterable[ConfigField], *, prefix: str = "", dest: str = "", group: str = "options"
) -> list[Flag]:
    """A flag for each field of a config class.

    Args:
        prefix: put before the name (``agent.``).
        dest: put before the key (``agent_config.``).
    """
    flags = []
    for f in fields:
        kind, default = f.type, f.default
        if isinstance(kind, str):  # an annotation that could not be read: the class will check it
            kind = str
        flags.append(
            Flag(
                prefix + f.name.replace("_", "-"),
                kind,
                f.help,
                None if default is REQUIRED else default,
                dest=dest + f.name,
                commas=_is_sequence(kind),
                many=_is_sequence(kind),
                group=group,
            )
        )
    return flags


class FlagSet:
    """The flags and positionals of one command.

    Args:
        command: words after ``seqrl``, for messages.
        unknown: called with the name of a flag that is not among ``flags``; it may raise a
            SeqrlError that explains better than the general one.
    """

    def __init__(
        self,
        command: str,
        flags: Sequence[Flag],
        positionals: Sequence[Positional] = (),
        unknown: Callable[[str], None] | None = None,
    ):
        self.command, self.flags, self.positionals = command, list(flags), list(positionals)
        self.by_name = {f.name: f for f in flags}
        self.by_short = {f.short: f for f in flags if f.short}
        self.unknown = unknown

    def parse(self, argv: Sequence[str], *, lenient: bool = False) -> Parsed:
        """Read the words of a command line.

        Args:
            lenient: skip unknown flags (and one word after each), for a first look.

        Raises:
            SeqrlError: unknown flag, missing or malformed value, missing or surplus positional.
        """
        given: dict[str, list[str]] = {}
        loose: list[str] = []
        words = list(argv)
        while words:
            word = words.pop(0)
            if word == "--":
                loose += words
                break
            if not _is_flag(word):
                loose.append(word)
                continue
            name, attached = _split(word)
            flag, negated = self._find(name)
            if flag is None:
                if not lenient:
                    self._refuse(name)
                if attached is None and words and not _is_flag(words[0]):
                    words.pop(0)
                continue
            self._collect(flag, negated, attached, words, given)
        parsed = Parsed({k: self._value(k, v) for k, v in given.items()})
        return self._place(loose, parsed, lenient)

    def _find(self, name: str) -> tuple[Flag | None, bool]:
        """The flag of that name, and whether the name negates it (``no-x``, ``agent.no-x``)."""
        name = name.replace("_", "-")
        if name in self.by_name:
            return self.by_name[name], False
        if name in self.by_short:
            return self.by_short[name], False
        head, _, tail = name.rpartition(".")
        if tail.startswith("no-"):
            flag = self.by_name.get((f"{head}." if head else "") + tail[3:])
            if flag is not None and _is_bool(flag.type):
                return flag, True
        return None, False

    def _refuse(self, name: str) -> None:
        if self.unknown is not None:
            self.unknown(name)
        hint = f"seqrl {self.command} --help lists the options"
        raise SeqrlError(
            f"'seqrl {self.command}' has no option '--{name}'",
            hint=nearest_flag(name, self.flags) or hint,
        )

    def _collect(
        self,
        flag: Flag,
        negated: bool,
        attached: str | None,
        words: list[str],
        given: dict[str, list[str]],
    ) -> None:
        """Take a flag's words from the front of ``words``."""
        if _is_bool(flag.type):
            if negated:
                taken = ["false"]
            elif attached is not None:
                taken = [attached]
            elif words and words[0].lower() in _TRUE + _FALSE:
                taken = [words.pop(0)]
            else:
                taken = ["true"]
        elif attached is not None:
            taken = [attached]
        else:
            taken = []
            while words and not _is_flag(words[0]) and (flag.takes_many or not taken):
                taken.append(words.pop(0))
        if not taken:
            raise SeqrlError(f"--{flag.name} needs a value", hint=flag.describe())
        # Of a single value the last word counts, so that a script may append its overrides.
        before = given.get(flag.key, []) if flag.takes_many else []
        given[flag.key] = before + taken

    def _value(self, key: str, words: list[str]) -> Any:
        flag = next(f for f in self.flags if f.key == key)
        if flag.commas:
            words = [w for word in words for w in word.split(",") if w.strip()]
        if flag.type is dict or typing.get_origin(flag.type) is dict:
            return dict(_key_value(flag, w) for w in words)
        if flag.parse is not None:
            values = [_checked(flag, w) for w in words]
            return values if flag.many else values[0]
        return convert(flag, words)

    def _place(self, loose: list[str], parsed: Parsed, lenient: bool) -> Parsed:
        """Give the words that are no flags to the positionals, in order."""
        for p in self.positionals:
            if p.many and loose:
                parsed.values[p.name.lower()], loose = loose, []
            elif loose:
                parsed.values[p.name.lower()] = loose.pop(0)
            elif p.required and not lenient:
                raise SeqrlError(
                    f"'seqrl {self.command}' needs {p.name}", hint=f"{p.name}: {p.help}"
                )
        if loose and not lenient:
            raise SeqrlError(
                f"'seqrl {self.command}' does not know what to do with '{loose[0]}'",
                hint=f"seqrl {self.command} --help shows how it is called",
            )
        return parsed


def convert(flag: Flag, words: list[str]) -> Any:
    """The value that words stand for, by the flag's type.

    Raises:
        SeqrlError: they stand for none.
    """
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    with _registry():
        kind = list[str] if flag.many and flag.type is str else flag.type
        spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, set()))
        if not isinstance(spec, PrimitiveConstructorSpec):
            return words if flag.many else words[0]
        try:
            if spec.choices is not None and words[0] not in spec.choices:
                raise ValueError
            return spec.instance_from_str(words)
        except (ValueError, AssertionError, SeqrlError) as e:
            raise SeqrlError(
                f"--{flag.name} takes {flag.metavar or type_name(flag.type)}, "
                f"got {' '.join(words)!r}",
                hint=_value_hint(flag, words, e),
            ) from None


def _value_hint(flag: Flag, words: list[str], error: Exception) -> str:
    choices = [str(c) for c in _choices(flag.type)]
    if close := nearest(words[0], choices, 1):
        return f"did you mean --{flag.name} {close[0]}?"
    if isinstance(error, SeqrlError) and error.hint:
        return error.hint
    return flag.describe()


def _registry() -> Any:
    """tyro's rules with ours over them: counts, switches, and ``none`` in any case."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    registry = ConstructorRegistry()

    def rule(kind: Any, name: str, read: Callable[[str], Any]) -> None:
        spec: Any = PrimitiveConstructorSpec(
            nargs=1,
            metavar=name,
            instance_from_str=lambda words: read(words[0]),
            is_instance=lambda value: isinstance(value, kind),
            str_from_instance=lambda value: [str(value)],
        )
        registry.primitive_rule(lambda info: spec if info.type is kind else None)

    rule(int, "int", parse_count)
    rule(bool, "true|false", _read_bool)
    rule(type(None), "none", _read_none)
    return registry


def _read_bool(word: str) -> bool:
    if word.lower() not in _TRUE + _FALSE:
        raise ValueError(word)
    return word.lower() in _TRUE


def _read_none(word: str) -> None:
    if word.lower() not in ("none", "null"):
        raise ValueError(word)


def _checked(flag: Flag, word: str) -> Any:
    assert flag.parse is not None
    try:
        return flag.parse(word)
    except SeqrlError as e:
        raise SeqrlError(f"--{flag.name}: {e.message}", hint=e.hint) from None
    except ValueError as e:
        raise SeqrlError(f"--{flag.name}: {e}", hint=flag.describe()) from None


def _key_value(flag: Flag, word: str) -> tuple[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise SeqrlError(f"--{flag.name} takes k=v words, got {word!r}", hint=f"{word}=VALUE")
    return key, literal(text)


def literal(text: str) -> Any:
    """A word as number, truth value, none or list where it reads as one, else as text.

    >>> literal("30"), literal("0.5"), literal("true"), literal("[1, 2]"), literal("vector")
    (30, 0.5, True, [1, 2], 'vector')
    """
    import json

    lowered = text.strip().lower()
    if lowered in _TRUE + _FALSE:
        return lowered in _TRUE
    if lowered in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def nearest_flag(name: str, flags: Sequence[Flag]) -> str | None:
    """``did you mean --agent.kernel (int, default 6)?`` for a misspelt name, or None."""
    name = name.replace("_", "-")
    by_name = {f.name: f for f in flags}
    by_tail = {f.name.rpartition(".")[2]: f for f in reversed(flags)}
    if name in by_tail:
        return f"did you mean {by_tail[name].describe()}?"
    if close := nearest(name, by_name, 1):
        return f"did you mean {by_name[close[0]].describe()}?"
    if close := nearest(name.rpartition(".")[2], by_tail, 1):
        return f"did you mean {by_tail[close[0]].describe()}?"
    return None


def type_name(kind: Any) -> str:
    """A type in the words of a help text: ``int``, ``float or none``, ``relu|gelu``."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        return "|".join(str(a) for a in typing.get_args(kind))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in typing.get_args(kind))
    if origin is dict or kind is dict:
        return "k=v …"
    if origin in (tuple, list):
        inner = [a for a in typing.get_args(kind) if a is not Ellipsis]
        return f"{type_name(inner[0])},…" if inner else "list"
    if kind is type(None):
        return "none"
    return getattr(kind, "__name__", str(kind))


def show(value: Any) -> str:
    """A default as a help text prints it.

    >>> show(100_000), show(1234), show(1e-4), show((0.9, 0.999))
    ('100k', '1234', '1e-4', '0.9,0.999')
    """
    if isinstance(value, int) and not isinstance(value, bool) and value and value % 1000 == 0:
        return f"{value // 1000}k"
    return as_text(value)


def _choices(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    return tuple(c for a in typing.get_args(kind) for c in _choices(a))


def _is_bool(kind: Any) -> bool:
    return kind is bool


def _is_sequence(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_is_sequence(a) for a in typing.get_args(kind))
    return origin in (tuple, list) or kind in (tuple, list)


def _is_flag(word: str) -> bool:
    """True for ``--x`` and ``-q``, not for ``-1``, ``-.5`` or ``-``."""
    return re.match(r"--?[A-Za-z]|--$", word) is not None


def _split(word: str) -> tuple[str, str | None]:
    name, equals, value = word.lstrip("-").partition("=")
    return name, value if equals else None
