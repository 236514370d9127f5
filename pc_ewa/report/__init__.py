"""The report page on runs, and the inputs of a view found from a path or name."""

from pc_ewa.report.page import report_after, write_report
from pc_ewa.report.subjects import Subjects

__all__ = ["write_report", "report_after", "Subjects"]
