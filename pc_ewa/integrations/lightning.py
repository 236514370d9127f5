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
    """Callback that trains a LightningModule with Experts Weights Averaging.

        trainer = Trainer(callbacks=[EWACallback(num_experts=4, share_rate=0.3)])

    In `fit` the module is upcycled before its optimizers are built. The experts are averaged after each optimizer step.
    "ewa_share_rate" and "ewa_spread" are logged every `log_every_n_steps`. A checkpoint has the experts, to resume
    from, and under "dense_state_dict" the merged weights under the keys of the dense module. A resumed run continues
    its schedule. If it resumes at the beginning of an epoch, it routes the tokens as an uninterrupted run.

    Args:
        merge: merge the experts after `fit`, so that the module is dense again.
        **ewa: arguments of `pc_ewa.upcycle` and `pc_ewa.ExpertAverager`. `total_steps` defaults to that of the trainer.

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
        """Upcycle the module, and prepare it to load checkpoints with experts and without."""
        if stage == "fit":
            self.recipe.upcycle(pl_module)
        _watch_loading(pl_module, self.recipe, fitting=stage == "fit")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random state of the checkpoint, before the loader draws the order of batches from it."""
        self._restore_random_state()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the averager to the optimizer of the experts."""
        total_steps = trainer.estimated_stepping_batches
        if total_steps == float("inf") and "total_steps" not in self.recipe.arguments:
            raise TrainingError("the trainer has no last step; give it max_epochs or max_steps, or EWA total_steps")
        steps = int(total_steps) if total_steps != float("inf") else 1
        self.averager = self.recipe.averager(pl_module, trainer.optimizers, steps, self._steps_done)
        # Strategies with `restore_checkpoint_after_setup`, such as FSDP, restore callbacks after on_fit_start. With
        # others there is nothing left to restore here.
        self._restore_random_state()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any, **kwargs: Any) -> None:
        """Log the share rate and the spread of the experts."""
        every = getattr(trainer, "log_every_n_steps", 0) or 1  # 0 means never, and then there is no logger either
        if self.averager and trainer.loggers and trainer.global_step % every == 0:
            pl_module.log_dict(summary(self.averager), on_step=True, on_epoch=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach the averager from the optimizer."""
        if self.averager:
            self._steps_done = self.averager.steps_done
            self.averager.detach()
        self.averager = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Merge the experts if `merge` is True."""
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
        """Return the state that a checkpoint needs to continue the schedule and the random routing."""
        steps_done = self.averager.steps_done if self.averager else self._steps_done
        return {"steps_done": steps_done, "random_state": _random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` returned."""
        self._steps_done, self._random_state = state_dict["steps_done"], state_dict["random_state"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the merged weights, unless the experts are sharded over processes."""
        sharded = any(
            hasattr(p, "placements") for layer in expert_layers(pl_module).values() for p in layer.parameters()
        )
        if not sharded:
            checkpoint["dense_state_dict"] = dense_state_dict(pl_module)


def _watch_loading(module: LightningModule, recipe: Recipe, fitting: bool) -> None:
    """Wrap the hook `on_load_checkpoint` of the module, to upcycle or merge it before weights are loaded."""
    # Lightning calls this hook of the module before it loads the weights, and hooks of callbacks only after that.
    inner = module.on_load_checkpoint

    def on_load_checkpoint(self: LightningModule, checkpoint: dict[str, Any]) -> None:
        upcycled = any(".experts." in key for key in checkpoint["state_dict"])
        if fitting and not upcycled:
            raise TrainingError(
                "the checkpoint was saved without experts, and its optimizer has no state for them; load its weights "
                "into the module, and fit without ckpt_path"
            )
        if upcycled:
            recipe.upcycle(self)  # also after a merge; in evaluation the mean of the experts runs
        else:
            merge_experts(self)
        inner(checkpoint)

    module.on_load_checkpoint = MethodType(on_load_checkpoint, module)  # type: ignore[method-assign]


def _stop_watching(module: LightningModule) -> None:
    module.__dict__.pop("on_load_checkpoint", None)


def _random_state() -> dict[str, Tensor | list[Tensor]]:
    """Return the state of the generators that route the tokens."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}
