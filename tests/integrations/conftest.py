"""What a checkout does to the trainers of others."""

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_datasets_of_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are not installed, a checkout's folder `datasets` passes for them if Python runs from there."""
    monkeypatch.setattr("transformers.trainer.is_datasets_available", lambda: False)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        yield
