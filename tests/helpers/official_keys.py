"""Keys and shapes of the official state_dicts, kept as facts in tests/models/keys/."""

import json
from pathlib import Path
from typing import Any, NamedTuple

KEYS = Path(__file__).parent.parent / "models" / "keys"


class OfficialKeys(NamedTuple):
    """Number of parameters, and the shape of each tensor by its key, in the order of the state_dict."""

    parameters: int
    shapes: dict[str, tuple[int, ...]]


# Models of other sizes than the default that the official code was run at, by the names of their files.
TINY: dict[str, dict[str, Any]] = {
    "point_mae_tiny": {"dim": 48, "depth": 2, "num_heads": 3, "num_groups": 16, "group_size": 16, "decoder_depth": 2},
    "point_mae_classifier_tiny": {"dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10},
    "point_bert_classifier_tiny": {"dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10, "encoder_dim": 32},
}


def official_keys(name: str) -> OfficialKeys:
    """Read the facts of a model, such as "dvae" or "point_mae_tiny"."""
    content = json.loads((KEYS / f"{name}.json").read_text(encoding="utf-8"))
    return OfficialKeys(content["parameters"], {key: tuple(shape) for key, shape in content["shapes"].items()})
