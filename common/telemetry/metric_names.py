"""The metrics, by where their figures come from. Long, since it is the table."""

from __future__ import annotations

from typing import Final

from common.telemetry.metric import (
    ACTOR,
    EVERY,
    LEARNER,
    RECYCLER,
    SECONDS,
    TOKENS,
    VERSIONS,
    batch,
    beat,
    moment,
    server,
)

OBJECTIVE: Final = "(?P<objective>solve|pointwise|pairwise|reflect)"

HEARTBEATS: Final = (
    beat("spark.stalls", "counter", "{stall}", EVERY, "stalls", "Times that nothing was done for run.no_progress_s"),
    beat("spark.stalled.time", "counter", "s", EVERY, "stalls_s", "Seconds of those stalls"),
    beat(
        "spark.policy.version",
        "gauge",
        "{version}",
        EVERY,
        "policy_version",
        (
            "Policy version that the process is at: of the learner the one it has trained, of an "
            "actor the one it generates with, of the recycler the newest it heard of"
        ),
    ),
    beat("spark.policy.epoch", "gauge", "{epoch}", ("learner", "actor"), "epoch", "Learner epoch of that version"),
    beat(
        "spark.learner.waiting_share",
        "gauge",
        "1",
        LEARNER,
        "waiting_share",
        "Share of the last batches' wall time spent in waiting for groups",
    ),
    beat(
        "spark.learner.alarms",
        "gauge",
        "{alarm}",
        LEARNER,
        "alarms",
        "Alarms that stand: the judge collapses, or the like; `spark status` has the sentences",
    ),
    beat(
        "spark.learner.disk_free",
        "gauge",
        "MiBy",
        LEARNER,
        "disk_free_mb",
        "Free on the disk of the run directory, in MiB",
    ),
    beat("spark.actor.groups", "counter", "{group}", ACTOR, "groups", "Groups generated, verified and shipped"),
    beat("spark.actor.rollouts", "counter", "{rollout}", ACTOR, "rollouts", "Completions in those groups"),
    beat("spark.actor.tokens", "counter", "{token}", ACTOR, "tokens", "Tokens of those completions"),
    beat(
        "spark.actor.leases_lost",
        "counter",
        "{lease}",
        ACTOR,
        "lost_leases",
        "Tasks that another actor took over while they were being worked on",
    ),
    beat(
        "spark.actor.verifier_errors",
        "counter",
        "{rollout}",
        ACTOR,
        "verifier_errors",
        ("Completions of shipped groups whose verifier failed or took too long; excluded from training"),
    ),
    beat(
        "spark.actor.unverified_groups",
        "counter",
        "{group}",
        ACTOR,
        "unverified_groups",
        "Groups of which no completion could be verified",
    ),
    beat(
        "spark.actor.returned",
        "counter",
        "{task}",
        ACTOR,
        "returned",
        "Prompts given back to the learner: lost weights had issued them",
    ),
    beat(
        "spark.actor.wait.time",
        "counter",
        "s",
        ACTOR,
        "waited_s",
        "Time without anything to do: waiting for tasks or for weights",
    ),
    beat("spark.actor.groups_in_flight", "gauge", "{group}", ACTOR, "groups_in_flight", "Groups being generated"),
    beat(
        "spark.actor.suspects",
        "gauge",
        "{task}",
        ACTOR,
        "suspects",
        "Tasks in hand that wait to be generated alone, since actors died of them",
    ),
    beat(
        "spark.actor.unverified",
        "gauge",
        "{group}",
        ACTOR,
        "unverified",
        "Generated groups that wait for their verdicts",
    ),
    beat("spark.actor.unverified.age", "gauge", "s", ACTOR, "unverified_s", "How long the oldest of them has waited"),
    beat(
        "spark.actor.weights.behind",
        "gauge",
        "s",
        ACTOR,
        "behind_s",
        "How long newer weights have been on offer that are not in place; 0 with the newest",
    ),
    beat(
        "spark.actor.weights.failures",
        "counter",
        "{failure}",
        ACTOR,
        "apply_failures",
        "Failed attempts to load weights",
    ),
    beat(
        "spark.recycler.room",
        "gauge",
        "{task}",
        RECYCLER,
        "room",
        "Judge tasks that the learner's grant leaves room for",
    ),
    beat("spark.recycler.held", "gauge", "{group}", RECYCLER, "held", "Scored groups that wait to become judge tasks"),
    beat(
        "spark.recycler.groups",
        "counter",
        "{group}",
        RECYCLER,
        r"groups\.(?P<answers>\w+)",
        "Groups read, by what their answers are: right, mixed, wrong, unusable",
    ),
    beat(
        "spark.recycler.rollouts_unusable",
        "counter",
        "{rollout}",
        RECYCLER,
        r"rollouts\.(?P<reason>\w+)",
        "Rollouts that nothing can be made of, by reason: no_answer, contradictory",
    ),
    beat(
        "spark.recycler.decisions",
        "counter",
        "{group}",
        RECYCLER,
        r"decided\.(?P<reason>\w+)",
        "Groups decided, by reason: recycled, unusable, expired, overflow",
    ),
    beat(
        "spark.recycler.tasks",
        "counter",
        "{task}",
        RECYCLER,
        r"tasks\.(?P<objective>\w+)\.(?P<label>\w+)",
        "Judge tasks made, by objective and class: positive, negative",
    ),
)

