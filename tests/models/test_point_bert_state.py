"""State of Point-BERT's pre-training between steps: the frozen tokenizer, the queue of keys, the momentum encoder."""

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from official_point_bert import TOKENIZER, build
from small_models import snapshot
from torch import Tensor

from pc_ewa import ops
from pc_ewa.ewa import ExpertAverager, expert_layers, merge_experts, upcycle
from pc_ewa.models.dvae import DiscreteVAE
from pc_ewa.models.point_bert import PointBERT

Clouds = Callable[..., Tensor]


def test_the_tokenizer_stays_in_evaluation_unless_it_is_live(clouds: Clouds) -> None:
    points = clouds(0, 3, 40).double()
    for live in (False, True):
        model = build(live_tokenizer=live)
        for mode in (None, True, False):
            if mode is not None:
                assert model.train(mode) is model
            assert model.transformer_k.training == (mode is not False)
            assert {m.training for m in model.dvae.modules()} == {live and mode is not False}
        before = snapshot(model.train())
        model(points)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        assert any(name.startswith("dvae.encoder") for name in changed) == live
        assert all("running" in name or "num_batches" in name for name in changed), "the rest waits for after_step"


def test_a_tokenizer_is_loaded_and_its_encoder_handed_on(clouds: Clouds) -> None:
    torch.manual_seed(0)
    model, tokenizer = build(), DiscreteVAE(**TOKENIZER).double()
    tokenizer(clouds(0, 3, 40).double())  # moves the running statistics
    model.load_tokenizer(tokenizer.state_dict())
    for name, value in tokenizer.state_dict().items():
        places = ["dvae.", "transformer_q.", "transformer_k."] if name.startswith("encoder.") else ["dvae."]
        assert all(torch.equal(model.state_dict()[place + name], value) for place in places)
    assert not any(parameter.requires_grad for parameter in model.dvae.parameters())
    groups, centers = ops.group(clouds(1, 2, 40).double(), 8, 4)
    assert torch.equal(model.dvae.tokenize(groups, centers), tokenizer.eval().tokenize(groups, centers))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_tokenizer({})


def forwards(model: PointBERT, points: Tensor, *keys: Tensor) -> None:
    """Run the model once for each (B, D), which its key network returns before they are normalised."""
    given = iter(keys)
    model.transformer_k.describe = lambda *_: next(given)  # type: ignore[method-assign]
    for key in keys:
        model(points[: len(key)])


def test_the_queue_takes_keys_up_in_order_and_wraps_around(clouds: Clouds) -> None:
    torch.manual_seed(0)
    model, points, keys = build(), clouds(0, 6, 40).double(), torch.randn(22, 6).double()
    unit = keys / keys.norm(dim=1, keepdim=True)
    expected = model.queue.clone()
    forwards(model, points, keys[:4])
    assert torch.equal(model.queue, expected), "nothing moves before after_step"
    model.after_step()
    expected[:, :4] = unit[:4].T
    torch.testing.assert_close(model.queue, expected)
    assert model.queue_ptr.tolist() == [4]
    forwards(model, points, keys[4:7], keys[7:12])  # two parts of one step: 6 slots are left for 8 keys
    model.after_step()
    expected[:, 4:] = unit[4:10].T
    expected[:, :2] = unit[10:12].T
    torch.testing.assert_close(model.queue, expected)
    assert model.queue_ptr.tolist() == [2]
    forwards(model, points, keys[12:17], keys[17:22])  # exactly as many as there are slots
    model.after_step()
    torch.testing.assert_close(model.queue, unit[12:22].T.roll(2, dims=1))
    assert model.queue_ptr.tolist() == [2]
    model.after_step()
    assert model.queue_ptr.tolist() == [2], "keys are taken up once"


def test_keys_of_all_processes_are_taken_up_rank_by_rank(clouds: Clouds, monkeypatch: pytest.MonkeyPatch) -> None:
    def all_gather(everyone: list[Tensor], own: Tensor) -> None:
        for rank, tensor in enumerate(everyone):
            tensor.copy_(own + rank)

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    torch.manual_seed(0)
    model, keys = build(), F.normalize(torch.randn(4, 6).double(), dim=1)
    forwards(model, clouds(0, 2, 40).double(), keys[:2], keys[2:])
    model.after_step()
    torch.testing.assert_close(model.queue[:, :8], torch.cat([keys, keys + 1]).T)
    assert model.queue_ptr.tolist() == [8]


def test_more_keys_than_the_queue_holds_are_refused(clouds: Clouds) -> None:
    model, points = build(queue_size=5), clouds(0, 6, 40).double()
    model(points)
    with pytest.raises(ValueError, match=r"6 keys .* 5.*queue_size.* 6"):
        model.after_step()


def test_only_forwards_that_train_leave_keys(clouds: Clouds) -> None:
    model, points = build(), clouds(0, 3, 40).double()
    with torch.no_grad():
        model(points)
    model.eval()(points)
    model.train().features(points)
    before = model.queue.clone()
    model.after_step()
    assert torch.equal(model.queue, before)
    assert model.queue_ptr.tolist() == [0]


def test_the_key_network_follows_the_weights_and_not_the_buffers(clouds: Clouds) -> None:
    model = build()
    model(clouds(0, 3, 40).double())
    before = snapshot(model)
    model.after_step()
    model.after_step()
    for name, value in model.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "transformer_k" and rest in dict(model.transformer_q.named_parameters()):
            once = 0.9 * before[name] + 0.1 * before[f"transformer_q.{rest}"]
            expected = 0.9 * once + 0.1 * before[f"transformer_q.{rest}"]
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-14)
            assert not torch.equal(value, before[name])
        elif not name.startswith("queue"):
            assert torch.equal(value, before[name]), name


def test_the_key_network_follows_the_mean_of_the_experts() -> None:
    model = build()
    upcycle(model, 3, "all", init="independent")
    assert list(expert_layers(model)) == [f"transformer_q.blocks.blocks.{i}.mlp" for i in range(2)]
    before = snapshot(model)
    averager = ExpertAverager(model, 0.3, "constant")
    model.after_step()
    name = "blocks.blocks.1.mlp.fc1.weight"
    experts = before["transformer_q.blocks.blocks.1.mlp.experts.fc1.weight"]
    expected = 0.9 * before[f"transformer_k.{name}"] + 0.1 * experts.mean(0)
    torch.testing.assert_close(model.state_dict()[f"transformer_k.{name}"], expected, rtol=0, atol=1e-14)
    averager.step()
    model.after_step()
    expected = 0.9 * expected + 0.1 * experts.mean(0)  # averaging moves the experts, not their mean
    assert not torch.equal(model.state_dict()["transformer_q.blocks.blocks.1.mlp.experts.fc1.weight"], experts)
    torch.testing.assert_close(model.state_dict()[f"transformer_k.{name}"], expected, rtol=0, atol=1e-14)
    assert list(merge_experts(model).state_dict()) == list(build().state_dict())
