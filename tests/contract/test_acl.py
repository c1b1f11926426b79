"""The users of infra/redis/users.acl on the real server: each role can do its work, and nothing else."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
from redis.exceptions import AuthenticationError, ConnectionError, NoPermissionError, ResponseError

from actors.actor import Actor
from actors.engine import Generated, Request
from actors.verifiers.pool import InlineVerifier
from cli.embedded import EmbeddedServer
from cli.rundir import RunDirectory
from cli.snapshot import Looker
from common.codec import MAX_MESSAGE_BYTES
from common.consumer import Consumer
from common.errors import ServerError
from common.heartbeat import Heartbeat
from common.keys import ACTORS, LEARNER, RECYCLER, Keys
from common.live import decide
from common.messages import ChatMessage, Completion, Sampling, Task, uid_of
from common.process import open_streams
from common.server import FUNCTIONS, Client, check_server, connect, loaded
from common.settings import Recycler, Settings
from common.settings import Sampling as SamplingSettings
from common.steering import Command, Steering
from common.streams import Delivery, Ending, Product, Streams
from common.templates import load_templates
from common.weights import WeightStore
from recycler.loop import RecyclerLoop
from recycler.reservoir import Reservoir

INFRA = Path(__file__).parents[2] / "infra" / "redis"
ROLES = ("admin", "learner", "actor", "recycler", "observer")
RUN = "acl-test"
K = Keys(RUN)
TASKS, ROLLOUTS = K.tasks("policy"), K.rollouts("policy")
JUDGE_TASKS, JUDGE_ROLLOUTS = K.tasks("judge"), K.rollouts("judge")
TOKEN = "1:nonce"

Connect = Callable[[str], Client]


# -- a server with these users --------------------------------------------------------------------------------


def make_users(folder: Path, url: str = "rediss://redis.example:6379", run: str = "*") -> None:
    subprocess.run(["sh", INFRA / "make_users.sh", folder, url, run], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def secrets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    make_users(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, secrets_dir: Path) -> Iterator[str]:
    """URL, without credentials, of a server that has read the file as it would at its start."""
    file = tmp_path_factory.mktemp("acl") / "users.acl"
    file.write_text("user default on nopass ~* &* +@all\n")  # who starts the server looks whether it answers
    options = {"appendonly": "no", "aclfile": str(file)}
    with EmbeddedServer(tmp_path_factory.mktemp("server"), options=options) as server:
        file.write_text((secrets_dir / "users.acl").read_text())
        with closing(connect(server.url)) as client:
            client.execute_command("ACL", "LOAD")
        yield server.url


@pytest.fixture(scope="module")
def url_of(server: str, secrets_dir: Path) -> Callable[[str], str]:
    def url(role: str) -> str:
        return server.replace("//", f"//{role}:{(secrets_dir / f'{role}.password').read_text()}@")

    return url


@pytest.fixture
def connected(url_of: Callable[[str], str]) -> Iterator[Connect]:
    with ExitStack() as stack:
        yield lambda role: stack.enter_context(closing(connect(url_of(role))))


@pytest.fixture
def admin(connected: Connect) -> Client:
    """Of the emptied server, without any functions on it."""
    client = connected("admin")
    client.flushall()
    client.function_flush()
    client.acl_log_reset()
    return client


@pytest.fixture
def start(admin: Client, url_of: Callable[[str], str]) -> Iterator[Callable[[str], Streams]]:
    """Start a role as its process does."""
    with ExitStack() as stack:

        def start(role: str) -> Streams:
            settings = Settings.model_validate(
                {"run": {"name": RUN}, "redis": {"url": url_of(role), "give_up_s": 2.0}, "learner": {"max_steps": 2}}
            )
            streams = open_streams(settings, owner=role in ("admin", "learner"))
            stack.enter_context(closing(streams.client))
            return streams

        yield start


@pytest.fixture
def roles(start: Callable[[str], Streams], connected: Connect) -> dict[str, Streams]:
    """Every role of a run that an admin has prepared; the observer only connects, as `spark status` does."""
    found = {role: start(role) for role in ("admin", "learner", "actor", "recycler")}
    return found | {"observer": Streams(connected("observer"), RUN)}


# -- what the roles work on -------------------------------------------------------------------------------------


def make_task(number: int) -> Task:
    return Task(
        uid=uid_of("solve", number),
        objective="solve",
        messages=(ChatMessage.user("1+1"),),
        question="1+1",
        answer="2",
        verifier="exact",
        sampling=Sampling(n=2, max_new_tokens=4),
    )


class OneStepEngine:
    """Finishes every group at once, with a right and a wrong answer."""

    policy_version = -1

    def __init__(self) -> None:
        self._added: list[Request] = []

    @property
    def groups_in_flight(self) -> int:
        return len(self._added)

    def tokenize(self, messages: object) -> np.ndarray:
        return np.array([1, 5], dtype=np.int32)

    def add(self, request: Request) -> None:
        self._added.append(request)

    def step(self) -> list[Generated]:
        added, self._added = self._added, []
        return [Generated(request=r, completions=tuple(map(self._completion, "23"))) for r in added]

    def _completion(self, answer: str) -> Completion:
        return Completion(
            token_ids=np.array([7, 2], dtype=np.int32),
            logprobs=np.array([-1.0, -0.5], dtype=np.float32),
            spans=((self.policy_version, 0),),
            finish_reason="stop",
            text=f"\\boxed{{{answer}}}",
        )

    def forget(self) -> None:
        self._added = []

    def apply(self, files: object, policy_version: int) -> None:
        self.policy_version = policy_version


def make_actor(streams: Streams, **options: object) -> Actor:
    fields = {"max_staleness": 1, "groups_in_flight": 4, "lease_s": 40.0, "max_deliveries": 3}
    return Actor("actor-0", streams, OneStepEngine(), InlineVerifier(), **(fields | options))


def make_recycler(streams: Streams) -> RecyclerLoop:
    templates = load_templates("default")
    sampling = SamplingSettings(group_size=2, max_new_tokens=16)
    return RecyclerLoop(
        streams, Reservoir(Recycler(), sampling, templates, run=RUN, seed=0), content_bound=4, least_room=1
    )


def publish(learner: Streams, folder: Path) -> None:
    def write(place: Path) -> None:
        (place / "model").write_bytes(b"weights")

    learner.publish(WeightStore(folder).publish(1, 0, -1, write))


def endings(deliveries: list[Delivery]) -> list[Ending]:
    kinds = {ROLLOUTS: "policy", JUDGE_ROLLOUTS: "judge"}
    return [Ending(stream=d.stream, id=d.id, uid=d.uid, outcome="trained", kind=kinds[d.stream]) for d in deliveries]


# -- what each role does ----------------------------------------------------------------------------------------


def test_a_run_by_its_roles(roles: dict[str, Streams], admin: Client, secrets_dir: Path, tmp_path: Path) -> None:
    """From the prompt to the acknowledgement, both kinds, with the real loops of actor and recycler."""
    learner, actor, recycler = roles["learner"], make_actor(roles["actor"]), make_recycler(roles["recycler"])
    assert learner.take_fence(1, TOKEN)
    assert learner.issue(TOKEN, 0, [make_task(n) for n in range(3)]) == 3
    publish(learner, tmp_path)
    learner.report_progress(policy_version=0, judge_granted=2)
    for _ in range(3):
        actor.tick()
        recycler.tick()
    consumer = Consumer(learner, LEARNER, "learner-e000001", [JUDGE_ROLLOUTS, ROLLOUTS])
    taken = consumer.claim(64) + consumer.claim(64)
    assert sorted(d.stream for d in taken) == [JUDGE_ROLLOUTS] * 2 + [ROLLOUTS] * 3
    assert learner.settle(TOKEN, LEARNER, 1, endings(taken)) == 5
    told = str([roles["observer"].members(), roles["observer"].progress(), roles["observer"].events()])
    assert "actor-0" in told
    assert not [role for role in ROLES if (secrets_dir / f"{role}.password").read_text() in told]
    actor.stop()
    recycler.stop()
    ledger = roles["observer"].conservation()
    assert ledger.balanced
    assert {kind: counts["trained"] for kind, counts in ledger.kinds.items()} == {"policy": 3, "judge": 2}
    # one observer's or role's call that was refused and then forgotten would be seen here
    assert admin.acl_log() == []


def test_the_learner_takes_over_repairs_and_deletes(roles: dict[str, Streams]) -> None:
    learner = roles["learner"]
    assert learner.take_fence(1, TOKEN)
    assert learner.begin(TOKEN, "g") == learner.generation() == "g"
    learner.issue(TOKEN, 0, [make_task(n) for n in range(3)])
    learner.rebuild(TOKEN, 2, {"issued:policy": 2})
    learner.park(TOKEN, [Product.of(make_task(0).uid, make_task(0))])
    [parked] = learner.read_new(LEARNER, "old", [K.returned], 1, None)
    assert learner.adopt(K.returned, LEARNER, "new") == 1
    assert learner.transfer(K.returned, LEARNER, TASKS, [(parked.id, [Product.of("u", make_task(0))])]) == [True]
    for stream in K.groups():
        learner.raise_id(stream, "9999999999999-0")
        learner.unacked(stream, K.groups()[stream][0])
        learner.trim(stream)
        learner.backlog(stream, K.groups()[stream][0])
    learner.forget_events(TOKEN, learner.newest_event())
    assert (learner.cursor(), learner.memory_share()) == (2, 0.0)
    learner.heartbeat("learner", {"role": "learner"}, ttl_s=60)
    assert learner.members() == {"learner": {"role": "learner"}}
    assert learner.dead_since("0-0")[1] == set()
    assert learner.unacked(TASKS, ACTORS) == ["u"]


def test_a_learner_without_a_judge_removes_the_recyclers_group(roles: dict[str, Streams]) -> None:
    """And makes lost groups again."""
    learner = Streams(roles["learner"].client, RUN, recycles=False)
    learner.remove_unused_groups()
    assert [group["name"] for group in learner.client.xinfo_groups(ROLLOUTS)] == [b"learner"]
    roles["learner"].create_groups()
    assert len(learner.client.xinfo_groups(ROLLOUTS)) == 2


def test_an_actor_renews_hands_back_buries_and_discards(roles: dict[str, Streams], admin: Client) -> None:
    learner, actor = roles["learner"], roles["actor"]
    assert learner.take_fence(1, TOKEN)
    learner.issue(TOKEN, 0, [make_task(n) for n in range(4)])
    consumer = Consumer(actor, ACTORS, "a", [JUDGE_TASKS, TASKS], lease_s=1e-9)
    first, second, third, fourth = consumer.claim(4)
    assert consumer.renew() == set()
    assert actor.bury(first, ACTORS, "poison", "policy")
    assert actor.transfer(TASKS, ACTORS, K.returned, [(second.id, [Product(uid="u", payload=b"m")])]) == [True]
    assert actor.transfer(TASKS, ACTORS, ROLLOUTS, [(third.id, [])]) == [True]
    for delivery in (first, second, third):
        consumer.done(delivery)
    assert consumer.hand_back_all() == 1
    [again] = Consumer(actor, ACTORS, "b", [TASKS], lease_s=1e-9).claim(4)
    assert again.id == fourth.id
    assert learner.dead_letters()[0].reason == "poison"
    assert admin.acl_log() == []


def test_an_actor_makes_lost_groups_again(roles: dict[str, Streams], admin: Client) -> None:
    """The server lost its data: who notices first may be an actor."""
    for stream in K.groups():
        admin.delete(stream)
    assert Consumer(roles["actor"], ACTORS, "a", [TASKS]).claim(1) == []
    assert [group["name"] for group in admin.xinfo_groups(TASKS)] == [b"actors"]


def test_the_recycler_buries_what_it_cannot_read(roles: dict[str, Streams], admin: Client) -> None:
    actor, recycler, learner = roles["actor"], make_recycler(roles["recycler"]), roles["learner"]
    actor.client.xadd(ROLLOUTS, {"uid": "u", "m": b"\xc1"})
    recycler.tick()
    [letter] = learner.dead_letters()
    assert (letter.group, letter.uid) == (RECYCLER, "u")
    assert learner.drop([letter.id]) == 1
    assert admin.acl_log() == []


def test_dead_letters_are_revived_by_the_learners_credentials(roles: dict[str, Streams]) -> None:
    learner, actor = roles["learner"], roles["actor"]
    assert learner.take_fence(1, TOKEN)
    learner.issue(TOKEN, 0, [make_task(0)])
    [delivery] = actor.read_new(ACTORS, "a", [TASKS], 1, None)
    actor.bury(delivery, ACTORS, "poison", "policy")
    [letter] = learner.dead_letters()
    assert learner.revive(letter)
    assert learner.conservation().balanced


def test_steering_is_told_by_the_learners_credentials_and_read_by_all(roles: dict[str, Streams], admin: Client) -> None:
    """`spark pause` appends and reads; actors and the recycler ask whether they are held, and can say nothing."""
    learner = roles["learner"]
    assert learner.take_fence(1, TOKEN)
    command = Command(nonce="n", action="pause", by="ann", at=0.0)
    learner.steer(command)
    assert len(learner.control()) == len(roles["observer"].control()) == 1
    change = decide(command, Steering(), Settings(), policy_version=0, epoch=1)
    learner.tell_steering(TOKEN, Steering().after(change), change)
    for role in ("learner", "actor", "recycler", "observer", "admin"):
        assert roles[role].steering().mode == "paused"
        assert Heartbeat(roles[role], "somebody", "actor").held().startswith("paused by ann")
    assert admin.acl_log() == []
    for role in ("actor", "recycler", "observer"):
        with pytest.raises(ServerError, match="lack a right"):
            roles[role].steer(command)
    with pytest.raises(ServerError, match="lack a right"):
        roles["actor"].tell_steering(TOKEN, Steering(), change)


def test_an_observer_sees_everything(roles: dict[str, Streams], admin: Client) -> None:
    learner, observer = roles["learner"], roles["observer"]
    assert learner.take_fence(1, TOKEN)
    learner.issue(TOKEN, 0, [make_task(0)])
    learner.heartbeat("learner", {"role": "learner"}, ttl_s=60)
    check_server(observer.client)
    assert observer.conservation().balanced
    assert observer.members() == {"learner": {"role": "learner"}}
    assert observer.ledger()["issued:policy"] == 1
    assert observer.progress() == {}
    assert observer.generation() is None
    assert observer.cursor() == 1
    assert len(observer.events()) == 1
    assert observer.newest_weights() == []
    assert observer.dead_letters() == []
    for stream, groups in K.groups().items():
        for group in groups:
            observer.backlog(stream, group)
            observer.unacked(stream, group)
        observer.client.xlen(stream)
        observer.client.xread({stream: "0"}, count=1)
    looker = Looker(RunDirectory(Settings.model_validate({"run": {"name": RUN}})), observer)
    assert looker.look().heard_s["learner"] > 200  # of 300 s, 60 are left
    assert admin.acl_log() == []


def test_the_learner_may_call_every_function() -> None:
    """Each command of a function is checked against its caller. Functions that are new must not fail at a customer."""
    [rules] = re.findall(r"^user learner (.*?)^$", (INFRA / "users.acl").read_text(), re.DOTALL | re.MULTILINE)
    allowed = set(re.findall(r"\+([a-z]+)", rules))
    used = {name.lower() for name in re.findall(r"redis\.call\('([A-Z]+)'", FUNCTIONS.read_text())}
    assert len(used) > 10
    assert used <= allowed


# -- how each role starts ---------------------------------------------------------------------------------------


def test_the_functions_are_loaded_by_the_admin_only(start: Callable[[str], Streams], admin: Client) -> None:
    with pytest.raises(ServerError, match="an admin does it once: redis-cli -x FUNCTION LOAD REPLACE") as at_learner:
        start("learner")
    with pytest.raises(ServerError, match="has had no stream functions for 2 s"):
        start("actor")
    assert "\n" not in str(at_learner.value)
    admin.function_load(FUNCTIONS.read_text())
    for role in ("actor", "recycler", "learner"):
        start(role)


def test_every_role_may_ask_whether_it_is_ready(roles: dict[str, Streams], admin: Client) -> None:
    """The health check of its container: `spark ready`."""
    for role in ("learner", "actor", "recycler"):
        roles[role].heartbeat(role, {"role": role}, ttl_s=60)
        assert roles[role].lives(role)
        assert not roles[role].lives("nobody")
    assert admin.acl_log() == []


def test_functions_of_another_version_are_not_taken_for_ours(start: Callable[[str], Streams], admin: Client) -> None:
    start("admin")
    admin.function_load(FUNCTIONS.read_text() + "\n-- older", replace=True)
    with pytest.raises(ServerError, match="may not load the stream functions"):
        start("learner")
    start("admin")
    start("learner")


def test_a_role_with_too_few_rights_is_one_sentence(start: Callable[[str], Streams]) -> None:
    start("admin")
    with pytest.raises(ServerError, match=r"lack a right that this process needs: .*docs/security\.md") as error:
        start("observer")
    assert "\n" not in str(error.value)


def test_without_credentials_nobody_gets_in(server: str, admin: Client) -> None:
    with closing(connect(server)) as stranger:
        assert not loaded(stranger)
        with pytest.raises(AuthenticationError):
            stranger.ping()
    with (
        closing(connect(server.replace("//", "//actor:guessed@"))) as stranger,
        pytest.raises(ServerError, match="refuses these credentials") as error,
    ):
        check_server(stranger)
    assert "guessed" not in str(error.value)


# -- what each role cannot do ---------------------------------------------------------------------------------------

SERVER_WIDE = [
    "EVAL 'return 1' 0",
    "EVALSHA abc 0",
    "EVAL_RO 'return 1' 0",
    "SCRIPT LOAD 'return 1'",
    "SCRIPT FLUSH",
    "SCRIPT KILL",
    "FUNCTION LOAD x",
    "FUNCTION DELETE spark",
    "FUNCTION FLUSH",
    "FUNCTION DUMP",
    "FUNCTION RESTORE x",
    "FLUSHALL",
    "FLUSHDB",
    "CONFIG GET *",
    "CONFIG SET maxmemory 1",
    "CONFIG REWRITE",
    "KEYS *",
    "SCAN 0",
    "RANDOMKEY",
    "SHUTDOWN",
    "SAVE",
    "BGREWRITEAOF",
    "REPLICAOF NO ONE",
    "MODULE LIST",
    "ACL LIST",
    "ACL SETUSER actor ~* +@all",
    "ACL GETUSER admin",
    "CLIENT LIST",
    "CLIENT KILL TYPE normal",
    "CLIENT PAUSE 1",
    "MONITOR",
    "SLOWLOG GET",
    "SWAPDB 0 1",
    "SELECT 1",
    "PUBLISH c m",
    "SUBSCRIBE c",
    f"SORT {K.members}",
    f"DUMP {K.fence}",
    f"RESTORE {K.fence} 0 x",
    f"MIGRATE h 1 {K.fence} 0 1",
    f"RENAME {K.fence} x",
    f"COPY {TASKS} x",
    f"EXPIRE {TASKS} 1",
    f"OBJECT FREQ {TASKS}",
    "GET another-application",
    "SET another-application 1",
]
DELETING = [f"{command} {key}" for command in ("DEL", "UNLINK") for key in (TASKS, ROLLOUTS, K.ledger, K.fence)]
DELETING += [f"XDEL {key} 1-0" for key in (TASKS, ROLLOUTS, JUDGE_ROLLOUTS, K.returned, K.weights, K.dead, K.events)]
DELETING += [f"XTRIM {key} MAXLEN 0" for key in (TASKS, ROLLOUTS, JUDGE_TASKS, K.weights, K.dead, K.events)]
DELETING += [f"XGROUP DESTROY {TASKS} {ACTORS}", f"XGROUP DESTROY {ROLLOUTS} {LEARNER}"]
DELETING += [f"XGROUP DELCONSUMER {TASKS} {ACTORS} a", f"XGROUP SETID {TASKS} {ACTORS} $", f"XSETID {TASKS} 9-9"]
READING_ROLLOUTS = [
    command
    for key in (ROLLOUTS, JUDGE_ROLLOUTS)
    for command in (
        f"XRANGE {key} - +",
        f"XREVRANGE {key} + -",
        f"XREAD STREAMS {key} 0",
        f"XREADGROUP GROUP {LEARNER} a STREAMS {key} >",
        f"XPENDING {key} {LEARNER}",
        f"XCLAIM {key} {LEARNER} a 0 1-0",
        f"XAUTOCLAIM {key} {LEARNER} a 0 0",
        f"XACK {key} {LEARNER} 1-0",
        f"XINFO STREAM {key} FULL",
    )
]
ACCOUNTS = [
    f"GET {K.fence}",
    f"SET {K.fence} 9:mine",
    f"SETNX {K.fence} 9:mine",
    f"GETSET {K.fence} 9:mine",
    f"GETDEL {K.fence}",
    f"APPEND {K.fence} x",
    f"SET {K.cursor} 0",
    f"SET {K.generation} mine",
    f"HSET {K.ledger} trained:policy 0",
    f"HDEL {K.ledger} trained:policy",
    f"XADD {K.weights} * m x",
    f"SREM {K.members} learner",
    f"GET {K.heartbeat('learner')}",
]
LEARNERS_FUNCTIONS = [
    f"FCALL spark_take_fence 1 {K.fence} 9 9:mine",
    f"FCALL spark_begin 2 {K.fence} {K.generation} 1:nonce mine",
    f"FCALL spark_rebuild 7 {K.fence} {K.cursor} {K.returned} {K.ledger} {K.events} {K.generation} {TASKS} 1:nonce g 0",
    f"FCALL spark_issue 5 {K.fence} {K.cursor} {TASKS} {K.ledger} {K.events} 1:nonce 0 1 u m",
    f"FCALL spark_settle 4 {K.fence} {K.ledger} {K.events} {ROLLOUTS} 1:nonce {LEARNER} 1 1 1-0 u trained policy",
    f"FCALL spark_publish 1 {K.weights} m 1",
    f"FCALL spark_adopt 1 {ROLLOUTS} {LEARNER} mine",
    f"FCALL spark_forget_events 2 {K.fence} {K.events} 1:nonce 9-9",
    f"FCALL spark_drop 1 {K.dead} 1-0",
    f"FCALL spark_trim 1 {TASKS} 1 1000",
]
# With keys that FCALL itself lets pass: it is the function's own commands that are refused.
FUNCTIONS_FROM_WITHIN = [
    f"FCALL spark_transfer 4 {ROLLOUTS} {K.returned} {K.ledger} {K.events} {LEARNER} '' 1-0 1 u m",
    f"FCALL spark_bury 4 {JUDGE_ROLLOUTS} {K.dead} {K.ledger} {K.events} {LEARNER} 1-0 u policy r 1 m",
    f"FCALL spark_unacked 1 {ROLLOUTS} {LEARNER} 0-0 10",
    f"FCALL spark_drop 1 {K.events} 1-0",
    f"FCALL spark_take_fence 1 {K.heartbeat('a')} 9 9:mine",
    f"FCALL spark_publish 1 {TASKS} m 1",
    f"FCALL spark_report 1 {K.ledger} trained:policy 9",
]
FORBIDDEN = {
    "actor": [
        *SERVER_WIDE,
        *DELETING,
        *READING_ROLLOUTS,
        *ACCOUNTS,
        *LEARNERS_FUNCTIONS,
        *FUNCTIONS_FROM_WITHIN,
        f"XADD {TASKS} * uid u m m",
        f"XRANGE {TASKS} - +",
        f"XREADGROUP GROUP {LEARNER} a STREAMS {K.returned} >",
        f"XRANGE {K.dead} - +",
        f"XRANGE {K.events} - +",
        f"HGETALL {K.ledger}",
        f"HSET {K.progress} judge_granted 9",
        f"FCALL spark_report 1 {K.progress} judge_granted 9",
    ],
    "recycler": [
        *SERVER_WIDE,
        *DELETING,
        *(command for command in READING_ROLLOUTS if JUDGE_ROLLOUTS in command),
        *ACCOUNTS,
        *LEARNERS_FUNCTIONS,
        f"XRANGE {ROLLOUTS} - +",
        f"XADD {TASKS} * uid u m m",
        f"XADD {ROLLOUTS} * uid u m m",
        f"XREADGROUP GROUP {ACTORS} a STREAMS {TASKS} >",
        f"XREADGROUP GROUP {ACTORS} a STREAMS {JUDGE_TASKS} >",
        f"XREAD STREAMS {K.weights} 0",
    ],
    "observer": [
        *SERVER_WIDE,
        *DELETING,
        *(command for command in ACCOUNTS if not command.startswith("GET ")),
        *(command for command in LEARNERS_FUNCTIONS if "spark_trim" not in command),
        f"XADD {TASKS} * uid u m m",
        f"XACK {TASKS} {ACTORS} 1-0",
        f"XREADGROUP GROUP {ACTORS} a STREAMS {TASKS} >",
        f"XCLAIM {TASKS} {ACTORS} a 0 1-0",
        f"XGROUP CREATE {TASKS} mine 0",
        f"HINCRBY {K.ledger} trained:policy 1",
        f"SET {K.heartbeat('a')} x",
        f"FCALL spark_transfer 4 {TASKS} {ROLLOUTS} {K.ledger} {K.events} {ACTORS} '' 1-0 1 u m",
        f"FCALL spark_heartbeat 2 {K.members} {K.heartbeat('a')} a x 1000",
        f"FCALL spark_report 1 {K.progress} judge_granted 9",
    ],
    "learner": [
        *SERVER_WIDE,
        f"XGROUP SETID {TASKS} {ACTORS} $",
        "DEL another-application",
        "XADD another-application * a b",
    ],
}


def words(command: str) -> list[str]:
    return [part.strip("'") for part in re.findall(r"'[^']*'|\S+", command)]


@pytest.fixture(scope="module")
def filled(server: str, url_of: Callable[[str], str]) -> None:
    """A run with something in every place, so that nothing is refused for want of a key."""
    with closing(connect(url_of("admin"))) as client:
        client.flushall()
        client.function_load(FUNCTIONS.read_text(), replace=True)
        streams = Streams(client, RUN)
        streams.create_groups()
        streams.take_fence(1, TOKEN)
        for stream in (*K.groups(), K.weights, K.dead, K.events):
            client.xadd(stream, {"uid": "u", "m": "m"}, id="1-0")
        for stream, groups in K.groups().items():
            for group in groups:
                streams.read_new(group, "owner", [stream], 1, None)


def refused(error: ResponseError) -> bool:
    """For want of rights: at the door, or in the middle of a function."""
    within = ("ACL failure in script", "The user executing the script can't")  # as newer and older servers say it
    return isinstance(error, NoPermissionError) or str(error).startswith(within)


def everything(client: Client) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.scan_iter()}


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("role", FORBIDDEN)
def test_everything_else_is_refused(connected: Connect, role: str) -> None:
    admin, client = connected("admin"), connected(role)
    before, allowed = everything(admin), []
    for command in FORBIDDEN[role]:
        try:
            client.execute_command(*words(command))
        except ResponseError as error:
            if not refused(error):
                allowed.append(f"{command}: {error}")
        else:
            allowed.append(command)
    assert not allowed, "\n".join(allowed)
    assert everything(admin) == before


@pytest.mark.usefixtures("filled")
def test_the_admin_would_not_be_refused(connected: Connect) -> None:
    """Guards the test above: its commands are commands, and its keys are those of the run."""
    admin = connected("admin")
    assert admin.execute_command(*words(f"XLEN {ROLLOUTS}")) == 1
    for command in (f"GET {K.fence}", "EVAL 'return 1' 0", f"XRANGE {ROLLOUTS} - +", f"XTRIM {K.dead} MAXLEN 1"):
        admin.execute_command(*words(command))


# -- the files of infra/redis ---------------------------------------------------------------------------------------


def test_users_of_one_run_cannot_touch_another(server: str, admin: Client, tmp_path: Path) -> None:
    make_users(tmp_path, run="mine")
    [rules] = re.findall(r"^user learner (.*)$", (tmp_path / "users.acl").read_text(), re.MULTILINE)
    admin.execute_command("ACL", "SETUSER", "one-run", "reset", *rules.split())
    password = (tmp_path / "learner.password").read_text()
    try:
        with closing(connect(server.replace("//", f"//one-run:{password}@"))) as learner:
            learner.set(Keys("mine").cursor, 1)
            with pytest.raises(NoPermissionError):
                learner.set(Keys("yours").cursor, 1)
    finally:
        admin.acl_deluser("one-run")


def test_passwords_are_made_once_kept_private_and_only_hashed_for_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make_users(folder)
    users = (folder / "users.acl").read_text()
    passwords = {role: (folder / f"{role}.password").read_text() for role in ROLES}
    assert len(set(passwords.values())) == len(ROLES)
    for role, password in passwords.items():
        assert re.fullmatch("[0-9a-f]{64}", password)
        assert (folder / f"{role}.url").read_text() == f"rediss://{role}:{password}@redis.example:6379\n"
        assert password not in users
    assert {path.stat().st_mode & 0o077 for path in (folder, *folder.iterdir())} == {0}
    (folder / "actor.password").write_text("chosen-by-hand\n")
    make_users(folder)
    again = (folder / "users.acl").read_text()
    changed = [line.split()[1] for line, old in zip(again.splitlines(), users.splitlines(), strict=True) if line != old]
    assert changed == ["actor"]
    assert (folder / "actor.url").read_text() == "rediss://actor:chosen-by-hand@redis.example:6379\n"


@pytest.mark.parametrize(
    ("url", "run"), [("redis.example", "*"), ("redis://a:b@h", "*"), ("http://h", "*"), ("redis://h", "a b")]
)
def test_what_makes_no_sense_makes_no_users(tmp_path: Path, url: str, run: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        make_users(tmp_path / "secrets", url, run)
    assert "usage: make_users.sh" in error.value.stderr
    assert not (tmp_path / "secrets").exists()


def test_no_password_is_in_the_template() -> None:
    lines = (INFRA / "users.acl").read_text().splitlines()
    users = [line for line in lines if line.startswith("user ")]
    assert users[0] == "user default off"
    assert [line.split()[1:4] for line in users[1:]] == [[role, "on", f"#%{role}%"] for role in ROLES]


def directives(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value.strip('"') for name, value in (line.split(" ", 1) for line in lines)}


def test_the_server_takes_every_line_of_the_configuration(tmp_path: Path) -> None:
    conf = directives((INFRA / "redis.conf").read_text())
    (tmp_path / "users.acl").write_text("user default on nopass ~* &* +@all\n")
    assert conf["aclfile"] == "/run/secrets/users.acl"
    options = {**conf, "dir": str(tmp_path), "aclfile": str(tmp_path / "users.acl")}
    with EmbeddedServer(tmp_path / "data", options=options) as server, closing(connect(server.url)) as client:
        found = client.config_get("*")
        check_server(client)
    assert found["maxmemory"] == str(4 * 2**30)
    assert found["appendonly"] == "yes"
    assert MAX_MESSAGE_BYTES < int(found["proto-max-bulk-len"]) <= 2 * MAX_MESSAGE_BYTES
    assert int(found["client-query-buffer-limit"]) > int(found["proto-max-bulk-len"])
    assert {found[f"enable-{what}"] for what in ("debug-command", "module-command", "protected-configs")} == {"no"}


def test_the_embedded_server_receives_no_more_than_a_message(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "data") as server, closing(connect(server.url)) as client:
        client.set("largest", bytes(MAX_MESSAGE_BYTES))
        with pytest.raises(
            (ConnectionError, ResponseError), match=r"invalid bulk length|[Cc]onnection|closed|[Bb]roken"
        ):
            client.set("bomb", bytes(64 * 2**20))
        assert client.exists("largest", "bomb") == 1
