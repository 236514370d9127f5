"""Keys of files become keys of models; a head of more classes is cut."""

from collections.abc import Callable

import pytest
import torch
from small_models import small, snapshot
from torch import Tensor, nn

from pc_ewa.models.checkpoints.keys import fit_head, rename_keys

Build = Callable[..., nn.Module]
HEAD_8 = ("cls_head_finetune.8.weight", "cls_head_finetune.8.bias")

# A Point-BERT pre-training file, as different models see it
POINT_BERT = ("transformer_q.norm.weight", "transformer_q.norm.bias", "transformer_q.cls_token",
              "transformer_q.cls_head.0.weight", "transformer_k.norm.weight", "dvae.codebook", "dvae.norm.weight",
              "queue")  # fmt: skip


def renamed(keys: tuple[str, ...], wanted: tuple[str, ...]) -> list[str]:
    """What each key is called then; the tensors tell which is which."""
    state = {key: torch.tensor(i) for i, key in enumerate(keys)}
    result = {int(value): key for key, value in rename_keys(state, wanted).items()}
    return [result[i] for i in range(len(keys))]


@pytest.mark.parametrize("wrapper", ["", "module.", "base_model.", "module.base_model."])
def test_the_prefix_where_most_of_the_model_is_goes(wrapper: str) -> None:
    keys = tuple(wrapper + key for key in POINT_BERT)
    assert renamed(keys, POINT_BERT) == list(POINT_BERT), "the pre-training model itself"
    backbone = ["norm.weight", "norm.bias", "cls_token", *POINT_BERT[3:]]
    assert renamed(keys, ("cls_token", "norm.weight", "norm.bias", "cls_head_finetune.0.weight")) == backbone
    assert renamed(keys, ("codebook", "norm.weight")) == [*POINT_BERT[:5], "codebook", "norm.weight", "queue"]
    assert renamed(keys, ("stem.weight",)) == list(POINT_BERT), "nothing of it is anywhere"


def test_the_contrastive_head_is_renamed_only_for_a_model_that_has_it() -> None:
    query = tuple(key.removeprefix("transformer_q.") for key in POINT_BERT[:4])
    assert renamed(POINT_BERT[:4], query) == list(query)


def test_a_bare_key_gives_way_to_one_under_the_prefix() -> None:
    state = {
        "MAE_encoder.norm.weight": torch.tensor(1),
        "norm.weight": torch.tensor(2),
        "MAE_encoder.a": torch.zeros(1),
    }
    assert rename_keys(state, ["norm.weight", "a"])["norm.weight"] == 1


# Heads of more classes


def test_a_head_of_more_classes_is_cut_to_the_first(classifier: Build, clouds: Callable[..., Tensor]) -> None:
    wide, model = classifier(seed=1, num_classes=40).eval(), classifier(num_classes=15).eval()
    state = snapshot(wide)
    fitted, note = fit_head(state, model)
    assert note is not None
    assert "40 outputs" in note
    assert "15 classes" in note
    assert list(fitted) == list(state)
    model.load_state_dict(fitted, strict=True)
    torch.testing.assert_close(model(clouds(0, 2, 32)), wide(clouds(0, 2, 32))[:, :15], rtol=0, atol=1e-6)
    assert state[HEAD_8[0]].shape[0] == 40, "what was given stays as it was"


@pytest.mark.parametrize(
    "other",
    [{"num_classes": 5}, {"num_classes": 4}, {"dim": 24}, {"depth": 1}],
    ids=["equal", "fewer", "wider", "less"],
)
def test_other_heads_stay_as_they_are(other: dict, classifier: Build) -> None:
    state = snapshot(classifier(**other))
    fitted, note = fit_head(state, classifier(num_classes=5))
    assert note is None
    assert fitted is state


def test_a_damaged_head_is_left_to_strict_loading(classifier: Build) -> None:
    model, state = classifier(num_classes=5), snapshot(classifier(num_classes=40))
    narrow = state | {HEAD_8[0]: torch.zeros(40, 100)}
    uneven = state | {HEAD_8[1]: torch.zeros(39)}
    halved = {key: value for key, value in state.items() if key != HEAD_8[1]}
    for wrong in (narrow, uneven, halved, {}):
        assert fit_head(wrong, model) == (wrong, None)


def test_only_classifiers_have_a_head_to_cut() -> None:
    state = snapshot(small("point_mae", group_size=5))
    assert fit_head(state, small("point_mae")) == (state, None)
    state = snapshot(nn.Linear(3, 40))
    assert fit_head(state, nn.Linear(3, 5)) == (state, None)
