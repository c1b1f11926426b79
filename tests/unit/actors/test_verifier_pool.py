import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actors.verifiers.pool import InlineVerifier, VerifierPool
from common.messages import Completion, Sampling, Task, Verdict

TIMEOUT_S = 3.0
FUNCTIONS = '''
import os, sys

def verify(completion, answer):
    """Does what the completion says."""
    if completion == "loop":
        while True:
            pass
    if completion == "hog":
        return float(len(bytearray(4 * 2**30)))
    if completion == "crash":
        os._exit(3)
    if completion == "exit":
        sys.exit("stop")
    if completion == "raise":
        raise KeyError("why")
    if completion == "torch":
        return "torch" not in sys.modules
    if completion == "pid":
        raise RuntimeError(os.getpid())
    return completion == answer
'''


def task(verifier: str, answer: str) -> Task:
    return Task(
        uid="u",
        objective="solve",
        messages=(),
        question="",
        answer=answer,
        verifier=verifier,
        sampling=Sampling(n=2, max_new_tokens=8),
    )


def completions(*texts: str) -> list[Completion]:
    ids, logprobs = np.array([1], np.int32), np.array([-1.0], np.float32)
    return [
        Completion(token_ids=ids, logprobs=logprobs, spans=((0, 0),), finish_reason="stop", text=text) for text in texts
    ]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VerifierPool]:
    folder: Path = tmp_path_factory.mktemp("user")
    (folder / "pool_user_verifier.py").write_text(FUNCTIONS)
    pool = VerifierPool(workers=2, timeout_s=TIMEOUT_S, memory_mb=512, python_path=[folder])
    yield pool
    pool.close()


USER = "python:pool_user_verifier:verify"


def statuses(verdicts: tuple[Verdict, ...]) -> list[tuple[str, float]]:
    return [(verdict.status, verdict.reward) for verdict in verdicts]


@pytest.mark.parametrize("inline", [True, False])
def test_verdicts_come_in_the_order_of_the_completions(pool: VerifierPool, inline: bool) -> None:
    verifier = InlineVerifier() if inline else pool
    pending = [
        verifier.submit(task("exact", str(gold)), completions(*(f"\\boxed{{{i}}}" for i in range(4)), "no box"))
        for gold in range(4)
    ]
    for gold, group in enumerate(pending):
        verdicts = group.verdicts()
        assert group.done()
        assert statuses(verdicts) == [("ok", float(i == gold)) for i in range(4)] + [("no_answer", 0.0)]
        assert [verdict.answer for verdict in verdicts] == ["0", "1", "2", "3", None]


def test_math_bombs_do_not_take_their_siblings_with_them(pool: VerifierPool) -> None:
    bombs = ["9^{9^{9^9}}", "(10^8)!"]
    deep = "(" * 1990 + "8" + ")" * 1990
    boxes = ["8", bombs[0], "2+6", bombs[1], "7", deep, "(" * 4000 + ")" * 4000]
    pending = pool.submit(task("math", "8"), completions(*(f"\\boxed{{{box}}}" for box in boxes)))
    assert not pending.done()  # nor did `submit` wait for them
    verdicts = pending.verdicts()
    expected = ["ok", "timeout", "ok", "timeout", "ok", "ok", "no_answer"]
    assert [verdict.status for verdict in verdicts] == expected
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert verdicts[1].verifier == verdicts[0].verifier
    assert "after 3 s" in verdicts[1].detail
    assert statuses(pool.submit(task("math", "8"), completions("\\boxed{2^3}")).verdicts()) == [("ok", 1.0)]


def test_user_function_can_only_harm_itself(pool: VerifierPool) -> None:
    texts = ["9", "loop", "hog", "crash", "exit", "raise", "8"]
    verdicts = pool.submit(task(USER, "9"), completions(*texts)).verdicts()
    assert [verdict.status for verdict in verdicts] == ["ok", "timeout", "error", "error", "error", "error", "ok"]
    assert [verdict.correct for verdict in verdicts] == [True] + 6 * [False]
    details = [verdict.detail for verdict in verdicts]
    assert "MemoryError" in details[2]
    assert "ProcessExpired" in details[3]
    assert "KeyError: 'why'" in details[5]
    assert statuses(pool.submit(task(USER, "9"), completions("9", "8")).verdicts()) == [("ok", 1.0), ("ok", 0.0)]


def test_workers_do_not_load_torch(pool: VerifierPool) -> None:
    assert statuses(pool.submit(task(USER, "9"), completions("torch")).verdicts()) == [("ok", 1.0)]


def test_survives_the_death_of_an_idle_worker(pool: VerifierPool) -> None:
    (verdict,) = pool.submit(task(USER, "9"), completions("pid")).verdicts()
    os.kill(int(verdict.detail.removeprefix("RuntimeError: ")), signal.SIGKILL)
    for _ in range(3):
        assert statuses(pool.submit(task(USER, "9"), completions("9", "8")).verdicts()) == [("ok", 1.0), ("ok", 0.0)]


def test_close_ends_busy_workers_without_waiting_for_them() -> None:
    """The job would loop for an hour; the test run's own limit is far below."""
    pool = VerifierPool(workers=1, timeout_s=3600.0, memory_mb=1024)
    pending = pool.submit(task("math", "8"), completions("\\boxed{9^{9^{9^9}}}"))
    assert not pending.done()
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pending.verdicts()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(task(USER, "9"), completions("9"))


def test_gives_up_when_workers_die_at_start(tmp_path: Path) -> None:
    (tmp_path / "dies_on_import.py").write_text("import os; os._exit(7)")
    pool = VerifierPool(workers=1, timeout_s=TIMEOUT_S, memory_mb=512, python_path=[tmp_path])

    def verify_many() -> None:
        for _ in range(10):
            pool.submit(task("python:dies_on_import:f", "9"), completions("9", "8")).verdicts()

    with pytest.raises(RuntimeError, match="dies_on_import"):
        verify_many()
    pool.close()


def test_refuses_to_run_inside_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker re-imports an unguarded main script, which would start a second actor in it."""
    monkeypatch.setattr(multiprocessing.current_process(), "name", "pebble_pool_worker")
    with pytest.raises(RuntimeError, match="__name__"):
        VerifierPool(workers=1, timeout_s=TIMEOUT_S, memory_mb=512)
