"""The dashboard "SPARK learning": the judge panel in full, and the figures of the optimizer steps."""

from __future__ import annotations

from typing import Final

from panels import RUN as WHERE
from panels import Json, Panel, Row, dashboard
from run import figure


def judge(title: str, about: str, names: str, unit: str = "percentunit", width: int = 8) -> Panel:
    """``names``: a pattern of figures of the judge panel."""
    query = f'max by (figure) (spark_judge_score{{{WHERE},figure=~"{names}"}})'
    return Panel(title=title, about=about, unit=unit, queries=[(query, "{{figure}}")], least=0, most=1, width=width)


def by_objective(title: str, about: str, metric: str) -> Panel:
    query = f"max by (objective) ({metric}{{{WHERE}}})"
    return Panel(title=title, about=about, unit="percentunit", queries=[(query, "{{objective}}")], least=0, most=1)


JUDGE: Final = Row(
    title="Judge",
    panels=[
        judge("Rates of each batch", "judge/tpr and judge/tnr of single batches: they scatter, so look at the mean in "
              "SPARK run. One at 0 and the other at 100 % for long: the judge always says the same.", "tpr|tnr"),
        judge("Ranking", "AUROC of P(Yes), and accuracy of pairwise verdicts. 50 % is guessing. AUROC well above a low "
              "balanced accuracy: it can tell, but leans to one answer.", "auroc|pairwise_accuracy"),
        judge("Calibration", "ECE of P(Yes), the ECE that chance leaves (ece_floor), and how sure verdicts are "
              "(confidence). ECE far above its floor with high confidence: sure and wrong; watch the accuracy.",
              "ece|ece_floor|confidence"),
        judge("Accuracy by age of the answer", "Balanced accuracy on answers K versions old. Falling with the age: "
              "the judge fits the policy of now; lower staleness.max_content_staleness if old answers mislead.",
              "accuracy/age_.+"),
        judge("Fooled by nothing", "Share of empty answers and of master keys (':' or 'Solution') that are accepted, "
              "and agreement of both orders of a pair. False positives above a few per cent: the judge rewards form; "
              "do not trust its rewards. Absent where a run never shows such answers.",
              "false_positive/.+|swap_consistency"),
        by_objective("Label balance", "Share of judge tasks of the positive class, batch by batch. Long at 0 or 100 %: "
                     "the policy gives one kind of answer only, and the judge learns to say always the same.",
                     "spark_judge_positive_share"),
    ],
)  # fmt: skip

ANSWERS: Final = Row(
    title="Answers",
    panels=[
        by_objective("Answers that cannot be read", "Share of completions without an answer. Growing: completions are "
                     "cut off (sampling.max_new_tokens) or the policy leaves the format.", "spark_no_answer_share"),
        Panel(title="Reflection", unit="percentunit", least=0, most=1,
              about="Share of reflections that end right, on wrong answers (fixed) and right ones (kept). Kept that "
              "falls: reflecting makes answers worse.",
              queries=[(f"max by (figure) (spark_reflect_score{{{WHERE}}})", "{{figure}}")]),
        figure("Length", "Mean length of a completion, tokens. Near sampling.max_new_tokens: cut off. A steady rise "
               "without reward: the policy learns to ramble.", "none", "length"),
    ],
)  # fmt: skip

STEPS: Final = Row(
    title="Steps",
    panels=[
        figure("Loss", "Of the last update of a batch. Its height says little; jumps or no value at all: see the "
               "gradient norm in SPARK run.", "none", "loss"),
        figure("Entropy by objective", "Nats per token. Towards 0: the policy has stopped to explore, and groups are "
               "filtered since all answers are alike. Rising without end: it falls apart.", "none", "entropy/.+"),
        figure("KL by objective", "Nats per token since the samples were made. One objective far above the others: "
               "its groups are the stalest, or its weight is too large.", "none", "kl/[a-z]+"),
        figure("KL by staleness", "Nats per token, by versions. It grows with staleness; steeply: "
               "staleness.max_staleness is too large for this learning rate.", "none", "kl/staleness_.+"),
        figure("Clipped and effective", "Share of tokens outside the clipping range, and effective sample size. "
               "Clipped above some per cent, or ess well below 100 %: too far off policy.", "percentunit", "clipped",
               "ess"),
        figure("Learning rate", "Of each step: the schedule, or what `spark set` made of it. Not what you set: look "
               "at the events of the run.", "none", "lr"),
    ],
)  # fmt: skip

LEARNING: Final[Json] = dashboard(
    uid="spark-learning",
    title="SPARK learning",
    about="What the judge and the policy learn: the judge panel, answers, and the figures of the optimizer steps.",
    rows=[JUDGE, ANSWERS, STEPS],
)
