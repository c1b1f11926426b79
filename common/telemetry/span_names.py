"""The spans and their attributes."""

from __future__ import annotations

from typing import Final

from common.telemetry.metric import ACTOR, LEARNER, SpanName

UID: Final = "spark.uid"
OBJECTIVE_OF: Final = "spark.objective"
VERSION: Final = "spark.policy_version"
EPOCH: Final = "spark.epoch"
SAMPLES: Final = "spark.samples"
ATTEMPT: Final = "spark.attempt"
POSITION: Final = "spark.position"
TEMPLATE: Final = "spark.template"
STALENESS_OF: Final = "spark.staleness"
OUTCOME: Final = "spark.outcome"
GROUPS: Final = "spark.groups"
OLDEST_VERSION: Final = "spark.oldest_version"
DELIVERIES: Final = "spark.deliveries"
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
MODEL: Final = "gen_ai.request.model"
TOKEN_TYPE: Final = "gen_ai.token.type"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
EVALUATION: Final = "gen_ai.evaluation.name"
SCORE: Final = "gen_ai.evaluation.score.value"
CHAT: Final = "chat"
"""Value of ``gen_ai.operation.name``."""
OURS: Final = "spark"
"""Value of ``gen_ai.provider.name``."""

TASK_TRACE: Final = "the task's, whose trace id is its uid"
STEP_TRACE: Final = "the step's own"

ISSUE: Final = SpanName(
    name="spark.issue",
    roles=("learner", "recycler"),
    trace=TASK_TRACE,
    links="of a judge task: the issue of the prompt whose answer it shows",
    attributes=(UID, OBJECTIVE_OF, VERSION, ATTEMPT, POSITION, TEMPLATE),
    meaning="The task was put on its stream; `Task.trace` names this span",
)
GENERATE: Final = SpanName(
    name="spark.generate",
    roles=ACTOR,
    trace=TASK_TRACE,
    links="",
    attributes=(
        OBJECTIVE_OF,
        OPERATION,
        PROVIDER,
        MODEL,
        INPUT_TOKENS,
        OUTPUT_TOKENS,
        OLDEST_VERSION,
        VERSION,
        EPOCH,
        DELIVERIES,
    ),
    meaning="From the claim to the last token of the group",
)
VERIFY: Final = SpanName(
    name="spark.verify",
    roles=ACTOR,
    trace=TASK_TRACE,
    links="",
    attributes=(EVALUATION, SCORE),
    meaning="From the last token to the group on the stream; the score is the mean reward",
)
END: Final = SpanName(
    name="spark.end",
    roles=LEARNER,
    trace=TASK_TRACE,
    links="of a trained group: the step",
    attributes=(OUTCOME, STALENESS_OF, VERSION),
    meaning=("How the group ended: trained, filtered or dropped_stale; of a trained one it lasts as long as the step"),
)
STEP: Final = SpanName(
    name="spark.step",
    roles=LEARNER,
    trace=STEP_TRACE,
    links="the issue of every group it trained",
    attributes=(VERSION, EPOCH, GROUPS, SAMPLES),
    meaning=(
        "One batch, from the wait for its groups to the checkpoint; told of every batch, whatever the sample share"
    ),
)
STAGES: Final = {
    stage: SpanName(
        name=f"spark.step.{stage}", roles=LEARNER, trace=STEP_TRACE, links="", attributes=(), meaning=meaning
    )
    for stage, meaning in (
        ("wait_for_groups", "Waiting for a full batch"),
        ("step", "Forward, backward, optimizer"),
        ("publish", "Weights to the store, the manifest to the stream"),
        ("checkpoint", "A checkpoint, when one is due"),
    )
}
"""By the stage of the learner's loop."""
