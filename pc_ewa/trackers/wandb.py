"""Weights & Biases: offline and without an account unless the user says otherwise."""

import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from pc_ewa import package
from pc_ewa.errors import ConfigError
from pc_ewa.trackers.backend import Backend, Cell, Cloud, TrackedRun

Mode = Literal["offline", "online", "disabled"]

# The environment variable of each key, and wandb's name for the key.
_VARIABLES = {
    "mode": ("WANDB_MODE", "mode"),
    "project": ("WANDB_PROJECT", "project"),
    "entity": ("WANDB_ENTITY", "entity"),
    "name": ("WANDB_NAME", "run_name"),
    "group": ("WANDB_RUN_GROUP", "run_group"),
    "tags": ("WANDB_TAGS", "run_tags"),
    "notes": ("WANDB_NOTES", "run_notes"),
}
_DEFAULTS = {"mode": "offline", "project": "pc-ewa"}


class WandbBackend(Backend):
    """A run of W&B in the run folder. A key that is null is that of its WANDB_ variable, or else the default.

    Args:
        run: the run to show.
        mode: "offline" (the default) needs no account, and nothing leaves the machine until `wandb sync`.
        project: "pc-ewa" by default.
        entity: user or team; that of the account by default.
        name: of the run; the name of the run folder by default.
        group: of runs that belong together, such as the seeds of one setting.
        tags: words to find the run by.
        notes: text on the run.

    Raises:
        ConfigError: "online", and the server cannot be reached.
    """

    title = "Weights & Biases"
    by_default = True

    def __init__(
        self,
        run: TrackedRun,
        *,
        mode: Mode | None = None,
        project: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: tuple[str, ...] | None = None,
        notes: str | None = None,
    ) -> None:
        import wandb

        given = {"mode": mode, "project": project, "entity": entity, "name": name, "group": group, "tags": tags}
        chosen = {key: value.value for key, value in _chosen(given | {"notes": notes}).items()}
        self._folder, self._identity, self._mode = run.folder, run.identity(), chosen["mode"]
        try:
            self._run = wandb.init(
                **{"name": run.folder.absolute().name} | chosen,
                id=self._identity,
                resume="allow",
                dir=str(run.folder),
                config=dict(run.config),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.errors.Error as error:
            if self._mode != "online":
                raise
            raise ConfigError(f"Weights & Biases: {error}; set wandb.mode=offline or disabled") from None

    @classmethod
    def wanted(cls, **settings: Any) -> bool:
        """Return False for "disabled".

        Raises:
            ConfigError: a value that W&B refuses, or "online" without a login.
            ModuleNotFoundError: W&B is not installed.
        """
        chosen = _chosen(settings)
        mode, source, _ = chosen["mode"]
        if mode not in get_args(Mode):
            raise ConfigError(f"{source}={mode}: should be one of {', '.join(get_args(Mode))}")
        if mode == "disabled":
            return False
        import wandb

        for value, origin, field in chosen.values():
            if problem := _refused(lambda: wandb.Settings(**{field: value}), value):  # noqa: B023  # called at once
                raise ConfigError(f"{origin}={value!r}: {problem}")
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            raise ConfigError(f"{source}=online needs an account: run 'wandb login', or set wandb.mode=offline")
        return True

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log numbers. Numbers of the same step become one row."""
        self._run.log(dict(metrics), step=step)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Log a table, with its clouds as interactive 3D objects."""
        import wandb

        cells = [[_object(cell) if isinstance(cell, Cloud) else cell for cell in row] for row in rows]
        with _staged_in(self._folder):
            self._run.log({name: wandb.Table(columns=list(columns), data=cells)}, step=step)

    def confusion(self, step: int, class_names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        """Log W&B's chart of a confusion matrix."""
        import wandb

        cells = np.asarray(counts)
        # The chart takes one pair of labels per sample: each cell of the matrix is repeated by its count.
        true, predicted = (index.ravel().repeat(cells.ravel()).tolist() for index in np.indices(cells.shape))
        chart = wandb.plot.confusion_matrix(
            y_true=true, preds=predicted, class_names=list(class_names), title="confusion matrix"
        )
        with _staged_in(self._folder):
            self._run.log({"confusion_matrix": chart}, step=step)

    def clouds(self, step: int, name: str, clouds: Sequence[Cloud]) -> None:
        """Log clouds as interactive 3D objects, with their titles."""
        self._run.log({name: [_object(cloud) for cloud in clouds]}, step=step)

    def page(self, step: int, name: str, path: Path) -> None:
        """Log an HTML file as it is."""
        import wandb

        self._run.log({name: wandb.Html(str(path), inject=False)}, step=step)

    def file(self, name: str, path: Path, metadata: Mapping[str, Any], aliases: Sequence[str] = ()) -> None:
        """Log a version of a model. The file is not copied: `wandb sync` reads it from the run folder."""
        import wandb

        artifact = wandb.Artifact(f"{name}-{self._identity}", type="model", metadata=dict(metadata))
        artifact.add_file(str(path.absolute()), policy="immutable", skip_cache=True)  # no copy in the home directory
        with _staged_in(self._folder):
            self._run.log_artifact(artifact, aliases=list(aliases))

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Add to the summary of the run."""
        self._run.summary.update(dict(summary))

    def close(self, failed: bool) -> list[str]:
        """Finish the run. Returns the command that uploads all parts of an offline run that did not fail."""
        self._run.finish(exit_code=int(failed))
        # Each start of an offline run has a separate folder; an online run has none.
        parts = sorted(path for path in (self._folder / "wandb").glob("offline-run-*") if self._is_part(path))
        if failed or self._mode != "offline" or not parts:
            return []
        command = package.command("wandb", "wandb")
        return [f"to upload it: {command} sync --id {self._identity} {shlex.join(map(str, parts))}"]

    def _is_part(self, folder: Path) -> bool:
        return folder.name.endswith(f"-{self._identity}")


class _Value(NamedTuple):
    value: Any
    source: str  # what the user can change
    field: str  # wandb's own name


def _chosen(settings: Mapping[str, Any]) -> dict[str, _Value]:
    """Choose each key from the config, then its variable, then the default. Keys without a value are left out."""
    chosen = {}
    for key, (variable, field) in _VARIABLES.items():
        value, source = settings.get(key), f"wandb.{key}"
        if value is None and os.environ.get(variable):
            text, source = os.environ[variable], variable
            value = tuple(word.strip() for word in text.split(",")) if key == "tags" else text
        if value is None:
            value = _DEFAULTS.get(key)
        if value is not None:
            chosen[key] = _Value(value, source, field)
    return chosen


def _refused(make: Callable[[], object], value: object) -> str | None:
    """Return the reason why wandb refuses a value, in one line. Returns None if it accepts the value."""
    import wandb

    if value in ("", ()):
        return "is empty; leave it out"
    try:
        make()
    except wandb.errors.Error as error:
        return str(error)
    except ValueError as error:  # pydantic's, in several lines
        errors: list[dict[str, Any]] = getattr(error, "errors", list)()
        return str(errors[0]["msg"] if errors else error).removeprefix("Value error, ")
    return None


def _object(cloud: Cloud) -> Any:
    import wandb

    coloured = np.concatenate([cloud.points, np.round(255 * np.asarray(cloud.colours))], axis=1)
    with warnings.catch_warnings():
        # wandb warns that the type of the object is in beta.
        warnings.simplefilter("ignore")
        return wandb.Object3D(coloured, caption=cloud.title)


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Make W&B stage uploads in the run folder, not in the home directory, unless WANDB_DATA_DIR is set."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    # wandb reads this variable at each call and has no setting for it.
    os.environ["WANDB_DATA_DIR"] = str((folder / "wandb").absolute())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
