"""EWACallback: EWA in the Trainer of Hugging Face's transformers."""

import warnings
from importlib.util import find_spec
from inspect import signature
from types import MethodType
from typing import Any

from torch import nn

from pc_ewa.errors import TrainingError
from pc_ewa.ewa import ExpertAverager, expert_layers, merge_experts
from pc_ewa.integrations.recipe import Recipe, summary, with_dense_weights
from pc_ewa.package import missing_package

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
    from transformers.utils.import_utils import is_datasets_available
except ModuleNotFoundError as error:
    raise missing_package(error, "pc_ewa.integrations.transformers") or error from None


class EWACallback(TrainerCallback, ExportableState):
    """Trains a model with Experts Weights Averaging; what the trainer saves loads into the dense model too.

        trainer = Trainer(model, args, train_dataset=..., callbacks=[EWACallback(num_experts=4, share_rate=0.3)])

    The model is upcycled as the trainer takes it, and the experts are averaged after each optimizer step. All that
    `save_pretrained` and the trainer's checkpoints hold are the experts, to resume from, and beside them the merged
    weights under the model's own keys: `from_pretrained` on any of these folders gives the merged model. A resumed run
    goes on in its schedule. "ewa_share_rate" and "ewa_spread" join the trainer's `log_history`, and the logs of the
    callbacks that come after this one.

    Args:
        merge: make the model dense again at the end of training, its weights the mean of the experts.
        **ewa: arguments of `pc_ewa.upcycle` and `pc_ewa.ExpertAverager`. `total_steps` is the trainer's.

    Raises:
        ConfigError: an unknown argument.
        ValueError: as the trainer is made or begins to train, as in `upcycle` and `ExpertAverager`.
        TrainingError: as it begins to train: a dense model, a checkpoint that has no experts, or a folder `datasets`
            that transformers takes for a package.
    """

    def __init__(self, *, merge: bool = False, **ewa: Any) -> None:
        self.merge, self.recipe = merge, Recipe(ewa)
        self.averager: ExpertAverager | None = None
        self.steps_done = 0

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Upcycle the model before there is an optimizer, and have it save the merged weights too."""
        _check_datasets()
        _save_merged_weights_too(self.recipe.upcycle(kwargs["model"]))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the averager to the optimizer."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        if not expert_layers(model):
            raise TrainingError(
                "the model has no experts, as after a merge, with model_init, or when the callback is added late; give "
                "Trainer a model, and the callback in its callbacks"
            )
        if state.global_step:
            self.steps_done = _steps_done(state, type(self).__name__)
        if hasattr(model, "peft_config"):
            _check_peft(resumed=bool(state.global_step))
        self.averager = self.recipe.averager(model, [optimizer], state.max_steps, self.steps_done)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the share rate and the spread of the experts to what is logged of training."""
        logs = kwargs.get("logs") or {}
        if self.averager and "loss" in logs:
            values = summary(self.averager)
            logs.update(values)
            state.log_history[-1].update(values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the optimizer, and merge the experts if that is wanted."""
        if self.averager:
            self.steps_done = self.averager.steps_done
            self.averager.detach()
        self.averager = None
        if self.merge:
            merge_experts(kwargs["model"]).__dict__.pop("save_pretrained", None)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the callback: how to make it again, and the steps done."""
        arguments = {name: value for name, value in self.recipe.arguments.items() if name != "ffn"}  # may be no JSON
        steps_done = self.averager.steps_done if self.averager else self.steps_done
        return {"args": {"merge": self.merge} | arguments, "attributes": {"steps_done": steps_done}}


def _save_merged_weights_too(model: nn.Module) -> None:
    """Have `save_pretrained` of this one model write the merged weights beside the experts."""
    if not hasattr(model, "save_pretrained") or hasattr(model, "peft_config"):
        return  # a plain module is saved by its state_dict, and peft saves adapters alone

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        if expert_layers(self) and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = with_dense_weights(self)
            # The trainer resumes by the names that the parameters have; version 5 would save some by older names.
            if "save_original_format" in signature(type(self).save_pretrained).parameters:
                kwargs.setdefault("save_original_format", False)
        return type(self).save_pretrained(self, save_directory, *args, **kwargs)

    # A method of the model: copies of the model have their own.
    model.__dict__["save_pretrained"] = MethodType(save_pretrained, model)


def _check_datasets() -> None:
    """Raise TrainingError where Python finds a folder `datasets`, as in a checkout of ours, but not that package."""
    spec = find_spec("datasets")
    if spec and spec.origin is None and is_datasets_available():
        folder = next(iter(spec.submodule_search_locations or ["datasets"]))
        raise TrainingError(
            f"transformers takes the folder {folder} for the package datasets; run from another folder, or pip install "
            "datasets"
        )


def _steps_done(state: TrainerState, name: str) -> int:
    """Return the optimizer steps that a checkpoint's averager has seen."""
    callbacks: Any = state.stateful_callbacks  # by name, once they come from a file
    saved = callbacks.get(name)
    saved = saved[0] if isinstance(saved, list) else saved
    if not saved:
        raise TrainingError(
            "the checkpoint was saved without experts, and its optimizer knows none; load its weights with "
            "from_pretrained(), and train without resume_from_checkpoint"
        )
    return saved["attributes"]["steps_done"]


def _check_peft(resumed: bool) -> None:
    if resumed:
        raise TrainingError("peft's checkpoints hold adapters alone, not the experts: such a run cannot be resumed")
    warnings.warn(
        "peft saves adapters alone, not the experts: set merge=True, and save the whole model after training, by "
        "trainer.model.merge_and_unload().save_pretrained(folder)",
        stacklevel=3,
    )
