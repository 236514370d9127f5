"""Configs as plain values: YAML files and `key=value` overrides."""

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from pc_ewa.bundled import bundled_configs, find_config
from pc_ewa.errors import ConfigError

MAX_DEPTH, MAX_NODES = 50, 100_000


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of keys and values, given its path or the name of a bundled config.

    Raises:
        ConfigError: no such file, or other content.
    """
    path = _find(path)
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        held = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path} holds {held}; expected keys and values, see configs/quickstart.yaml")
    return content


def apply_overrides(content: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Apply overrides `key=value`, with dotted keys and YAML values, to a config of plain values, in place."""
    for override in overrides:
        _apply(content, override)
    return content


def parse_yaml(text: str) -> Any:
    """Parse YAML, with 5e-4 as a number, which PyYAML (YAML 1.1) reads as text.

    Raises:
        ValueError: not YAML; a key given twice; or a document that is deeper or, with its aliases expanded, larger than
            any config. The message is one line.
    """
    # Nodes are counted before they are constructed: nested aliases of a few lines expand to billions of values.
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, _nodes_in, {}) > MAX_NODES:
            raise ValueError(f"with its aliases written out it has more than {MAX_NODES} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _find(path: str | Path) -> Path:
    found = find_config(path)
    if found is not None:
        return found
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    names = bundled_configs()
    close = difflib.get_close_matches(path.with_suffix("").as_posix(), names, n=3, cutoff=0.5)
    beside = sorted(map(str, folder.glob("[!.]*.y*ml")))
    is_name = bool(close) and not path.suffix and path.parent == Path()  # such as quikstart
    if beside and not is_name:
        raise ConfigError(f"{path} is not a file; there are {', '.join(beside)}")
    choices = close or [name for name in names if "/" not in name]
    raise ConfigError(f"{path} is not a file, nor the name of a bundled config; choose {', '.join(choices)}")


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys, which PyYAML silently overwrites, and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"it nests deeper than {MAX_DEPTH} levels", None)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.composer.ComposerError(None, None, f"key {key!r} is given twice", node.start_mark)
        return node


def check_size(content: object) -> None:
    """Refuse plain values that are deeper or, with shared values expanded, larger than any config.

    Configs are also read from checkpoints of others. A few lists that contain each other ten times expand to more than
    any memory.

    Raises:
        ConfigError: the values are too deep or too large.
    """
    try:
        size = _size(content, _values_in, {})
    except RecursionError:
        size = MAX_NODES + 1
    if size > MAX_NODES:
        raise ConfigError(f"the config has more than {MAX_NODES} values; it is damaged, or not a config")


def _size(value: Any, children: Callable[[Any], list[Any]], known: dict[int, int]) -> int:
    """Count a value and its descendants. A shared value counts each time; `known` caches its size by id."""
    if id(value) not in known:
        # A value that contains itself meets this entry, and so counts as too large instead of recursing for ever.
        known[id(value)] = MAX_NODES + 1
        known[id(value)] = 1 + sum(_size(child, children, known) for child in children(value))
    return known[id(value)]


def _nodes_in(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return [*node.value] if isinstance(node, yaml.CollectionNode) else []


def _values_in(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return [*value] if isinstance(value, list | tuple | set) else []


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override; write key=value, such as train.lr=1e-3")
    try:
        value = parse_yaml(text)
    except ValueError:
        raise ConfigError(f"{override[:200]!r}: the value is not YAML; quote it") from None
    if isinstance(value, dict) and (joined := next((k for k, v in value.items() if v is None and ":" in str(k)), None)):
        raise ConfigError(
            f"{override[:200]!r}: YAML needs a blank after the colon: {str(joined).replace(':', ': ', 1)}"
        )
    *sections, last = key.split(".")
    for section in sections:
        # `ewa.num_experts=8` also enables a section that is absent or null.
        inner = {} if content.get(section) is None else content[section]
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r}: {section!r} holds a value, not a section")
        # A copy, because a YAML alias makes two sections the same dict, and the override is for one of them.
        content[section] = dict(inner)
        content = content[section]
    content[last] = value
