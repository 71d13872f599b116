"""Files that build on files, overrides of the command line, and `${...}`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grpo_gym.config.errors import ConfigError, Origin
from grpo_gym.config.normalize import BASE_KEY, normalize
from grpo_gym.config.tree import Tree, Values, merge, parse_scalar, read_tree

COMMAND_LINE = "command line"


Normalize = Callable[[Tree], Tree]


def compose(path: Path, overrides: Sequence[str] = (), normalize: Normalize = normalize) -> Tree:
    """The tree of a file, everything it builds on, and the overrides, with interpolations resolved.

    Args:
        path: the file.
        overrides: `key=value`, as on the command line.
        normalize: brings what one file or override says into the form that is merged.

    Raises:
        ConfigError: anything that cannot be read, merged or resolved.
    """
    tree = load_with_bases(path, normalize=normalize)
    for override in overrides:
        tree = merge(tree, normalize(override_tree(override)))
    return Tree(resolve_interpolations(tree), tree.origins)


def load_with_bases(path: Path, above: tuple[Path, ...] = (), normalize: Normalize = normalize) -> Tree:
    """The file merged over its `_base_` files, which are merged in the order they are listed."""
    resolved = path.expanduser().resolve()
    if resolved in above:
        chain = " -> ".join(str(p) for p in (*above[above.index(resolved) :], resolved))
        raise ConfigError(f"{BASE_KEY} goes round in a circle: {chain}; take one of the links out.")
    own = read_tree(path)
    tree = Tree()
    for base in _bases(own):
        base_path = path.parent / base
        if not base_path.is_file():
            raise ConfigError.at(
                own.origins, (BASE_KEY,), f"no file '{base}' beside {path} (paths are relative to it)."
            )
        tree = merge(tree, load_with_bases(base_path, (*above, resolved), normalize))
    normalized = normalize(own)
    _anchor_paths(normalized, path.parent)
    return merge(tree, normalized)


def _bases(tree: Tree) -> list[str]:
    bases = tree.values.get(BASE_KEY) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError.at(tree.origins, (BASE_KEY,), "must be a path or a list of paths.")
    return bases


def _anchor_paths(tree: Tree, folder: Path) -> None:
    """Make paths that exist relative to the file absolute: the saved experiment works from anywhere."""
    modules = tree.values.get("rewards_module")
    if modules:
        names = [modules] if isinstance(modules, str) else modules
        tree.values["rewards_module"] = [_anchored(name, folder) for name in names]
    data = tree.values.get("data")
    if isinstance(data, dict) and "dataset_name" in data:
        data["dataset_name"] = _anchored(data["dataset_name"], folder)
    datasets = data.get("datasets") if isinstance(data, dict) else None
    for entry in datasets if isinstance(datasets, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("path"), str):
            entry["path"] = _anchored(entry["path"], folder)


def _anchored(name: Any, folder: Path) -> Any:
    if not isinstance(name, str):
        return name
    candidates = [folder / name, Path(name)]
    existing = [candidate for candidate in candidates if candidate.exists()]
    return str(existing[0].resolve()) if existing else name


def override_tree(override: str) -> Tree:
    """The tree of one `key.path=value`.

    Raises:
        ConfigError: it is not of that form, or the value is not YAML.
    """
    key, equals, text = override.partition("=")
    parts = tuple(key.strip().split("."))
    if not equals or not all(parts):
        raise ConfigError(
            f"{COMMAND_LINE}: '{override}' is not an override; write key=value, such as max_steps=100."
        )
    origin = Origin(COMMAND_LINE, None, key)
    value: Any = parse_scalar(text, origin)
    for part in reversed(parts):
        value = {part: value}
    tree = Tree(value, {parts[:length]: origin for length in range(1, len(parts) + 1)})
    _anchor_paths(tree, Path())
    return tree


def resolve_interpolations(tree: Tree) -> Values:
    """The values with every `${section.key}` and `${oc.env:NAME,default}` replaced."""
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree.values), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        path = tuple(part for part in re.split(r"[.\[\]]+", str(error.full_key or "")) if part)
        message = str(error.msg or error).splitlines()[0]
        raise ConfigError.at(tree.origins, path, f"{message}; name a value as ${{section.key}}.") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}
