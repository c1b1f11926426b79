"""The commands of ``spark`` and their arguments. Each imports what it needs only when it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, CliSubCommand, SettingsConfigDict

from common.messages import Objective
from common.settings import Settings

Overrides = list[Annotated[str, AfterValidator(unquote)]]
"""Percent-encoded by ``cli.__main__``, so that they pass the command-line parser byte for byte."""


class Command(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, extra="forbid")


class WithRunFile(Command):
    run_file: CliPositionalArg[Path]
    """Run file (TOML), or the config.toml of a run directory."""
    overrides: Overrides = Field(default_factory=list, validation_alias=AliasChoices("set", "s"))
    """section.key=value, over everything in the run file; may be repeated."""

    def settings(self, *more: str) -> Settings:
        from cli.rundir import settings_of

        return settings_of(self.run_file, [*self.overrides, *more])


class Up(WithRunFile):
    """Run everything on this machine: server, actors, recycler, learner; resumes a run that has a checkpoint."""

    actors: int | None = None
    """Number of actors, instead of actor.count."""
    rebuild: bool = False
    """On a server that lost the run: go on from the newest checkpoint, issuing again what it has not trained."""

    def cli_cmd(self) -> None:
        from cli.up import up

        actors = [] if self.actors is None else [f"actor.count={self.actors}"]
        up(self.settings(*actors, *(["redis.rebuild=true"] if self.rebuild else [])))


class ActorCommand(WithRunFile):
    """Run one rollout actor."""

    name: str = "actor-0"
    """Name of this actor, unique in the run."""

    def cli_cmd(self) -> None:
        from actors.__main__ import run
        from cli.rundir import RunDirectory
        from common.process import server_url

        settings = self.settings()
        server_url(settings)  # before anything is made
        RunDirectory(settings).log_to(self.name, role="actor")
        run(settings, self.name)


class RecyclerCommand(WithRunFile):
    """Run the recycler."""

    def cli_cmd(self) -> None:
        from cli.rundir import RunDirectory
        from common.process import server_url
        from recycler.__main__ import run

        settings = self.settings()
        server_url(settings)  # before anything is made
        RunDirectory(settings).log_to("recycler", role="recycler")
        run(settings)


class LearnerCommand(WithRunFile):
    """Run the learner."""

    def cli_cmd(self) -> None:
        from cli.preflight import check_run
        from cli.rundir import RunDirectory
        from cli.starts import record_start
        from common.process import server_url
        from learner.__main__ import run
        from learner.engines import own_place

        settings = self.settings()
        check_run(settings, os.environ)
        if own_place(settings).is_first:  # the other ranks need no server
            server_url(settings)
        directory = RunDirectory(settings)
        if not directory.config.exists():  # started by hand, not by `spark up`
            directory.create()
        directory.log_to("learner", role="learner")
        record_start(directory.path, "learner")
        run(settings)


class Evaluate(Command):
    """Measure a model: policy, judge, reflection, test-time scaling."""

    model: CliPositionalArg[str]
    """Run directory, Hugging Face directory or hub id."""
    prompts: CliPositionalArg[str] = ""
    """Prompt source, as prompts.source; default: eval.prompts of the run."""
    config: Path | None = None
    """Run file with templates, sampling and verifier for a model that is no run; without it the defaults hold."""
    pool: Path | None = None
    """Frozen answers to judge (JSONL); made from this model and kept there if the file does not exist."""
    draws: int | None = Field(default=None, ge=1)
    """Prompts per figure, instead of eval.draws."""
    seed: int | None = None
    """Seed of prompts and sampling, instead of eval.seed."""
    json_file: Path | None = Field(default=None, validation_alias=AliasChoices("json"))
    """Also write the figures to this file."""
    overrides: Overrides = Field(default_factory=list, validation_alias=AliasChoices("set", "s"))
    """section.key=value, over the run's settings; may be repeated."""

    def cli_cmd(self) -> None:
        from cli.evaluate import run

        run(self)


class Export(Command):
    """Write the newest checkpoint of a run as a Hugging Face directory."""

    run: CliPositionalArg[Path]
    """Run directory."""
    to: Path | None = None
    """Target directory; default: export/ in the run directory."""

    def cli_cmd(self) -> None:
        from cli.export import export

        export(self.run, self.to)


class Report(Command):
    """Write the report of a run again: one HTML file. Also while the run goes on."""

    run: CliPositionalArg[Path]
    """Run directory."""
    to: Path | None = None
    """File to write; default: report.html in the run directory."""

    def cli_cmd(self) -> None:
        from cli.report import report

        report(self.run, self.to)


