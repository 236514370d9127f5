"""The types that a checker sees are those that there are."""

import ast
import inspect
import typing

from small_models import small

import pc_ewa
from pc_ewa import models
from pc_ewa.models import MODELS


def test_create_model_is_typed_by_every_name() -> None:
    """As a checker reads it; Python keeps overloads from 3.11 on."""
    tree = ast.parse(inspect.getsource(models))
    overloads = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "create_model"][:-1]
    hints = {ast.unparse(node.args.args[0].annotation): ast.unparse(node.returns) for node in overloads}  # type: ignore[arg-type]
    assert hints.pop("str") == "nn.Module"
    assert hints == {f"Literal['{name}']": model.__name__ for name, model in MODELS.items()}


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
