"""Configs as plain values: YAML files as people write them, and `key=value` overrides."""

import re
from pathlib import Path
from typing import Any

import yaml

from pc_ewa.errors import ConfigError

MAX_DEPTH, MAX_NODES = 50, 100_000


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of keys and values.

    Raises:
        ConfigError: no such file, or one that holds something else.
    """
    path = Path(path)
    if not path.is_file():
        folder = path if path.is_dir() else path.parent
        found = [*folder.glob("[!.]*.y*ml")] or [*Path("configs").rglob("[!.]*.y*ml")]
        there = ", ".join(sorted(map(str, found)))
        raise ConfigError(f"{path} is no file; " + (f"there are {there}" if there else "check the path"))
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None
    if not isinstance(content, dict):
        held = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path} holds {held}; expected keys and values, see configs/quickstart.yaml")
    return content


def apply_overrides(content: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Change a config given as plain values, in place, by `key=value` with dotted keys and YAML values."""
    for override in overrides:
        _apply(content, override)
    return content


def parse_yaml(text: str) -> Any:
    """Read YAML as people write it: 5e-4 is a number (YAML 1.1 wants 5.0e-4).

    Raises:
        ValueError: no YAML, in one line; a key given twice; deeper or, with its aliases written out, larger than any
            config, which would take all memory or time.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_NODES:
            raise ValueError(f"with its aliases written out it has more than {MAX_NODES} values")
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


class _Loader(yaml.SafeLoader):
    """Refuses keys given twice and deep nesting."""

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


def _size(node: Any, known: dict[int, int]) -> int:
    """Count the values of a node with its aliases written out; `known` are those counted before."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES  # met again inside itself: it has no end
        children = [*node.value] if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is no override; write key=value, such as train.lr=1e-3")
    try:
        value = parse_yaml(text)
    except ValueError:
        raise ConfigError(f"{override[:200]!r}: the value is no YAML; quote it") from None
    *sections, last = key.split(".")
    for section in sections:
        # `ewa.num_experts=8` also switches a section on that is absent or null.
        if content.get(section) is None:
            content[section] = {}
        content = content[section]
        if not isinstance(content, dict):
            raise ConfigError(f"{override!r}: {section!r} holds a value, not a section")
    content[last] = value
