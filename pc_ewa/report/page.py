"""`write_report`: one HTML file on one or several runs, which opens without a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pc_ewa.errors import ConfigError, Error
from pc_ewa.files import write_text
from pc_ewa.package import missing_package
from pc_ewa.report.html import Html, element, join, markdown, section
from pc_ewa.report.pictures import Pictures
from pc_ewa.report.sections import run_sections
from pc_ewa.train.run_folder import RunFolder

_HERE = Path(__file__).parent
# Second line of defence after escaping: with this policy a browser loads nothing from any address.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(folders: Sequence[str | Path], path: str | Path) -> list[str]:
    """Write the report page. The file is written completely or not at all.

    Args:
        folders: run folders, finished or not.
        path: the HTML file to write.

    Returns:
        Lines on what the page lacks and why, such as the pictures of a run whose data have changed.

    Raises:
        ConfigError: a folder without a run, or a file that cannot be written.
        Error: a run that cannot be read.

    Example:
        >>> pc_ewa.report.write_report(["runs/quickstart"], "report.html")  # doctest: +SKIP
        >>> pc_ewa.report.write_report([], "report.html")
        Traceback (most recent call last):
        pc_ewa.errors.ConfigError: name the folder of a run, such as runs/quickstart
    """
    path, runs = Path(path), [RunFolder(folder) for folder in folders]
    check_report([run.path for run in runs], path)
    missing: list[str] = []
    write_text(path, page(runs, missing))
    return missing


def report_after(folder: str | Path) -> tuple[Path | None, str]:
    """Write report.html into the folder of a run that has just ended. A failure does not fail the run.

    Returns:
        The path and a line for the log. If the page could not be written, the path is None and the line has the reason.
    """
    path = Path(folder) / "report.html"
    try:
        missing = write_report([folder], path)
    except ModuleNotFoundError as error:
        return None, f"no report page: {missing_package(error, 'pc-ewa report', 'compare') or error}"
    except Error as error:
        return None, f"no report page: {error}"
    return path, "; ".join([f"report page: {path}", *missing])


def check_report(folders: Sequence[Path], path: Path) -> None:
    """Check folders and file name before anything is loaded. Errors are those of `write_report`."""
    if not folders:
        raise ConfigError("name the folder of a run, such as runs/quickstart")
    for folder in folders:
        if not RunFolder(folder).is_begun:
            raise ConfigError(f"{folder} is not the folder of a run; give one that pc-ewa train has written")
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"{path} does not end in .html; choose such a name")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written; choose a file in a folder that is there")


def page(runs: Sequence[RunFolder], missing: list[str]) -> str:
    """Return the HTML of the page. Lines on what it lacks go to `missing`."""
    title = " and ".join(run.path.absolute().name for run in runs[:3]) + (" and others" if len(runs) > 3 else "")
    body = list(_body(runs, missing))
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "viewer.js"))
    head = join(
        [
            Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
            element("title", f"{title}: pc-ewa report"),
            element("style", Html(style)),
        ]
    )
    content = element("body", *body, element("script", Html(script)))
    return f"<!doctype html>\n{element('html', element('head', head), content, lang='en')}\n"


def _body(runs: Sequence[RunFolder], missing: list[str]) -> Iterator[Html]:
    if len(runs) > 1:
        yield element("h1", f"{len(runs)} runs")
        yield section("Comparison", _comparison(runs))
    for run in runs:
        pictures = Pictures(run)
        experiment = pictures.experiment
        yield element("h1", run.path.absolute().name)
        experts = f"{experiment.ewa.arguments['num_experts']} experts" if experiment.ewa else "no experts"
        about = (experiment.model.name, experiment.data.name, experts, f"seed {experiment.seed}")
        yield element("p", ", ".join(about))
        yield from run_sections(run, pictures)
        missing += [f"{run.path}: the page has no classes and pictures: {why}" for why in pictures.missing]


def _comparison(runs: Sequence[RunFolder]) -> Html:
    from pc_ewa.compare.report import as_markdown
    from pc_ewa.compare.results import collect_folders

    try:
        return markdown(as_markdown(collect_folders([run.path for run in runs])))
    except Error as error:  # such as runs of different metrics: each is worth showing
        return element("p", f"None: {error}", class_="note")
