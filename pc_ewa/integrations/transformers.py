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
    """Callback that trains a model of transformers with Experts Weights Averaging.

        trainer = Trainer(model, args, train_dataset=..., callbacks=[EWACallback(num_experts=4, share_rate=0.3)])

    The model is upcycled when the trainer is created. The experts are averaged after each optimizer step.
    `save_pretrained` and the checkpoints of the trainer save the experts, to resume from, and the merged weights under
    the keys of the dense model. So `from_pretrained` on any of these folders returns the merged model. A resumed run
    continues its schedule. "ewa_share_rate" and "ewa_spread" are added to the `log_history` of the trainer, and to the
    logs of callbacks that come after this one.

    Args:
        merge: merge the experts at the end of training, so that the model is dense again.
        **ewa: arguments of `pc_ewa.upcycle` and `pc_ewa.ExpertAverager`. `total_steps` defaults to that of the trainer.

    Raises:
        ConfigError: an unknown argument.
        ValueError: when the trainer is created or begins to train, as in `upcycle` and `ExpertAverager`.
        TrainingError: when it begins to train: a dense model, a checkpoint without experts, or a folder `datasets` that
            transformers mistakes for the package.
    """

    def __init__(self, *, merge: bool = False, **ewa: Any) -> None:
        self.merge, self.recipe = merge, Recipe(ewa)
        self.averager: ExpertAverager | None = None
        self.steps_done = 0

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Upcycle the model before the optimizer is built, and make it save the merged weights too."""
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
        """Add the share rate and the spread of the experts to the logs of training."""
        # The trainer appends a copy of the logs to `log_history` before it calls callbacks, so both are updated.
        logs = kwargs.get("logs") or {}
        if self.averager and "loss" in logs:
            values = summary(self.averager)
            logs.update(values)
            state.log_history[-1].update(values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Detach the averager from the optimizer, and merge the experts if `merge` is True."""
        if self.averager:
            self.steps_done = self.averager.steps_done
            self.averager.detach()
        self.averager = None
        if self.merge:
            merge_experts(kwargs["model"]).__dict__.pop("save_pretrained", None)

    def state(self) -> dict[str, Any]:
        """Return the state of the callback for a checkpoint: the arguments to create it again, and the steps done."""
        arguments = {k: v for k, v in self.recipe.arguments.items() if k != "ffn"}  # a class or predicate is not JSON
        steps_done = self.averager.steps_done if self.averager else self.steps_done
        return {"args": {"merge": self.merge} | arguments, "attributes": {"steps_done": steps_done}}


def _save_merged_weights_too(model: nn.Module) -> None:
    """Make `save_pretrained` of this model write the merged weights beside the experts."""
    if not hasattr(model, "save_pretrained") or hasattr(model, "peft_config"):
        return  # a plain module is saved by its state_dict, and peft saves only adapters

    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        if expert_layers(self) and kwargs.get("state_dict") is None:
            kwargs["state_dict"] = with_dense_weights(self)
            # The trainer resumes by the present names of parameters, but transformers 5 saves some under older names.
            if "save_original_format" in signature(type(self).save_pretrained).parameters:
                kwargs.setdefault("save_original_format", False)
        return type(self).save_pretrained(self, save_directory, *args, **kwargs)

    # A bound method in the model's dict: deepcopy binds it to the copy, so that a copy does not save the original.
    model.__dict__["save_pretrained"] = MethodType(save_pretrained, model)


def _check_datasets() -> None:
    """Raise TrainingError if Python finds a folder `datasets`, as in a checkout of pc-ewa, but not the package."""
    # A folder without __init__.py is a namespace package: its spec has no origin. transformers would take it for the
    # package, and fail on `datasets.Dataset`, which it does not have.
    spec = find_spec("datasets")
    if spec and spec.origin is None and is_datasets_available():
        folder = next(iter(spec.submodule_search_locations or ["datasets"]))
        raise TrainingError(
            f"transformers mistakes the folder {folder} for the package datasets; run from another folder, or pip "
            "install datasets"
        )


def _steps_done(state: TrainerState, name: str) -> int:
    """Return the optimizer steps that a checkpoint's averager has seen."""
    callbacks: Any = state.stateful_callbacks  # a dict by name when it comes from a file
    saved = callbacks.get(name)
    saved = saved[0] if isinstance(saved, list) else saved
    if not saved:
        raise TrainingError(
            "the checkpoint was saved without experts, and its optimizer has no state for them; load its weights with "
            "from_pretrained(), and train without resume_from_checkpoint"
        )
    return saved["attributes"]["steps_done"]


def _check_peft(resumed: bool) -> None:
    if resumed:
        raise TrainingError("peft's checkpoints hold only adapters, not the experts: such a run cannot be resumed")
    warnings.warn(
        "peft saves only adapters, not the experts: set merge=True, and save the whole model after training, by "
        "trainer.model.merge_and_unload().save_pretrained(folder)",
        stacklevel=3,
    )
