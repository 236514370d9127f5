"""`pc-ewa report`: one HTML page on one or several runs."""

from __future__ import annotations  # as in package.py

from collections.abc import Sequence
from pathlib import Path

from pc_ewa.cli.command import Parser, command

DESCRIPTION = """\
Write one HTML file on one or several runs: test metric, curves, classes, confusions, worst mistakes and other clouds
that you can rotate, costs, config and environment. It opens without a network."""

EPILOG = """\
examples:
  pc-ewa report runs/quickstart
  pc-ewa report runs/quickstart runs/quickstart_dense -o both.html

Several finished runs are compared as by `pc-ewa compare FOLDER ...`, with paired intervals over the seeds. The clouds
are test shapes; the model is the merged one of the last step."""


def create_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="pc-ewa report", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run, finished or not")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to write (default: report.html in the folder of the first run)"
    )
    return parser


@command("report", extra="compare")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, write the page, print its path."""
    options = create_parser().parse_args(arguments)
    from pc_ewa.report import write_report

    path = Path(options.output) if options.output else Path(options.runs[0]) / "report.html"
    for line in write_report(options.runs, path):
        print(f"note: {line}")
    print(f"report: {path}")
