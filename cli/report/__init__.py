"""The report of a run: one HTML file with its table, its curves, its ledger and its samples."""

from cli.report.write import report, write_report

__all__ = ["report", "write_report"]
