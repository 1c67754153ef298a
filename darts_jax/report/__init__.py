"""The report of one or several runs: a self-contained HTML file, and its pictures as SVG."""

from darts_jax.report.summary import ReportSummary, summary_lines
from darts_jax.report.write import write_report

__all__ = ["ReportSummary", "summary_lines", "write_report"]
