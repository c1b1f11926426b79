"""The dashboard "SPARK fleet": every member by itself, the weights on their way to it, the server and the disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from panels import RUN, Json, Panel, Row, dashboard, variable

WHERE: Final = f'{RUN},spark_member=~"$member"'
RATE: Final = "$__rate_interval"


def each(
    title: str,
    about: str,
    unit: str,
    query: str,
    limits: Sequence[tuple[str, float]] = (),
    most: float | None = None,
) -> Panel:
    """One line per member."""
    return Panel(title=title, about=about, unit=unit, queries=[(query, "{{spark_member}}")], limits=limits, least=0,
                 most=most)  # fmt: skip


def p95(title: str, about: str, metric: str) -> Panel:
    query = f"histogram_quantile(0.95, sum by (le, spark_member) (rate({metric}_bucket{{{WHERE}}}[5m])))"
    return each(title, about, "s", query)


MEMBERS: Final = Row(
    title="Members",
    panels=[
        Panel(kind="table", width=24, height=8, title="Members", unit="none", decimals=2,
              about="One line per member that tells its metrics; one that is missing is gone. For an actor: versions "
              "it has, seconds that newer weights have been waiting for it, share of its time that it waits, tokens a "
              "second, and groups in work. `spark status RUN` says what is wrong with it.",
              queries=[
                  (f"max by (spark_member, spark_role) (spark_policy_version{{{WHERE}}})", ""),
                  (f"max by (spark_member, spark_role) (spark_actor_weights_behind_seconds{{{WHERE}}})", ""),
                  (f"sum by (spark_member, spark_role) (rate(spark_actor_wait_time_seconds_total{{{WHERE}}}[5m]))", ""),
                  (f"sum by (spark_member, spark_role) (rate(spark_actor_tokens_total{{{WHERE}}}[5m]))", ""),
                  (f"max by (spark_member, spark_role) (spark_actor_groups_in_flight{{{WHERE}}})", ""),
                  (f"sum by (spark_member, spark_role) (increase(spark_stalls_total{{{WHERE}}}[1h]))", ""),
              ],
              names=[("spark_member", "member"), ("spark_role", "role"), ("Value #A", "policy version"),
                     ("Value #B", "weights behind, s"), ("Value #C", "waiting share"), ("Value #D", "tokens/s"),
                     ("Value #E", "groups in flight"), ("Value #F", "stalls in 1 h")]),
        Panel(title="Members, by the server", unit="none", least=0,
              about="By their signs of life (15 s, the learner's 300 s). Fewer running than you started: some died; "
              "logs/MEMBER.stderr says why. Those taken away on purpose stay in not running.",
              queries=[(f'max(spark_members{{{RUN},alive="true"}})', "running"),
                       (f'max(spark_members{{{RUN},alive="false"}})', "not running")]),
        each("Time stood still", "Share of the time without progress, counted from run.no_progress_s (120 s) on. "
             "Anything above 0: `spark status RUN` says where the member is and who should end its wait.",
             "percentunit", f"sum by (spark_member) (rate(spark_stalled_time_seconds_total{{{WHERE}}}[{RATE}]))"),
        each("Waiting share of actors", "Time without a task or weights. High at all: too many actors, or "
             "staleness.max_staleness too tight. High at one: its way to the server or the weights.", "percentunit",
             f"sum by (spark_member) (rate(spark_actor_wait_time_seconds_total{{{WHERE}}}[{RATE}]))", most=1),
    ],
)  # fmt: skip

WORK: Final = Row(
    title="Work of the actors",
    panels=[
        each("Tokens", "Completion tokens per second. One far below the others: a slow or shared device. All at 0: "
             "see waiting shares and weights.", "suffix: /s",
             f"sum by (spark_member) (rate(spark_actor_tokens_total{{{WHERE}}}[{RATE}]))"),
        each("Groups in flight", "Groups being generated, at most actor.groups_in_flight. Always at the bound with a "
             "starved learner: too few actors.", "none",
             f"max by (spark_member) (spark_actor_groups_in_flight{{{WHERE}}})"),
        p95("Generation, 95th percentile", "From the claim of a task to the last token of its group. Above "
            "redis.lease_s is fine as long as leases are renewed; growing: longer completions or a busy device.",
            "gen_ai_server_request_duration_seconds"),
        each("Leases lost in 10 min", "Tasks that another actor took over. Some when an actor hangs; often: it is "
             "paused by its machine, or redis.lease_s is too short for it.", "none",
             f"sum by (spark_member) (increase(spark_actor_leases_lost_total{{{WHERE}}}[10m]))"),
        each("Suspect tasks in hand", "Tasks that actors died of, waiting to be generated alone. They end in the dead "
             "letters if they are poison; `spark dead list RUN`.", "none",
             f"max by (spark_member) (spark_actor_suspects{{{WHERE}}})"),
        each("Prompts given back", "Prompts of lost weights, returned to the learner in 10 minutes. Normal after a "
             "restart of the learner; without one: two learners on one run.", "none",
             f"sum by (spark_member) (increase(spark_actor_returned_total{{{WHERE}}}[10m]))"),
    ],
)  # fmt: skip

VERDICTS: Final = Row(
    title="Verdicts",
    panels=[
        each("Verifier errors", "Share of completions whose verifier failed or took too long; they are left out of "
             "training. Above 5 %: the verifier is broken or verifier.timeout_s too short.", "percentunit",
             f"sum by (spark_member) (rate(spark_actor_verifier_errors_total{{{WHERE}}}[5m])) / "
             f"sum by (spark_member) (rate(spark_actor_rollouts_total{{{WHERE}}}[5m]))", [("red", 0.05)]),
        each("Oldest group without verdicts", "How long finished groups wait for their verdicts. Above 5 s (or "
             "verifier.timeout_s): more verifier.workers, or a quicker verifier.", "s",
             f"max by (spark_member) (spark_actor_unverified_age_seconds{{{WHERE}}})", [("orange", 5)]),
        p95("Verification, 95th percentile", "From the last token of a group to its verdicts. Near verifier.timeout_s: "
            "verdicts are lost; look at slow cases of the verifier.", "spark_verify_duration_seconds"),
    ],
)  # fmt: skip

WEIGHTS: Final = Row(
    title="Weights",
    panels=[
        each("Newer weights wait for", "How long newer weights have been on offer to an actor. Above 10 s and more "
             "than staleness.max_staleness versions behind, it may not generate: disk, network, weights.cache_dir.",
             "s", f"max by (spark_member) (spark_actor_weights_behind_seconds{{{WHERE}}})", [("orange", 10)]),
        each("Failed loads in 10 min", "Weights that were torn, altered or did not arrive. At all actors: the files "
             "are damaged, look at weights.damaged in logs/learner.log; at one: its disk or cache.", "none",
             f"sum by (spark_member) (increase(spark_actor_weights_failures_total{{{WHERE}}}[10m]))"),
        p95("Time to apply, 95th percentile", "From noticing a version to generating with it. Longer than a step: "
            "actors never catch up; a nearer weights.dir or cache.", "spark_weights_apply_duration_seconds"),
    ],
)  # fmt: skip

SERVER: Final = Row(
    title="Server and disk",
    panels=[
        Panel(title="Server memory", unit="percentunit", least=0, limits=[("orange", 0.65), ("red", 1)],
              about="Share of the server's maxmemory; 0 without a limit. Above redis.memory_share (65 %) no prompts "
              "are issued, at 100 % nothing is taken: raise maxmemory, or lower learner.checkpoint_every.",
              queries=[(f"max(spark_server_memory_share{{{RUN}}})", "of maxmemory")]),
        Panel(title="Server memory in bytes", unit="bytes", least=0,
              about="What the server uses. A saw is normal: a checkpoint acknowledges, and what is acknowledged is "
              "deleted. A steady rise: checkpoints fail, or other data is on this server.",
              queries=[(f"max(spark_server_memory_bytes{{{RUN}}})", "in use")]),
        each("Commands, 95th percentile", "Time of a command to the server; looks for news are not in it. Above some "
             "ten ms: a busy server, or a slow network between it and this member.", "s",
             "histogram_quantile(0.95, sum by (le, spark_member) "
             f"(rate(db_client_operation_duration_seconds_bucket{{{WHERE}}}[5m])))"),
        each("Errors of the server's client", "Failed commands per second. While the server restarts they are "
             "retried; for longer: connection, password or memory, see the member's log.", "suffix: /s",
             f"sum by (spark_member) (rate(redis_client_errors_total{{{WHERE}}}[{RATE}]))"),
        Panel(title="Free disk of the run", unit="mbytes", least=0, limits=[("orange", 1024)],
              about="On the disk of the run's folder. Below 1 GiB, or six checkpoints, make room; below 32 MiB, or "
              "two checkpoints, nothing is saved and nothing acknowledged. The run goes on by itself then.",
              queries=[(f"min(spark_learner_disk_free_mebibytes{{{RUN}}})", "free")]),
        Panel(title="Time of a checkpoint", unit="s", least=0,
              about="Mean, with settling it at the server. Growing: a slow or full disk. No value for long while "
              "steps are made: checkpoints fail, see checkpoint.failed in logs/learner.log.",
              queries=[(f"rate(spark_checkpoint_duration_seconds_sum{{{RUN}}}[10m]) / "
                        f"rate(spark_checkpoint_duration_seconds_count{{{RUN}}}[10m])", "mean")]),
    ],
)  # fmt: skip

FLEET: Final[Json] = dashboard(
    uid="spark-fleet",
    title="SPARK fleet",
    about="Every member of a run by itself: work, verdicts, weights; and the server and the disk they share.",
    rows=[MEMBERS, WORK, VERDICTS, WEIGHTS, SERVER],
    variables=[variable("member", 'spark_policy_version{spark_run="$run"}', several=True)],
)
