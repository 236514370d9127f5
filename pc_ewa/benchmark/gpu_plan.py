"""The sizes of benchmarks/gpu.sh: the measurement on a GPU, and its rehearsal on a CPU."""

from typing import NamedTuple

import torch

from pc_ewa.benchmark.ops import Case
from pc_ewa.benchmark.ops import Plan as OpsPlan
from pc_ewa.bundled import bundled
from pc_ewa.config import Experiment, load_experiment


class Variant(NamedTuple):
    """One way to train.

    Attributes:
        precision: "bf16", "tf32" or "fp32".
        compile: the mode of `train.compile`. None does not compile.
        ewa: True to train with experts.
    """

    precision: str
    compile: str | None
    ewa: bool

    @property
    def name(self) -> str:
        """A description in a few words."""
        mode = {None: "as it is", "default": "compiled", "reduce-overhead": "compiled, CUDA graphs"}
        return f"{self.precision}, {mode.get(self.compile, self.compile)}, {'EWA' if self.ewa else 'dense'}"


EAGER = tuple(Variant(precision, None, ewa) for precision in ("bf16", "tf32", "fp32") for ewa in (False, True))
# In order of importance: a variant for which the time is too short is left out.
COMPILED = (
    *(Variant("bf16", mode, ewa) for mode in ("reduce-overhead", "default") for ewa in (False, True)),
    *(Variant("tf32", "reduce-overhead", ewa) for ewa in (False, True)),
)
WATCHED = (*(Variant("bf16", None, ewa) for ewa in (False, True)), Variant("bf16", "reduce-overhead", True))


class Plan(NamedTuple):
    """All sizes of a measurement.

    Attributes:
        rehearsal: True if the numbers mean nothing.
        device: "cuda", or "cpu" in a rehearsal.
        changes: changes of configs/official_size.yaml.
        warmup: steps before the first timing. CUDA graphs are captured in the second and third.
        rounds: number of timings.
        steps: steps per timing.
        matrix: rows of the square matrices whose product measures the peak.
        copied: bytes of the copy that measures the bandwidth.
        eager: variants that are timed without compilation.
        compiled: variants that are timed with compilation.
        watched: variants that are searched for synchronisations.
        modes: modes of `train.compile` for training. The first that works is taken.
        ops_plan: sizes of the op benchmarks. None takes the default.
        ops_sections: sections of the op benchmarks.
        ops_rounds: rounds of the op benchmarks.
        most_epochs: the most epochs of training.
    """

    rehearsal: bool = False
    device: torch.device = torch.device("cuda")
    changes: tuple[str, ...] = ()
    warmup: int = 5
    rounds: int = 5
    steps: int = 20
    matrix: int = 8192
    copied: int = 2**30
    eager: tuple[Variant, ...] = EAGER
    compiled: tuple[Variant, ...] = COMPILED
    watched: tuple[Variant, ...] = WATCHED
    modes: tuple[str | None, ...] = ("reduce-overhead", "default", None)
    ops_plan: OpsPlan | None = None
    ops_sections: tuple[str, ...] = ("fps", "knn", "chamfer", "grouping", "precision")
    ops_rounds: int = 5
    most_epochs: int = 300

    def experiment(self, variant: Variant, *changes: str) -> Experiment:
        """Return the experiment of a variant at official size, on the bundled furniture unless `changes` replace it."""
        return load_experiment(
            "official_size",
            [
                f"device={self.device}",
                f"data.root={bundled('datasets')}",
                "wandb=null",
                f"train.precision={'bf16' if variant.precision == 'bf16' else 'fp32'}",
                f"train.compile={variant.compile or 'null'}",
                *self.changes,
                *changes,
                *([] if variant.ewa else ["ewa=null"]),
            ],
        )


REAL = Plan()

_TOY = ("dim=16", "depth=1", "num_heads=2", "num_groups=4", "group_size=8", "encoder_width=8")

REHEARSAL = Plan(
    rehearsal=True,
    device=torch.device("cpu"),
    changes=(*(f"model.{size}" for size in _TOY), "data.num_points=64", "ewa.layers=all", "train.batch_size=64"),
    warmup=1,
    rounds=1,
    steps=1,
    matrix=32,
    copied=2**10,
    eager=(Variant("tf32", None, True), Variant("bf16", None, False)),
    compiled=(Variant("fp32", "default", True),),
    watched=(Variant("fp32", None, True),),
    modes=(None,),
    ops_plan=OpsPlan(knn=(Case((1, 8, 40), 1.0),), k=4, pause=0),
    ops_sections=("knn",),
    ops_rounds=1,
    most_epochs=1,
)
