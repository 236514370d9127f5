"""`pc-ewa report`: one page on one run or several, for a browser without a network."""

from __future__ import annotations  # as in package.py

from collections.abc import Sequence
from pathlib import Path

from pc_ewa.cli.command import Parser, command

DESCRIPTION = """\
Write one HTML file on one run or several: test metric, curves, classes, confusions, worst mistakes and other clouds to
turn, costs, config and environment. It opens without a network."""

EPILOG = """\
examples:
  pc-ewa report runs/quickstart
  pc-ewa report runs/quickstart runs/quickstart_dense -o both.html

Several finished runs are compared as `pc-ewa compare FOLDER ...` does, with paired intervals over the seeds. The clouds
are test shapes, shown to the merged model of the last step."""


def create_parser() -> Parser:
    """Describe the arguments."""
    parser = Parser(prog="pc-ewa report", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run, finished or not")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to write (default: report.html in the folder of the first run)"
    )
    return parser


@command("report", extra="compare")
def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, write, print the path."""
    options = create_parser().parse_args(arguments)
    from pc_ewa.report import write_report

    path = Path(options.output) if options.output else Path(options.runs[0]) / "report.html"
    write_report(options.runs, path)
    print(f"report: {path}")
