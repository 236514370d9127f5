"""EWACallback: EWA in a Lightning Trainer."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from pc_ewa.errors import TrainingError
from pc_ewa.ewa import ExpertAverager, dense_state_dict, expert_layers, merge_experts
from pc_ewa.integrations.recipe import Recipe, summary
from pc_ewa.package import missing_package

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise missing_package(error, "pc_ewa.integrations.lightning") or error from None


class EWACallback(Callback):
    """Trains a LightningModule with Experts Weights Averaging; the checkpoints hold the merged weights too.

        trainer = Trainer(callbacks=[EWACallback(num_experts=4, share_rate=0.3)])

    In `fit` the module is upcycled before its optimizers are made, and the experts are averaged after each optimizer
    step; "ewa_share_rate" and "ewa_spread" are logged every `log_every_n_steps`. A checkpoint has the experts, to
    resume from, and under "dense_state_dict" the merged weights by the module's own keys. A resumed run goes on in its
    schedule; started at the beginning of an epoch, it deals the tokens as the run of one piece would have.

    Args:
        merge: make the module dense again after `fit`, its weights the mean of the experts.
        **ewa: arguments of `pc_ewa.upcycle` and `pc_ewa.ExpertAverager`. `total_steps` is the trainer's.

    Raises:
        ConfigError: an unknown argument.
        ValueError: in `fit`, as in `upcycle` and `ExpertAverager`.
        TrainingError: in `fit`, a checkpoint that was saved without experts.
    """

    def __init__(self, *, merge: bool = False, **ewa: Any) -> None:
        self.merge, self.recipe = merge, Recipe(ewa)
        self.averager: ExpertAverager | None = None
        self._steps_done = 0
        self._random_state: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Upcycle the module, and let it take checkpoints with experts and without."""
        if stage == "fit":
            self.recipe.upcycle(pl_module)
        _watch_loading(pl_module, self.recipe, fitting=stage == "fit")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the random numbers of the checkpoint, before the batches are shuffled with them."""
        self._restore_random_state()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the averager to the optimizer of the experts."""
        total_steps = trainer.estimated_stepping_batches
        if total_steps == float("inf") and "total_steps" not in self.recipe.arguments:
            raise TrainingError("the trainer has no last step; give it max_epochs or max_steps, or EWA total_steps")
        steps = int(total_steps) if total_steps != float("inf") else 1
        self.averager = self.recipe.averager(pl_module, trainer.optimizers, steps, self._steps_done)
        self._restore_random_state()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any, **kwargs: Any) -> None:
        """Log how strongly the experts are averaged, and how far apart they are."""
        every = getattr(trainer, "log_every_n_steps", 0) or 1  # 0: never, and then there is no logger either
        if self.averager and trainer.loggers and trainer.global_step % every == 0:
            pl_module.log_dict(summary(self.averager), on_step=True, on_epoch=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the optimizer."""
        if self.averager:
            self._steps_done = self.averager.steps_done
            self.averager.detach()
        self.averager = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge the experts if that is wanted."""
        _stop_watching(pl_module)
        if self.merge:
            merge_experts(pl_module)

    def _restore_random_state(self) -> None:
        state, self._random_state = self._random_state, {}
        if state:
            torch.set_rng_state(state["cpu"].cpu())
        if state and state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on with the schedule and with the dealing of tokens."""
        steps_done = self.averager.steps_done if self.averager else self._steps_done
        return {"steps_done": steps_done, "random_state": _random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._steps_done, self._random_state = state_dict["steps_done"], state_dict["random_state"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the merged weights, unless the experts are sharded over processes."""
        sharded = any(
            hasattr(p, "placements") for layer in expert_layers(pl_module).values() for p in layer.parameters()
        )
        if not sharded:
            checkpoint["dense_state_dict"] = dense_state_dict(pl_module)


def _watch_loading(module: LightningModule, recipe: Recipe, fitting: bool) -> None:
    """Have the module told which weights are loaded, in the one hook that comes before them: its own."""
    inner = module.on_load_checkpoint

    def on_load_checkpoint(self: LightningModule, checkpoint: dict[str, Any]) -> None:
        upcycled = any(".experts." in key for key in checkpoint["state_dict"])
        if fitting and not upcycled:
            raise TrainingError(
                "the checkpoint was saved without experts, and its optimizer knows none; load its weights into the "
                "module, and fit without ckpt_path"
            )
        if upcycled:
            recipe.upcycle(self)  # again, after a merge; evaluation runs the mean of the experts
        else:
            merge_experts(self)
        inner(checkpoint)

    module.on_load_checkpoint = MethodType(on_load_checkpoint, module)  # type: ignore[method-assign]


def _stop_watching(module: LightningModule) -> None:
    module.__dict__.pop("on_load_checkpoint", None)


def _random_state() -> dict[str, Tensor | list[Tensor]]:
    """Return the state of the generators that deal the tokens."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}
