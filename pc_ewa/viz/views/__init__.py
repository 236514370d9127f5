"""The views by name. A new view is a file with a record `VIEW`, and a line here."""

from pc_ewa.viz.view import View
from pc_ewa.viz.views import (
    attention,
    augment,
    classes,
    cloud,
    experts,
    mistakes,
    parts,
    patches,
    reconstruction,
    spread,
    tokens,
)

VIEWS: dict[str, View] = {
    "cloud": cloud.VIEW,
    "classes": classes.VIEW,
    "augment": augment.VIEW,
    "patches": patches.VIEW,
    "reconstruction": reconstruction.VIEW,
    "tokens": tokens.VIEW,
    "experts": experts.VIEW,
    "spread": spread.VIEW,
    "attention": attention.VIEW,
    "parts": parts.VIEW,
    "mistakes": mistakes.VIEW,
}
