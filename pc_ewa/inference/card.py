"""The model card of a saved folder: a README for people who want to use the model."""

import json
import shlex
from collections.abc import Mapping
from typing import Any


def model_card(about: Mapping[str, Any], name: str, notes: str = "") -> str:
    """Return the text of README.md, made from config.json.

    Args:
        about: the content of config.json.
        name: name of the folder or of the repository, for the title and the code.
        notes: Markdown for the end.
    """
    training = about.get("training") or {}
    sections = [
        _header(training.get("licence")),
        f"# {' '.join(name.split())}",
        _what(about),
        _code(name),
        _listed("Classes", about.get("class_names") or []),
        _rows("Input", about.get("preprocessing") or {}),
        _rows("Metrics", training.get("metrics") or {}),
        _data(training.get("data") or {}),
        _recipe(training.get("config") or {}),
        notes.strip(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _header(licence: str | None) -> str:
    """Return the YAML header that the Hub reads."""
    # A JSON string is valid YAML, with all characters escaped that could break out of it.
    known = f"license: {json.dumps(licence)}\n" if licence else ""
    return f"---\nlibrary_name: pc-ewa\n{known}tags:\n- point-cloud\n- 3d\n- experts-weights-averaging\n---"


def _what(about: Mapping[str, Any]) -> str:
    model = about["model"]
    sizes = ", ".join(f"{key} {model[key]}" for key in ("dim", "depth", "num_heads") if key in model)
    with_ewa = ((about.get("training") or {}).get("config") or {}).get("ewa")
    how = (
        " Trained with Experts Weights Averaging and merged: at inference it is the plain network." if with_ewa else ""
    )
    return f"`{model['name']}` ({sizes}), {about['parameters']:,} parameters, of pc-ewa {about['pc_ewa']}.{how}"


def _code(name: str) -> str:
    return f"""## Use

```python
import pc_ewa

model = pc_ewa.load_model({json.dumps(name, ensure_ascii=False)})
prediction = model.predict("chair.ply")  # or an array (points, 3), a list, a folder
print(prediction.label, prediction.top(3))
```

or `pc-ewa predict {shlex.quote(name)} chair.ply`."""


def _listed(title: str, names: list[str]) -> str:
    return f"## {title}\n\n{', '.join(names)}" if names else ""


def _rows(title: str, values: Mapping[str, Any]) -> str:
    rows = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in values.items())
    return f"## {title}\n\n| | |\n|---|---|\n{rows}" if rows else ""


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "unknown" if value is None else str(value)
    return " ".join(text.split()).replace("|", r"\|")


def _data(data: Mapping[str, Any]) -> str:
    return f"## Data\n\n{data['title']}; licence of the data: {data['licence']}." if data else ""


def _recipe(config: Mapping[str, Any]) -> str:
    """Return a table of the keys that usually differ between runs. config.json has every key."""
    if not config:
        return ""
    train, ewa = config.get("train") or {}, config.get("ewa") or {}
    rows = {key: train[key] for key in ("epochs", "steps", "batch_size", "lr", "precision") if train.get(key)}
    rows |= {f"ewa.{key}": ewa[key] for key in ("num_experts", "layers", "share_rate", "schedule") if key in ewa}
    return _rows("Training", rows)
