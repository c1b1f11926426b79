"""examples/slurm/spark.sbatch on one machine: Slurm's commands are stand-ins, everything that they start is real."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from run_harness import DEMO, ROOT, environment, spark, steps_of, until

from cli.embedded import find_server

SBATCH = ROOT / "examples" / "slurm" / "spark.sbatch"
LOAD = """
    import os, sys
    from urllib.parse import quote
    from redis import Redis
    host, port = (sys.argv[sys.argv.index(flag) + 1] for flag in ("-h", "-p"))
    user = sys.argv[sys.argv.index("--user") + 1]
    assert sys.argv[-4:] == ["-x", "FUNCTION", "LOAD", "REPLACE"], sys.argv
    client = Redis(host=host, port=int(port), username=user, password=os.environ["REDISCLI_AUTH"])
    client.function_load(sys.stdin.read(), replace=True)
"""


def script(path: Path, text: str) -> None:
    path.write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    # a step runs here; its options say where it would have run
    script(folder / "srun", '#!/bin/sh\nwhile case $1 in --*) true ;; *) false ;; esac; do shift; done\nexec "$@"\n')
    # two nodes, both of them this one
    script(folder / "scontrol", "#!/bin/sh\n[ $1 = requeue ] || printf 'localhost\\nlocalhost\\n'\n")
    script(folder / "redis-server", f'#!/bin/sh\nexec {find_server()} "$@" --bind 127.0.0.1\n')
    (folder / "load.py").write_text(textwrap.dedent(LOAD), encoding="utf-8")
    script(folder / "redis-cli", f'#!/bin/sh\nexec {sys.executable} {folder / "load.py"} "$@"\n')
    return folder


@pytest.fixture
def job(tmp_path: Path, stand_ins: Path) -> Iterator[subprocess.Popen[str]]:
    shared = tmp_path / "shared"
    (shared / ".venv" / "bin").mkdir(parents=True)
    script(shared / ".venv" / "bin" / "spark", f'#!/bin/sh\nexec {sys.executable} -m cli "$@"\n')
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    given = {
        **environment(),
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": "1",
        "SPARK_SHARED": str(shared),
        "SPARK_REPOSITORY": str(ROOT),
        "SPARK_PORT": str(port),
        "SPARK_LEARNER__MAX_STEPS": "100000",
        "SPARK_LEARNER__GROUPS_PER_STEP": "4",
        "SPARK_LEARNER__CHECKPOINT_EVERY": "2",
        "SPARK_ACTOR__GROUPS_IN_FLIGHT": "4",
        "SPARK_EVAL__PROMPTS": "",
    }
    with (tmp_path / "job.log").open("wb") as output:
        job = subprocess.Popen(
            ["bash", str(SBATCH), str(DEMO)],
            cwd=tmp_path,
            env=given,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    yield job
    if job.poll() is None:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def test_a_job_trains_stops_in_good_order_and_balances(job: subprocess.Popen[str], tmp_path: Path) -> None:
    run, log = tmp_path / "runs" / "demo", tmp_path / "job.log"

    def trained() -> bool:
        assert job.poll() is None, log.read_text()
        return len(steps_of(run)) >= 3

    until(trained, "three steps")
    audited = spark("audit", str(run), cwd=tmp_path, SPARK_REDIS__URL_FILE=secret_of(tmp_path, "observer"))
    assert audited.returncode == 0, audited.stdout + audited.stderr
    job.send_signal(signal.SIGTERM)  # as Slurm does before the time limit
    assert job.wait(timeout=60) == 143, log.read_text()
    assert sorted((run / "checkpoints").glob("*")), log.read_text()
    logs = run / "logs"
    assert '"actor.stopped"' in (logs / "actor-localhost.log").read_text()
    assert max(steps_of(run)) >= 3


def secret_of(tmp_path: Path, role: str) -> str:
    return str(tmp_path / "shared" / ".spark-slurm" / "secrets" / f"{role}.url")