BATCHES: Final = (
    batch(
        "spark.learner.stage.duration",
        "histogram",
        "s",
        r"seconds/(?P<stage>\w+)",
        ("Time of one batch in a stage of the learner's loop: wait_for_groups, step, publish, checkpoint"),
        SECONDS,
    ),
    batch(
        "spark.learner.groups",
        "counter",
        "{group}",
        "(?P<outcome>trained|filtered|dropped_stale)/(?P<kind>policy|judge)",
        "Groups that ended at the learner, before that is durable",
    ),
    batch("spark.learner.arrived", "counter", "{group}", f"groups/{OBJECTIVE}", "Groups that arrived"),
    batch("spark.learner.rollouts", "counter", "{rollout}", "samples", "Completions of those groups"),
    batch(
        "spark.learner.verifier_errors",
        "counter",
        "{rollout}",
        "verifier_errors",
        "Completions that arrived without a verdict",
    ),
    batch(
        "spark.learner.tokens", "counter", "{token}", "tokens", "Completion tokens of the newest update of each batch"
    ),
    batch("spark.reward", "gauge", "1", f"reward/{OBJECTIVE}", "Mean reward of what arrived since the batch before"),
    batch(
        "spark.no_answer_share",
        "gauge",
        "1",
        f"no_answer/{OBJECTIVE}",
        "Share of completions without an answer that could be read",
    ),
    batch(
        "spark.judge.positive_share",
        "gauge",
        "1",
        f"positive/{OBJECTIVE}",
        "Label balance: share of judge tasks of the positive class",
    ),
    batch(
        "spark.judge.score",
        "gauge",
        "1",
        r"judge/(?P<figure>.+)",
        (
            "Judge panel, by figure: tpr, tnr, balanced_accuracy, ece, auroc, pairwise_accuracy, "
            "swap_consistency, accuracy/age_K, false_positive/..."
        ),
    ),
    batch(
        "spark.reflect.score",
        "gauge",
        "1",
        r"reflect/(?P<figure>\w+)",
        ("Reflection, by figure: kept (right answers that stayed right), fixed (wrong ones made right)"),
    ),
    batch(
        "spark.learner.steps",
        "gauge",
        "{version}",
        "policy_version",
        "Optimizer steps done, which is the policy version published last",
    ),
    batch(
        "spark.learner.figure",
        "gauge",
        "1",
        r"(?P<figure>(?!elapsed_s|stalls).+)",
        ("Every other figure of metrics.jsonl by its name: loss, grad_norm, entropy, kl, ess, lr, ..."),
    ),
)

SERVER: Final = (
    server("spark.stream.pending", "{entry}", "Entries delivered to the group and not acknowledged", "stream", "group"),
    server("spark.stream.undelivered", "{entry}", "Entries that nobody of the group has read", "stream", "group"),
    server(
        "spark.stream.oldest_pending.age",
        "s",
        "Time since the group's oldest unacknowledged entry was put on the stream; 0 without one",
        "stream",
        "group",
    ),
    server(
        "spark.stream.oldest_undelivered.age",
        "s",
        "The same for the oldest entry that nobody of the group has read",
        "stream",
        "group",
    ),
    server("spark.dead_letters", "{entry}", "Entries on the dead letters; the user empties them"),
    server("spark.ledger.groups", "{group}", "The run's durable counts: issued, and how uids ended", "state", "kind"),
    server("spark.members", "{process}", "Members ever seen, by whether they live", "alive"),
    server("spark.server.memory_share", "1", "Share of the server's maxmemory in use; 0 without a limit"),
    server("spark.server.memory", "By", "Memory that the server uses"),
)

GENERATION: Final = moment(
    "gen_ai.server.request.duration",
    "s",
    ACTOR,
    SECONDS,
    "Time from a task's claim to the last token of its group",
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "objective",
)
TOKEN_USAGE: Final = moment(
    "gen_ai.client.token.usage",
    "{token}",
    ACTOR,
    TOKENS,
    "Tokens of a group: input, of its prompt; output, of all its completions",
    "gen_ai.operation.name",
    "gen_ai.provider.name",
    "gen_ai.request.model",
    "gen_ai.token.type",
    "objective",
)
VERIFICATION: Final = moment(
    "spark.verify.duration", "s", ACTOR, SECONDS, "Time from the last token of a group to its verdicts", "objective"
)
APPLY: Final = moment(
    "spark.weights.apply.duration",
    "s",
    ACTOR,
    SECONDS,
    "Time from noticing a policy version to generating with it: fetch, check and load",
)
STALENESS: Final = moment(
    "spark.staleness", "{version}", LEARNER, VERSIONS, "Token staleness of each group that was trained", "objective"
)
CONTENT_STALENESS: Final = moment(
    "spark.content_staleness",
    "{version}",
    LEARNER,
    VERSIONS,
    "The same for what a trained judge group shows",
    "objective",
)
CHECKPOINT: Final = moment(
    "spark.checkpoint.duration", "s", LEARNER, SECONDS, "Time to write a checkpoint and settle it with the server"
)
MOMENTS: Final = (GENERATION, TOKEN_USAGE, VERIFICATION, APPLY, STALENESS, CONTENT_STALENESS, CHECKPOINT)
