"""The training that starts from a trained model."""

from typing import NamedTuple


class NextStep(NamedTuple):
    """The `next_step` of a model, which the summary of its training suggests.

    Attributes:
        model: the model that starts from the weights. A model that `needs_tokenizer` takes them as its tokenizer.
        configs: bundled configs to train it with. The one for the same dataset is suggested, or else the last.
        why: the reason in a few words.
    """

    model: str
    configs: tuple[str, ...]
    why: str


FINE_TUNING = ("quickstart_finetune", "finetune/modelnet40")
