"""The types that a checker sees are those that there are."""

import sys
import typing

import pytest
from small_models import small
from torch import nn

import pc_ewa
from pc_ewa.models import MODELS, create_model


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 keeps no overloads")
def test_create_model_is_typed_by_every_name() -> None:
    *named, last = typing.get_overloads(create_model)  # type: ignore[attr-defined]
    hints = [typing.get_type_hints(overload) for overload in named]
    assert {typing.get_args(hint["name"])[0]: hint["return"] for hint in hints} == MODELS
    assert typing.get_type_hints(last)["return"] is nn.Module


def test_upcycling_and_merging_return_the_model_that_they_got() -> None:
    model = small("point_mae_classifier")
    assert pc_ewa.upcycle(model, num_experts=2) is model
    assert pc_ewa.merge_experts(model) is model
    for function in (pc_ewa.upcycle, pc_ewa.merge_experts):
        hints = typing.get_type_hints(function)
        assert hints["model"] is hints["return"]
        assert isinstance(hints["return"], typing.TypeVar)


def test_every_model_of_ours_predicts_and_saves() -> None:
    for model in MODELS.values():
        assert issubclass(model, pc_ewa.models.base.PointModel)  # type: ignore[attr-defined]