class Status(Command):
    """Show where every issued task is, who does what, and what is wrong.

    Exit code 0: healthy; 1: the ledger does not balance; 6: somebody has to act; 3: no server answers.
    """

    run: CliPositionalArg[Path]
    """Run directory."""
    as_json: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print one JSON object."""

    def cli_cmd(self) -> None:
        from cli.status import status

        status(self.run, as_json=self.as_json)


class Top(Command):
    """Show a run on one screen while it goes on: throughput, backlog, members, judge, and what is wrong. q leaves.

    With --once exit code 3 when no server answers.
    """

    run: CliPositionalArg[Path]
    """Run directory."""
    once: bool = False
    """Print one frame, after two looks some seconds apart."""

    def cli_cmd(self) -> None:
        from cli.top import top
        from common import log

        log.configure(json=False)  # to stderr: stdout is for the screen
        top(self.run, once=self.once)


class Tail(Command):
    """Show what is on a stream, what the learner consumed, metrics, events or logs; disturbs nobody's work."""

    run: CliPositionalArg[Path]
    """Run directory."""
    what: CliPositionalArg[str]
    """tasks, rollouts (both kinds, or tasks:policy, rollouts:judge, ...), returned, weights, dead; groups (what the
    learner consumed); metrics, events, logs."""
    follow: bool = Field(default=False, validation_alias=AliasChoices("f", "follow"))
    """Go on with what comes, until Ctrl-C."""
    most: int = Field(default=20, ge=0, validation_alias=AliasChoices("n", "most"))
    """Lines to begin with."""
    as_json: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print one JSON object a line, with everything in it."""
    objective: Objective | None = None
    """Only solve, pointwise, pairwise or reflect."""
    actor: str | None = None
    """Only what this actor made; of logs, only what this process says."""
    uid: str | None = None
    """Only of this uid and what was made from it; its beginning is enough."""

    def cli_cmd(self) -> None:
        from cli.tail import Wanted, tail
        from common import log

        log.configure(json=False)  # to stderr: stdout is for the lines
        wanted = Wanted(objective=self.objective, actor=self.actor, uid=self.uid)
        tail(self.run, self.what, most=self.most, follow=self.follow, as_json=self.as_json, wanted=wanted)


class Why(Command):
    """Tell where a task came from and what became of it: prompt, answers, judge tasks, verdicts, step and loss."""

    run: CliPositionalArg[Path]
    """Run directory."""
    uid: CliPositionalArg[str]
    """Its uid, or a beginning that no other has."""
    as_json: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print one JSON object, with everything in it."""

    def cli_cmd(self) -> None:
        from cli.why import why
        from common import log

        log.configure(json=False)  # to stderr: stdout is for the lineage
        why(self.run, self.uid, as_json=self.as_json)


class Audit(Command):
    """Replay the event log and name every task that was lost or ended twice; exit code 1 when there is one."""

    run: CliPositionalArg[Path]
    """Run directory."""
    as_json: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print one JSON object, with the uids of all violations."""

    def cli_cmd(self) -> None:
        from cli.audit import audit_run
        from common import log

        log.configure(json=False)  # to stderr: stdout is for the findings
        audit_run(self.run, as_json=self.as_json)


class Steer(Command):
    run: CliPositionalArg[Path]
    """Run directory."""
    wait: float = Field(default=10.0, ge=0)
    """Seconds to wait for the learner's answer; the command is given all the same."""


class Pause(Steer):
    """Issue no more tasks and take no more steps; what is under way arrives, everything trained is saved."""

    def cli_cmd(self) -> None:
        from cli.steer import tell

        tell(self.run, "pause", wait_s=self.wait)


class Resume(Steer):
    """Go on after a pause, or call off a drain."""

    def cli_cmd(self) -> None:
        from cli.steer import tell

        tell(self.run, "resume", wait_s=self.wait)


class Drain(Steer):
    """Issue no more tasks, train all that is in flight, save, and end the run; `spark up` goes on later."""

    def cli_cmd(self) -> None:
        from cli.steer import tell

        tell(self.run, "drain", wait_s=self.wait)


class Set(Steer):
    """Change settings of a running run; without any, list those that can be changed, with their present values."""

    assignments: CliPositionalArg[Overrides] = Field(default_factory=list)
    """section.key=value of each."""

    def cli_cmd(self) -> None:
        from cli.steer import set_values

        set_values(self.run, self.assignments, wait_s=self.wait)


