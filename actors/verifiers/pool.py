"""Verification in killable processes, polled by a single-threaded loop.

The siblings of a group are verified in one job, because a round trip costs more than most verdicts. If the
job is killed (time, memory, crash) each sibling is tried again alone: only the one that is to blame
gets a verdict of status ``timeout`` or ``error``.
"""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pebble import ProcessFuture, ProcessPool
from pebble.pool.process import WORKERS_NAME

from actors.verifiers import failed, identity_of, verify, worker
from actors.verifying import PendingVerdicts
from common.messages import Completion, Task, Verdict

MAX_BREAKDOWNS: Final = 3
"""Breakdowns of all worker processes in a row, without one finished job, after which the pool gives up."""


class InlineVerifier:
    """The pool's interface without processes or limits: for tests and simulations."""

    def submit(self, task: Task, completions: Sequence[Completion]) -> PendingVerdicts:
        return _Ready(tuple(verify(task, completion) for completion in completions))

    def close(self) -> None:
        """Nothing to end."""


class VerifierPool:
    """``workers`` processes; each verification gets ``timeout_s`` seconds and ``memory_mb`` beyond the start size.

    ``python_path``: folders of ``python:`` verifiers. Must be closed. Not thread-safe. Every method, and those of
    pending verdicts, raise RuntimeError if the processes cannot be kept alive: then no verdict will ever come.
    """

    def __init__(self, *, workers: int, timeout_s: float, memory_mb: int, python_path: Sequence[Path] = ()) -> None:
        """Starts no process yet: the first ``submit`` does."""
        if multiprocessing.current_process().name == WORKERS_NAME:  # a worker imports the main script of its parent
            raise RuntimeError("a script that starts an actor must do so under `if __name__ == '__main__':`")
        self.timeout_s = timeout_s
        self._workers = workers
        self._names: list[str] = []  # verifiers seen; a worker that (re)starts imports theirs before its first job
        self._initargs = (memory_mb, [str(path) for path in python_path], self._names)
        self._closed = False
        self._breakdowns = 0
        self._processes = self._new_processes()

    def submit(self, task: Task, completions: Sequence[Completion]) -> PendingVerdicts:
        """Raises RuntimeError after ``close``."""
        if task.verifier not in self._names:
            self._names.append(task.verifier)
        return _Group(self, task, tuple(completion.text for completion in completions))

    def close(self) -> None:
        """Ends all workers now; unfinished verdicts are lost."""
        if not self._closed:
            self._closed = True
            _end(self._processes)

    def schedule(self, task: Task, texts: Sequence[str]) -> "_Job":
        if self._closed:
            raise RuntimeError("the verifier pool is closed")
        if not self._processes.active:  # pebble gives up when a worker dies between two jobs
            self._restart()
        arguments = (task.verifier, task.answer, task.verifier_args, tuple(texts), self.timeout_s)
        future = self._processes.schedule(worker.verdicts, args=arguments, timeout=self.timeout_s)
        return _Job(future=future, processes=self._processes)

    def check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the verifier pool was closed before these verdicts were done")

    def finished_a_job(self) -> None:
        self._breakdowns = 0

    def _restart(self) -> None:
        _end(self._processes)
        self._breakdowns += 1
        if self._breakdowns > MAX_BREAKDOWNS:
            raise RuntimeError(
                f"verifier processes died {self._breakdowns} times in a row without finishing a job "
                f"(verifiers: {', '.join(self._names)}); their standard error says why"
            )
        self._processes = self._new_processes()

    def _new_processes(self) -> ProcessPool:
        # spawn: the actor has threads and a model in memory, neither of which a worker may inherit
        context = multiprocessing.get_context("spawn")
        return ProcessPool(self._workers, initializer=worker.start, initargs=self._initargs, context=context)


def _end(processes: ProcessPool) -> None:
    processes.stop()  # type: ignore[no-untyped-call]
    processes.join()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    future: ProcessFuture[tuple[Verdict, ...]]
    processes: ProcessPool

    def done(self) -> bool:
        return self.future.done() or not self.processes.active  # a broken pool forgets the jobs it had queued

    def error(self) -> BaseException | None:
        if not self.future.done():
            return RuntimeError("the verifier processes broke down")
        return self.future.exception()


class _Group:
    """All texts in one job; after a failure one job per text."""

    def __init__(self, pool: VerifierPool, task: Task, texts: tuple[str, ...]) -> None:
        self._pool, self._task, self._texts = pool, task, texts
        self._jobs = [pool.schedule(task, texts)]
        self._alone = len(texts) == 1

    def done(self) -> bool:
        self._pool.check_open()
        if not all(job.done() for job in self._jobs):
            return False
        if any(job.error() is None for job in self._jobs):
            self._pool.finished_a_job()
        if self._alone or self._jobs[0].error() is None:
            return True
        self._jobs = [self._pool.schedule(self._task, (text,)) for text in self._texts]
        self._alone = True
        return False

    def verdicts(self) -> tuple[Verdict, ...]:
        while not self.done():
            wait([job.future for job in self._jobs], timeout=0.1)
        return tuple(verdict for job in self._jobs for verdict in self._verdicts_of(job))

    def _verdicts_of(self, job: _Job) -> tuple[Verdict, ...]:
        error, identity = job.error(), identity_of(self._task.verifier)
        if error is None:
            return job.future.result()
        if isinstance(error, TimeoutError):
            detail = f"killed after {self._pool.timeout_s:g} s"
            return (Verdict(status="timeout", reward=0.0, verifier=identity, detail=detail),)
        return (failed(identity, f"the verifier process died: {type(error).__name__}: {error}"),)


@dataclass(frozen=True, slots=True)
class _Ready:
    found: tuple[Verdict, ...]

    def done(self) -> bool:
        return True

    def verdicts(self) -> tuple[Verdict, ...]:
        return self.found
