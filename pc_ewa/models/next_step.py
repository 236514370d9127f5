"""The training that starts from a trained model."""

from typing import NamedTuple


class NextStep(NamedTuple):
    """A model's `next_step`, which the summary of its training suggests.

    Attributes:
        model: the model that starts from the weights; one that `needs_tokenizer` takes them as its tokenizer.
        configs: bundled configs to train it with: that for the same dataset is suggested, or else the last.
        why: in a few words.
    """

    model: str
    configs: tuple[str, ...]
    why: str


FINE_TUNING = ("quickstart_finetune", "finetune/modelnet40")
