"""Configs as plain values: YAML files as people write them, and `key=value` overrides."""

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from pc_ewa.bundled import bundled_configs, find_config
from pc_ewa.errors import ConfigError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of keys and values, by its path or by the name of a bundled one.

    Raises:
        ConfigError: no such file, or one that holds something else.
    """
    path = _find(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        held = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{path} holds {held}; expected keys and values, see configs/quickstart.yaml")
    return content


def apply_overrides(content: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Change a config given as plain values, in place, by `key=value` with dotted keys and YAML values."""
    for override in overrides:
        _apply(content, override)
    return content


def _find(path: str | Path) -> Path:
    found = find_config(path)
    if found is not None:
        return found
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    beside = sorted(map(str, folder.glob("[!.]*.y*ml")))
    if beside:
        raise ConfigError(f"{path} is not a file; there are {', '.join(beside)}")
    names = bundled_configs()
    close = difflib.get_close_matches(path.with_suffix("").as_posix(), names, n=3, cutoff=0.5)
    choices = close or [name for name in names if "/" not in name]
    raise ConfigError(f"{path} is not a file, nor the name of a bundled config; choose {', '.join(choices)}")


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 5e-4 is a number (YAML 1.1 wants 5.0e-4), a key given twice an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.composer.ComposerError(None, None, f"key {key!r} is given twice", node.start_mark)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r} is not an override; write key=value, such as train.lr=1e-3")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"{override!r}: the value is not YAML; quote it") from None
    *sections, last = key.split(".")
    for section in sections:
        # `ewa.num_experts=8` also switches a section on that is absent or null.
        inner = {} if content.get(section) is None else content[section]
        if not isinstance(inner, dict):
            raise ConfigError(f"{override!r}: {section!r} holds a value, not a section")
        # A copy, because the two sections that a YAML alias makes are one dict.
        content[section] = dict(inner)
        content = content[section]
    content[last] = value
