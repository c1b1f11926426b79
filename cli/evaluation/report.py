"""An evaluation as a table for people: shares in %, plus or minus half the 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.table import Table

from cli.evaluation.result import Evaluation

Arms = Sequence[tuple[str, Evaluation]]

SECTIONS: Final[tuple[tuple[tuple[str, str], ...], ...]] = (
    (
        ("policy", "policy accuracy, sampled"),
        ("greedy", "policy accuracy, greedy"),
    ),
    (
        ("pointwise", "pointwise judge, balanced accuracy"),
        ("tpr", "  right answers accepted (TPR)"),
        ("tnr", "  wrong answers rejected (TNR)"),
        ("unparsed", "  verdicts that cannot be read"),
        ("pairwise", "pairwise judge, both orders"),
        ("swap_consistency", "  same answer in both orders"),
        ("position_bias", "  preference for the first shown"),
    ),
    (
        ("fix", "reflection repairs wrong answers (fix)"),
        ("break", "reflection spoils right answers (break)"),
        ("resolve", "  plain new answer to these prompts"),
    ),
    (
        ("tts", "test-time scaling"),
        ("tts_gain", "  gain over the first answer"),
        ("majority_equal", "  majority vote at equal tokens"),
        ("majority", "  majority vote"),
    ),
    (
        ("auroc", "judge's P(Yes): AUROC"),
        ("ece", "  calibration error (ECE)"),
        ("ece_floor", "  of which by chance"),
        ("confidence", "  two verdicts agree"),
        ("false_positive_empty", "false positives: empty answers"),
        ("false_positive_master_key", "false positives: master keys"),
    ),
)
DIFFERENCES: Final = frozenset({"position_bias", "tts_gain"})


def table(before: Evaluation | Arms | None, after: Evaluation | None = None) -> Table:
    """``table(before, after)``, ``table(None, after)``, or any named arms: ``table([(name, evaluation)])``."""
    if before is None or isinstance(before, Evaluation):
        named = (("before", before), ("after", after))
        return _table([(name, evaluation) for name, evaluation in named if evaluation is not None])
    return _table(before)


def _table(arms: Arms) -> Table:
    if not arms:
        raise ValueError("a table needs at least one evaluation")
    built = Table("", *(name for name, _ in arms), caption=_caption([evaluation for _, evaluation in arms]))
    for column in built.columns[1:]:
        column.justify = "right"
    for section in SECTIONS:
        for name, label in section:
            if any(name in evaluation.figures for _, evaluation in arms):
                built.add_row(label, *(cell(evaluation, name) for _, evaluation in arms))
        built.add_section()
    return built


def cell(evaluation: Evaluation, name: str) -> str:
    figure = evaluation.figures.get(name)
    if figure is None:
        return "-"
    sign = "+" if name in DIFFERENCES else ""
    votes = f" ({evaluation.counts[f'{name}_votes']:.0f} votes)" if f"{name}_votes" in evaluation.counts else ""
    return f"{100 * figure.value:{sign}.1f} ± {100 * figure.half_width:.1f}{votes}"


def _caption(evaluations: Sequence[Evaluation]) -> str:
    first = evaluations[0]
    caption = f"% ± half of the 95 % interval, {first.counts['draws']:.0f} prompts, evaluation seed {first.seed}"
    if len({evaluation.seed for evaluation in evaluations}) > 1:
        caption = f"% ± half of the 95 % interval, seeds {', '.join(str(e.seed) for e in evaluations)}"
    if len({evaluation.pool for evaluation in evaluations}) > 1:
        caption += "\nThese models judged different answers: their judge, fix and break rows do not compare."
    return caption
