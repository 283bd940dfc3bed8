"""The fields of config dataclasses, read from their source without importing it.

Importing torch takes several seconds, and most config classes live beside torch code. Help texts
and the first check of a command line need only names, types, defaults and the docstring under each
field, and all of these stand in the source. A test compares this reading with the real classes.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqrl.errors import SeqrlError

REQUIRED = dataclasses.MISSING
"""Default of a field that has none."""


@dataclass(frozen=True)
class ConfigField:
    """One field of a config dataclass."""

    name: str
    type: Any
    """The annotation as a type, or the text of one that only the module itself could evaluate."""
    default: Any
    """The default value; REQUIRED when there is none, None where it is computed by code."""
    help: str
    """The docstring under the field, on one line."""


def read_fields(path: str) -> tuple[ConfigField, ...]:
    """Fields of the dataclass ``module:Class``, inherited ones first.

    Raises:
        SeqrlError: the module or the class does not exist.
    """
    module, _, name = path.partition(":")
    try:
        return tuple(_Source.of(module).fields(name).values())
    except _CannotRead:
        return _from_class(_load(module, name))


def class_value(path: str, variable: str) -> str | None:
    """``module:Class`` that a class variable such as ``config_class = DTConfig`` names."""
    module, _, name = path.partition(":")
    try:
        return _Source.of(module).class_variable(name, variable)
    except _CannotRead:
        value = getattr(_load(module, name), variable, None)
        return None if value is None else f"{value.__module__}:{value.__qualname__}"


def _load(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise SeqrlError(
            f"'{module}:{name}' cannot be imported: {e}",
            hint="module:Class must be importable from here (installed, or on PYTHONPATH)",
        ) from e


def _from_class(cls: Any) -> tuple[ConfigField, ...]:
    """The same facts by reflection, for classes whose source is out of reach."""
    hints = typing.get_type_hints(cls)
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            tree = ast.parse(inspect.cleandoc(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            continue
        if isinstance(tree.body[0], ast.ClassDef):
            docs.update({n: doc for n, (_, doc) in _annotated(tree.body[0]).items()})
    return tuple(
        ConfigField(f.name, hints[f.name], _default_of(f), docs.get(f.name, ""))
        for f in dataclasses.fields(cls)
    )


def _default_of(f: dataclasses.Field[Any]) -> Any:
    if f.default_factory is not dataclasses.MISSING:
        value = f.default_factory()
        return None if dataclasses.is_dataclass(value) else value
    return f.default


class _CannotRead(Exception):
    """The source does not say; the caller imports the class instead."""


def _annotated(body: ast.ClassDef) -> dict[str, tuple[ast.AnnAssign, str]]:
    """Annotated names of a class body, each with the string literal that follows it."""
    found = {}
    for node, following in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            doc = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                doc = " ".join(str(following.value.value).split())
            found[node.target.id] = (node, doc)
    return found


class _Source:
    """One module's syntax tree: its classes, its aliases and where it imports names from."""

    def __init__(self, module: str, tree: ast.Module):
        self.module = module
        self.classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
        self.assigned: dict[str, ast.expr] = {}
        self.imported: dict[str, tuple[str, str]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self.imported |= {a.asname or a.name: (node.module, a.name) for a in node.names}
        for node in tree.body:
            if isinstance(node, ast.Assign):
                self._assign(node.targets[0], node.value)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.assigned[target.id] = value
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for t, v in zip(target.elts, value.elts, strict=True):
                self._assign(t, v)

    @staticmethod
    @functools.cache
    def of(module: str) -> _Source:
        """The source of a module found on the import path."""
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError) as e:
            raise _CannotRead(module) from e
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            raise _CannotRead(module)
        return _Source(module, ast.parse(Path(spec.origin).read_text(encoding="utf-8")))

    def fields(self, name: str) -> dict[str, ConfigField]:
        """Dataclass fields of a class and of its bases, by name."""
        source, body = self._class(name)
        found: dict[str, ConfigField] = {}
        for base in body.bases:
            if not isinstance(base, ast.Name):
                raise _CannotRead(name)
            if base.id != "Protocol":
                found |= source.fields(base.id)
        for key, (node, doc) in _annotated(body).items():
            if not ast.unparse(node.annotation).startswith("ClassVar"):
                kind = source.evaluate(node.annotation)
                found[key] = ConfigField(key, kind, source.default(node.value), doc)
        return found

    def class_variable(self, name: str, variable: str) -> str | None:
        """``module:Class`` of the class that ``variable`` is set to in a class or its bases."""
        source, body = self._class(name)
        for node in body.body:
            value, target = getattr(node, "value", None), None
            if isinstance(node, ast.Assign):
                target = node.targets[0]
            elif isinstance(node, ast.AnnAssign):
                target = node.target
            if isinstance(target, ast.Name) and target.id == variable and value is not None:
                if not isinstance(value, ast.Name):
                    raise _CannotRead(variable)
                where, cls = source._class(value.id)
                return f"{where.module}:{cls.name}"
        for base in body.bases:
            if isinstance(base, ast.Name) and (
                base.id in source.classes or base.id in source.imported
            ):
                try:
                    return source.class_variable(base.id, variable)
                except _CannotRead:
                    continue
        raise _CannotRead(variable)

    def _class(self, name: str) -> tuple[_Source, ast.ClassDef]:
        if name in self.classes:
            return self, self.classes[name]
        if name in self.imported:
            module, original = self.imported[name]
            return _Source.of(module)._class(original)
        raise _CannotRead(name)

    def evaluate(self, annotation: ast.expr) -> Any:
        """An annotation as a type; its own text when a name in it cannot be resolved."""
        code = compile(ast.fix_missing_locations(ast.Expression(annotation)), self.module, "eval")
        try:
            return eval(code, {"__builtins__": {}}, _Names(self))
        except _CannotRead:
            return ast.unparse(annotation)

    def default(self, value: ast.expr | None) -> Any:
        """The default that an assignment states, where it is a literal."""
        if value is None:
            return REQUIRED
        if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
            given = {k.arg: k.value for k in value.keywords}
            if "default" in given:
                return self.default(given["default"])
            factory = ast.unparse(given["default_factory"]) if "default_factory" in given else ""
            return {"dict": {}, "list": [], "tuple": ()}.get(factory)
        if isinstance(value, ast.Name) and value.id in self.assigned:
            return self.default(self.assigned[value.id])
        if isinstance(value, ast.Name) and value.id in self.imported:
            module, original = self.imported[value.id]
            return _Source.of(module).default(ast.Name(original))
        try:
            return ast.literal_eval(value)
        except ValueError:
            return None


class _Names(Mapping[str, Any]):
    """Names an annotation may use: typing's, builtins, and aliases of this or another module."""

    def __init__(self, source: _Source):
        self.source = source

    def __getitem__(self, name: str) -> Any:
        source = self.source
        if name in source.assigned:
            return source.evaluate(source.assigned[name])
        if name in source.imported:
            module, original = source.imported[name]
            if module.partition(".")[0] in ("typing", "collections", "pathlib"):
                return getattr(importlib.import_module(module), original)
            other = _Source.of(module)
            if original in other.assigned:
                return other.evaluate(other.assigned[original])
        builtin: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
        builtin |= {"dict": dict, "list": list, "tuple": tuple, "set": set}
        if name in builtin:
            return builtin[name]
        raise _CannotRead(name)

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0
