"""The report of a run: one HTML file with its table, its curves and its ledger."""

from cli.report.write import write_report

__all__ = ["write_report"]
