"""JSON Schema of a comparison's config, for editors."""

from pc_ewa.compare.comparison import Comparison
from pc_ewa.config.schema import Schema, plain_schema


def comparison_schema() -> Schema:
    """Return the JSON Schema of a comparison's config.

    Example:
        >>> comparison_schema()["required"]
        ['title', 'experiment', 'seeds', 'variants']
    """
    schema = plain_schema(Comparison)
    schema["required"].remove("output")  # the default comes from the name of the file, see `load_plan`
    return schema
