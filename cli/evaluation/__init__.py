"""Evaluation of a model on held-out prompts: solving, judging, repairing, and test-time scaling."""

from cli.evaluation.report import table
from cli.evaluation.result import Evaluation
from cli.evaluation.run import build_pool, evaluate

__all__ = ["Evaluation", "build_pool", "evaluate", "table"]
