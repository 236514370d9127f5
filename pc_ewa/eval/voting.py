"""Voting: the mean of the logits over several random draws of each cloud."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from pc_ewa.data import Clouds
from pc_ewa.data.transforms import normalize_unit_sphere, scale_and_translate, subsample_train
from pc_ewa.errors import ConfigError
from pc_ewa.eval.accuracy import Accuracy, evaluate_classifier
from pc_ewa.eval.batches import EvalBatch
from pc_ewa.eval.settings import EvalSettings
from pc_ewa.streams import stream


def evaluate_voted(
    model: nn.Module,
    clouds: Clouds,
    settings: EvalSettings,
    *,
    votes: int,
    seed: int = 0,
    scale: tuple[float, float] = (2 / 3, 3 / 2),
    shift: float = 0.2,
    device: torch.device | None = None,
    title: str = "voting",
) -> Accuracy:
    """Classify every cloud once, by the mean of its logits over `votes` random draws.

    Each vote draws each cloud again, as in training: more farthest points than needed, a random subset of them, then a
    random scale and shift, but no rotation. A cloud of exactly `num_points` is only scaled and shifted. The same call
    gives the same result for any number of processes. Another batch size or type of device draws other numbers.

    A vote is that of Point-MAE and Point-BERT, which take 10. They publish the largest of 299 (Point-BERT: 9) such
    accuracies on the test set, which is above the expected accuracy of any of them. Here the result is one mean, never
    a maximum. They also draw one subset for the whole batch; here each cloud has a separate one.

    Args:
        model: clouds (B, N, 3) -> logits (B, classes).
        clouds: the clouds to classify.
        settings: the presentation of the clouds. Its sampling is replaced by that of the votes.
        votes: number of draws of each cloud, 2 or more.
        seed: seed of the draws, 0 or more.
        scale: lowest and highest scale factor, for each axis.
        shift: largest shift in either direction, for each axis.
        device: the device of the batches. None: that of the model.
        title: title of the progress bar.

    Raises:
        ConfigError: fewer than 2 votes.
        ValueError: fewer points than `num_points`, or a model with another number of classes.
    """
    if votes < 2:
        raise ConfigError(f"votes={votes}: voting needs 2 or more; votes=1 is the plain evaluation")

    def predict(batch: EvalBatch) -> Tensor:
        points = normalize_unit_sphere(batch.stored) if settings.normalize else batch.stored
        logits = []
        for vote in range(votes):
            # Seeded by the number of the batch, not by a running generator: whichever process evaluates it draws the
            # same.
            generator = torch.Generator(points.device).manual_seed(stream(seed, vote, batch.number))
            drawn = subsample_train(points, settings.num_points, generator)
            logits.append(model(scale_and_translate(drawn, generator, scale, shift)).float())
        return torch.stack(logits).mean(0)

    accuracy = evaluate_classifier(model, clouds, settings, device=device, title=title, predict=predict)
    return replace(accuracy, votes=votes)
