"""Write what editors and readers know of configs: python docs/config_keys.py [--check].

Makes docs/config.md and the JSON Schemas in configs/schema/ from the code that checks configs; --check changes nothing,
and says which of them are stale.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pc_ewa.compare.schema import comparison_schema
from pc_ewa.config.schema import Schema, experiment_schema
from pc_ewa.data import DATASETS
from pc_ewa.models import MODELS
from pc_ewa.trackers import TRACKERS

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE, EXPERIMENT, COMPARISON = "docs/config.md", "configs/schema/experiment.json", "configs/schema/comparison.json"

INTRODUCTION = """\
# Every key of a config

Do not edit this page: `python docs/config_keys.py` makes it from the code that checks a config.

A config is a YAML file of the keys that differ from their defaults. Any key is also changed on the command line, as
`section.key=value`; `section.key=null` and `section=null` leave one out. A wrong key or value is one line that names
the nearest one, before anything starts. `config.yaml` of a run folder shows every key, with its default.

```bash
pc-ewa train quickstart --check train.epochs=30 ewa.num_experts=8
```

**In an editor**: the first line of each bundled config names its JSON Schema. YAML extensions of VS Code, JetBrains and
Neovim read it: they complete keys, show their meaning and underline mistakes. In a config of yours give the path of
`experiment.json` or `comparison.json`; they are in `schema/` of the folder of the bundled configs, which `pc-ewa info`
prints.

```yaml
# yaml-language-server: $schema=configs/schema/experiment.json
```

The schema knows keys, types and bounds. What depends on several keys, such as the points that a model needs, is checked
by `--check`.
"""
HEADER = "| key | values | default | meaning |\n|---|---|---|---|"


def files() -> dict[str, str]:
    """Return the content of every file, by its path in the repository."""
    experiment, comparison = experiment_schema(), comparison_schema()
    return {
        PAGE: "\n\n".join([INTRODUCTION.rstrip(), *_experiment(experiment), *_comparison(comparison)]) + "\n",
        EXPERIMENT: json.dumps(experiment, indent=1, ensure_ascii=False) + "\n",
        COMPARISON: json.dumps(comparison, indent=1, ensure_ascii=False) + "\n",
    }


def stale(root: Path = REPOSITORY) -> list[str]:
    """Return the files that are not as the code would make them."""
    return [path for path, text in files().items() if not _is(root / path, text)]


def _is(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _experiment(schema: Schema) -> Iterator[str]:
    known = schema["definitions"]
    yield f"## An experiment\n\n{_text(schema)}"
    yield _rows(schema["properties"], schema["required"])
    shared = known["Data.sweethome3d"]["properties"]  # a dataset without keys of its own
    yield f"### data\n\n{_text(known['Data'])}"
    yield _rows(shared, ["name"])
    for name, dataset in DATASETS.items():
        own = _own(known[f"Data.{name}"], shared)
        if own:
            yield f"#### data, name: {name}\n\n{dataset.title[:1].upper()}{dataset.title[1:]}."
            yield _rows(own, known[f"Data.{name}"]["required"])
    yield f"### model\n\n{_text(known['Model'])} `num_classes` and the like come from the data."
    for name, model in MODELS.items():
        yield f"#### model, name: {name}\n\n{_first_sentence(model)}"
        yield _rows(_own(known[f"Model.{name}"], {"name": None}), known[f"Model.{name}"]["required"])
    for title, key in {"ewa": "Ewa", "ewa.gate": "Gate", "average": "Average", "probe": "Probe"}.items():
        yield _section(title, known[key])
    for title, key in {"augment": "Augment", "train": "Train", "train.slow_ffn": "SlowFfn"}.items():
        yield _section(title, known[key])
    for name in TRACKERS:
        yield _section(name, schema["properties"][name]["anyOf"][0])


def _comparison(schema: Schema) -> Iterator[str]:
    yield f"## A comparison\n\n{_text(schema)} Run it by `pc-ewa compare FILE`."
    yield _rows(schema["properties"], schema["required"])
    yield _section("variants.NAME", schema["definitions"]["Variant"])
    yield _section("sweep", schema["definitions"]["Sweep"])


def _section(title: str, schema: Schema) -> str:
    rows = _rows(schema["properties"], schema.get("required", [])) if schema.get("properties") else "It has no keys."
    return f"### {title}\n\n{_text(schema)}\n\n{rows}"


def _own(schema: Schema, shared: dict[str, Any]) -> dict[str, Any]:
    """Leave out the keys that others have too."""
    return {key: value for key, value in schema["properties"].items() if key not in shared}


def _rows(properties: dict[str, Any], required: list[str]) -> str:
    lines = [HEADER]
    for key, value in properties.items():
        default = f"`{_written(value['default'])}`" if "default" in value else ""
        default = "required" if key in required else default
        lines.append(f"| `{key}` | {values(value)} | {default} | {_text(value)} |")
    return "\n".join(lines)


def values(schema: Schema) -> str:
    """Say in words which values a key takes.

    Example:
        >>> values({"type": "integer", "minimum": 1}), values({"enum": ["ema", "swa"]})
        ('integer at least 1', '`ema`, `swa`')
    """
    if "$ref" in schema:
        return "section"
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(values(each) for each in schema["anyOf"]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        items = schema.get("items", {})
        return f"[{', '.join(map(values, items))}]" if isinstance(items, list) else f"list of: {values(items)}"
    if kind == "object":
        return "section" if "properties" in schema else "sections by name"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    bounds = [f"{word} {_written(schema[key])}" for key, word in words.items() if key in schema]
    return " ".join([{"string": "text", "boolean": "`true`, `false`"}.get(kind, kind), ", ".join(bounds)]).rstrip()


def _written(value: Any) -> str:
    """Write a value as YAML in one line, numbers in six digits."""
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.6g}"
    if isinstance(value, dict):
        return "..."
    return str(value) if isinstance(value, str) else json.dumps(value)


def _text(schema: Schema) -> str:
    return str(schema.get("description", "")).replace("|", "\\|")


def _first_sentence(model: type[Any]) -> str:
    return str(model.__doc__).strip().splitlines()[0]


def main(arguments: list[str] | None = None) -> None:
    """Write the files, or only say which are stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something is stale")
    if parser.parse_args(arguments).check:
        found = stale()
        print("\n".join(f"{path} is stale; run python docs/config_keys.py" for path in found) or "all files are fresh")
        sys.exit(1 if found else 0)
    for path, text in files().items():
        (REPOSITORY / path).parent.mkdir(exist_ok=True)
        (REPOSITORY / path).write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
