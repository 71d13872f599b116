"""YAML as plain values that remember the line they were written on, and how two such trees merge."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from grpo_gym.config.errors import ConfigError, KeyPath, Origin

Values = dict[str, Any]

_DIGITS = r"\d[\d_]*"
_NUMBER = (
    rf"^[-+]?(?:{_DIGITS}\.?[\d_]*[eE][-+]?\d+|{_DIGITS}\.[\d_]*|\.\d+(?:[eE][-+]?\d+)?"
    r"|\.(?:inf|Inf|INF|nan|NaN|NAN))$"
)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `1e-6` is a number, and `on`, `off`, `yes`, `no` are text."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(_NUMBER),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


@dataclass
class Tree:
    """Nested plain values, and for every key path the place it comes from."""

    values: Values = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)

    def put(self, path: KeyPath, value: Any, origins: dict[KeyPath, Origin]) -> None:
        """Set the value at `path`; `origins` are those of the value and of what is inside it, relative to it.

        Raises:
            ConfigError: the path is taken already, or leads through something that is not a mapping.
        """
        target = self.values
        for depth, part in enumerate(path[:-1], start=1):
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError.at(
                    self.origins, path[:depth], f"must be a mapping, since {origins[()].key} is set too"
                )
        if path[-1] in target:
            raise ConfigError(
                f"{origins[()]}: is set twice; the other place is {self.origins.get(path, 'unknown')}"
            )
        target[path[-1]] = value
        self.origins.update({path + rest: origin for rest, origin in origins.items()})

    def origins_below(self, path: KeyPath) -> dict[KeyPath, Origin]:
        """The origins of the value at `path` and of what is inside it, relative to it."""
        return {key[len(path) :]: origin for key, origin in self.origins.items() if key[: len(path)] == path}


def parse_scalar(text: str, origin: Origin) -> Any:
    """A value written on the command line, read as YAML (`1e-6` a number, `[a, b]` a list, nothing None).

    Raises:
        ConfigError: not YAML, such as a bracket that is not closed.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{origin}: not valid YAML: {_problem(error)} in {text!r}; a text with such characters needs quotes "
            f"that the shell leaves in place: '{origin.key}=\"...\"'."
        ) from error


def read_tree(path: Path) -> Tree:
    """The YAML mapping in a file.

    Raises:
        ConfigError: no such file, not YAML, not a mapping, or a key written twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}; give the path of a YAML file.") from error
    try:
        return _tree_of(_Loader(text), str(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise ConfigError(f"{path}:{line}: not valid YAML: {_problem(error)}") from error


def _problem(error: Exception) -> str:
    """What PyYAML found, in one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        return str(error.problem or error.context)
    return str(error).splitlines()[0]


def _tree_of(loader: _Loader, file: str) -> Tree:
    node = loader.get_single_node()
    if node is None:
        return Tree()
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{file}:{node.start_mark.line + 1}: an experiment is a mapping of sections (training: ...)."
        )
    reader = _Reader(loader, file)
    values = reader.mapping(node, ())
    return Tree(values, reader.origins)


class _Reader:
    """Turns YAML nodes into values, noting where each stands."""

    def __init__(self, loader: _Loader, file: str) -> None:
        self.loader = loader
        self.file = file
        self.origins: dict[KeyPath, Origin] = {}

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> Values:
        self._check_keys_once(node, path)
        self.loader.flatten_mapping(node)
        values: Values = {}
        for key_node, value_node in node.value:
            key = str(self.loader.construct_object(key_node))
            self._note(key_node, (*path, key))
            values[key] = self.value(value_node, (*path, key))
        return values

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if not isinstance(node, yaml.SequenceNode):
            return self.loader.construct_object(node)
        values = []
        for index, item in enumerate(node.value):
            self._note(item, (*path, str(index)))
            values.append(self.value(item, (*path, str(index))))
        return values

    def _note(self, node: yaml.Node, path: KeyPath) -> None:
        self.origins[path] = Origin(self.file, node.start_mark.line + 1, ".".join(path))

    def _check_keys_once(self, node: yaml.MappingNode, path: KeyPath) -> None:
        seen: dict[Hashable, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.value in seen:
                key = ".".join((*path, str(key_node.value)))
                raise ConfigError(
                    f"{self.file}:{line}: {key}: is written twice; first in line {seen[key_node.value]}."
                )
            seen[key_node.value] = line


def merge(base: Tree, new: Tree) -> Tree:
    """`base` changed by `new`: mappings merge key by key, everything else is replaced."""
    return Tree(_merge_values(base.values, new.values), {**base.origins, **new.origins})


def _merge_values(base: Any, new: Any) -> Any:
    if isinstance(base, dict) and isinstance(new, dict):
        return {
            **base,
            **{key: _merge_values(base[key], value) if key in base else value for key, value in new.items()},
        }
    if isinstance(base, list) and _is_indexed(new, len(base)):
        return [_merge_values(item, new[str(i)]) if str(i) in new else item for i, item in enumerate(base)]
    return new


def _is_indexed(new: Any, length: int) -> bool:
    """Whether `new` changes single items of a list: `rewards.0.weight=0.5`."""
    return isinstance(new, dict) and bool(new) and all(key.isdigit() and int(key) < length for key in new)