class ListDead(Command):
    """List what died, the newest last."""

    run: CliPositionalArg[Path]
    """Run directory."""
    most: int = Field(default=50, ge=1, validation_alias=AliasChoices("n", "most"))
    """Letters to show."""
    as_json: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print a JSON list."""

    def cli_cmd(self) -> None:
        from cli.dead import list_letters

        list_letters(self.run, most=self.most, as_json=self.as_json)


class ShowDead(Command):
    """Show one dead letter: why it died, and what it holds."""

    run: CliPositionalArg[Path]
    """Run directory."""
    letter: CliPositionalArg[str]
    """Its id."""
    as_json: bool = Field(default=False, validation_alias=AliasChoices("json"))
    """Print one JSON object."""

    def cli_cmd(self) -> None:
        from cli.dead import show_letter

        show_letter(self.run, self.letter, as_json=self.as_json)


class SomeDead(Command):
    run: CliPositionalArg[Path]
    """Run directory."""
    letters: CliPositionalArg[list[str]] = Field(default_factory=list)
    """Ids of dead letters."""
    every: bool = Field(default=False, validation_alias=AliasChoices("all"))
    """All of them."""


class RetryDead(SomeDead):
    """Put dead letters back on the streams they came from, to be tried again."""

    def cli_cmd(self) -> None:
        from cli.dead import retry_letters

        retry_letters(self.run, self.letters, every=self.every)


class DropDead(SomeDead):
    """Forget dead letters; their tasks stay dead."""

    def cli_cmd(self) -> None:
        from cli.dead import drop_letters

        drop_letters(self.run, self.letters, every=self.every)


class Dead(Command):
    """Look at the entries that nobody could work on, put them back, or forget them."""

    list: CliSubCommand[ListDead]
    """list them, the newest last"""
    show: CliSubCommand[ShowDead]
    """show one: why it died, and what it holds"""
    retry: CliSubCommand[RetryDead]
    """put them back on their streams"""
    drop: CliSubCommand[DropDead]
    """forget them"""

    def cli_cmd(self) -> None:
        from common import log

        log.configure(json=False)  # to stderr: stdout is for the letters
        CliApp.run_subcommand(self)


class Bootstrap(WithRunFile):
    """Prepare a server for a run: load the stream functions, with the admin's URL. Again after an upgrade of SPARK."""

    def cli_cmd(self) -> None:
        from cli.ready import bootstrap

        bootstrap(self.settings())


class Ready(WithRunFile):
    """Health check of a container: exit code 0 when the server has a heartbeat of a process of the run."""

    member: CliPositionalArg[str]
    """Its name: learner, recycler, or that of an actor."""

    def cli_cmd(self) -> None:
        from cli.ready import ready

        ready(self.settings(), self.member)


class Completion(Command):
    """Print a script that completes commands, options, run directories and settings: source <(spark completion bash)"""

    shell: CliPositionalArg[Literal["bash", "zsh", "fish"]]
    """For which shell."""

    def cli_cmd(self) -> None:
        from cli.completion import script

        print(script(self.shell), end="")


class Doctor(Command):
    """Tell what this machine can run, and how to install what is missing."""

    def cli_cmd(self) -> None:
        from cli.doctor import doctor

        doctor()


class Spark(BaseSettings):
    """SPARK: one model that learns to solve tasks, and to judge and repair its own answers."""

    model_config = SettingsConfigDict(
        cli_prog_name="spark",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_parse_args=True,
        cli_enforce_required=True,
        cli_exit_on_error=False,  # cli.__main__ says it, in the user's own spelling
        cli_hide_none_type=True,
        cli_avoid_json=True,
        use_attribute_docstrings=True,
        env_prefix="SPARK_CLI_",
    )
    up: CliSubCommand[Up]
    """run everything on this machine, or resume it"""
    actor: CliSubCommand[ActorCommand]
    """run one rollout actor"""
    recycler: CliSubCommand[RecyclerCommand]
    """run the recycler"""
    learner: CliSubCommand[LearnerCommand]
    """run the learner"""
    eval: CliSubCommand[Evaluate]
    """measure a model: policy, judge, reflection, test-time scaling"""
    export: CliSubCommand[Export]
    """write the newest checkpoint as a Hugging Face directory"""
    report: CliSubCommand[Report]
    """write the report of a run again, at any time"""
    status: CliSubCommand[Status]
    """show where every issued task is, and what is wrong"""
    top: CliSubCommand[Top]
    """show a run on one screen while it goes on"""
    tail: CliSubCommand[Tail]
    """show what is on the streams, what was consumed, metrics, events, logs"""
    why: CliSubCommand[Why]
    """tell where a task came from and what became of it"""
    audit: CliSubCommand[Audit]
    """name every task that was lost or ended twice"""
    pause: CliSubCommand[Pause]
    """hold a run: no tasks, no steps"""
    resume: CliSubCommand[Resume]
    """let it go on"""
    drain: CliSubCommand[Drain]
    """train what is in flight, save, and end the run"""
    set: CliSubCommand[Set]
    """change settings of a running run"""
    dead: CliSubCommand[Dead]
    """look at what nobody could work on, and try it again"""
    bootstrap: CliSubCommand[Bootstrap]
    """prepare a server for a run, with the admin's rights"""
    ready: CliSubCommand[Ready]
    """tell whether a process of the run works: a health check"""
    completion: CliSubCommand[Completion]
    """print a completion script for bash, zsh or fish"""
    doctor: CliSubCommand[Doctor]
    """tell what this machine can run"""

    def cli_cmd(self) -> None:
        CliApp.run_subcommand(self)
