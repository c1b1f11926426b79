"""Steering without a server: what commands make of a run, which settings are live, and what a bad value is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.codec import decode, encode
from common.errors import InvalidMessage, SettingsError
from common.live import FIXED, LIVE, decide, not_live, of_the_file, steered, value_of, with_values
from common.settings import Settings
from common.settings_sources import known_keys, overridden_keys
from common.steering import Change, Command, Steering, fold, unheard

FILE = Settings(learner={"judge_share": 0.5, "lr": 1e-4, "max_steps": 100})


def command(action: str, nonce: str = "n", **values) -> Command:
    return Command(nonce=nonce, action=action, by="ann@host", at=60.0, values=values)


def told(*commands: Command, file: Settings = FILE, start: Steering | None = None) -> Steering:
    steering = start or Steering()
    for one in commands:
        steering = steering.after(decide(one, steering, file, policy_version=7, epoch=2))
    return steering


def set_to(**values) -> Command:
    return command("set", nonce=repr(values), **{key.replace("__", "."): value for key, value in values.items()})


# -- the mode --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actions", "mode"),
    [
        ((), "running"),
        (("pause",), "paused"),
        (("pause", "resume"), "running"),
        (("drain",), "draining"),
        (("drain", "resume"), "running"),
        (("drain", "pause"), "paused"),
        (("pause", "drain"), "draining"),
        (("resume",), "running"),
    ],
)
def test_the_last_word_holds(actions, mode) -> None:
    assert told(*(command(action) for action in actions)).mode == mode


def test_a_pause_says_who_and_since_when_also_after_it_was_said_again() -> None:
    first = told(command("pause"))
    again = first.after(Change(nonce="m", action="pause", by="bob", at=99.0, policy_version=9, epoch=2))
    assert again.held == first.held == "paused by ann@host since 1970-01-01 00:01:00 UTC"
    assert again.answer("m").policy_version == 9
    assert Steering().held == ""


def test_a_name_cannot_steer_a_screen() -> None:
    change = decide(
        Command(nonce="n", action="pause", by="ann\x1b[2J\n" + "x" * 999, at=0.0),
        Steering(),
        FILE,
        policy_version=0,
        epoch=1,
    )
    assert change.by.startswith("ann[2Jxx")
    assert len(change.by) == 80


# -- live values -----------------------------------------------------------------------------------------------


def test_a_set_value_holds_with_what_it_was_and_who_changed_it() -> None:
    steering = told(set_to(learner__lr=3e-4), set_to(learner__judge_share=0.25))
    assert steered(FILE, steering.values).learner.lr == 3e-4
    assert steered(FILE, steering.values).learner.judge_share == 0.25
    live = steering.live["learner.lr"]
    assert (live.value, live.of_file, live.by, live.policy_version) == (3e-4, 1e-4, "ann@host", 7)


def test_an_event_has_old_and_new_value() -> None:
    first = told(set_to(learner__lr=3e-4))
    change = decide(set_to(learner__lr=5e-4, learner__max_steps=50), first, FILE, policy_version=8, epoch=2)
    assert change.event()["changes"] == "learner.lr=0.0003->0.0005 learner.max_steps=100->50"


def test_set_back_to_the_run_files_value_nothing_is_live_any_more() -> None:
    assert told(set_to(learner__lr=3e-4), set_to(learner__lr=1e-4)).live == {}


def test_a_bad_value_among_good_ones_changes_nothing() -> None:
    steering = told(set_to(learner__lr=3e-4), set_to(learner__lr=5e-4, learner__judge_share=1.0))
    assert steering.values == {"learner.lr": 3e-4}
    [answer] = [answer for answer in steering.answers if answer.refused]
    assert answer.refused == "learner.judge_share=1.0: input should be less than 1"


@pytest.mark.parametrize(
    ("file", "key", "value", "says"),
    [
        ({}, "learner.judge_share", 0.0, "switched on and off"),
        ({"learner": {"judge_share": 0.0}}, "learner.judge_share", 0.5, "switched on and off"),
        (
            {"learner": {"mixing": "alternate"}, "staleness": {"max_staleness": 0}},
            "learner.judge_share",
            0.3,
            "would change nothing",
        ),
        ({}, "loss.kl_coef", 0.1, "the frozen model was not loaded"),
        ({"recycler": {"recipe": "original"}}, "recycler.correct_share", 0.1, "fixed table"),
        ({}, "learner.groups_per_step", 8, "is read once, when its process starts; stop the run"),
        ({}, "staleness.max_staleness", 8, "a promise that actors and learner must hold together"),
        ({}, "run.seed", 8, "is fixed for a run"),
        ({}, "recycler.mix", 8, "is a table; set its parts: recycler.mix.pointwise"),
        ({}, "learner.judgeshare", 8, "did you mean learner.judge_share?"),
        ({"learner": {"updates_per_batch": 4}}, "learner.max_steps", 10, "is no multiple of"),
    ],
)
def test_what_needs_a_restart_is_refused_with_the_reason(file, key, value, says) -> None:
    with pytest.raises(SettingsError, match=says.replace("?", r"\?")) as error:
        steered(Settings(**file), {key: value})
    assert "\n" not in str(error.value)


def test_kl_can_be_changed_where_its_model_is_loaded() -> None:
    assert steered(Settings(loss={"kl_coef": 0.1}), {"loss.kl_coef": 0.0}).loss.kl_coef == 0.0


def test_every_live_setting_is_a_number_that_can_be_set_to_what_it_is() -> None:
    file = Settings(loss={"kl_coef": 0.1})
    for key in LIVE:
        assert key in known_keys()
        assert type(value_of(file, key)) in (int, float)
        assert not_live(file, key, value_of(file, key)) == ""
    assert with_values(file, {key: value_of(file, key) for key in LIVE}) == file
    sections = {key.partition(".")[0] for key in known_keys()}
    assert all(key in known_keys() or key in sections for key in FIXED)


# -- the run file and live values ------------------------------------------------------------------------------


def test_a_run_file_that_was_changed_since_has_the_last_word() -> None:
    steering = told(set_to(learner__lr=3e-4, learner__max_steps=50))
    assert of_the_file(steering, FILE) == {}
    edited = with_values(FILE, {"learner.max_steps": 200})
    assert of_the_file(steering, edited) == {"learner.max_steps": (50, 200)}


def test_live_values_that_the_new_run_file_excludes_are_given_up() -> None:
    steering = told(set_to(learner__lr=3e-4, learner__max_steps=51))
    edited = Settings(learner={"judge_share": 0.5, "lr": 1e-4, "max_steps": 100, "updates_per_batch": 4})
    assert of_the_file(steering, edited) == {"learner.max_steps": (51, 100)}


def test_what_was_given_up_does_not_come_back_with_the_old_run_file() -> None:
    steering = told(set_to(learner__max_steps=50))
    given_up = of_the_file(steering, with_values(FILE, {"learner.max_steps": 200}))
    change = Change(
        nonce="file:3",
        action="file",
        by="the run file",
        at=0.0,
        policy_version=9,
        epoch=3,
        changes=given_up,
        of_file={"learner.max_steps": 200},
    )
    assert of_the_file(steering.after(change), FILE) == {}
    assert steering.after(change).live == {}


# -- messages ----------------------------------------------------------------------------------------------------


def test_it_travels_as_json_and_what_is_none_is_refused() -> None:
    steering = told(command("pause"), set_to(learner__lr=3e-4))
    assert Steering.from_json(steering.to_json()) == steering
    with pytest.raises(InvalidMessage):
        Steering.from_json('{"mode": "flying"}')


def test_only_the_last_answers_are_told() -> None:
    steering = told(*(command("pause", nonce=str(number)) for number in range(100)))
    assert len(steering.answers) == 32
    assert steering.answer("99") is not None
    assert steering.answer("0") is None


@given(st.integers(0, 40), st.integers(1, 7), st.data())
def test_what_is_not_known_is_found_from_the_newest_back(count, size, data) -> None:
    """Also when a server lost its tail and put new entries where lost ones were."""
    known = data.draw(st.integers(0, count))
    rows = [(f"{number}-0", f"{number}".encode()) for number in range(count)]

    def page(before: str) -> list[tuple[str, bytes]]:
        older = rows if before == "+" else [row for row in rows if int(row[0][:-2]) < int(before[1:-2])]
        return older[::-1][:size]

    assert unheard(page, lambda _id, payload: int(payload) < known) == [payload for _, payload in rows[known:]]


def test_folding_is_what_the_changes_say_one_after_the_other() -> None:
    one = decide(command("pause"), Steering(), FILE, policy_version=1, epoch=1)
    two = decide(set_to(learner__lr=3e-4), Steering(), FILE, policy_version=2, epoch=1)
    assert fold([one, two]) == Steering().after(one).after(two)


def test_the_keys_of_assignments() -> None:
    assert overridden_keys(["recycler.mix={pointwise=0.5, reflect=0.2}", "learner.lr=1e-4"]) == [
        "recycler.mix.pointwise",
        "recycler.mix.reflect",
        "learner.lr",
    ]


# -- values that are no numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["inf", "-inf", "nan"])
def test_a_value_that_is_not_finite_is_refused_wherever_it_comes_from(odd: str) -> None:
    change = decide(set_to(learner__lr=float(odd)), Steering(), FILE, policy_version=7, epoch=2)
    assert change.refused == f"learner.lr={odd}: input should be a finite number"
    assert change.changes == {}
    with pytest.raises(InvalidMessage, match=f"a setting is a finite number, not {odd}"):
        decode(Command, encode(set_to(learner__lr=float(odd))))
    assert not_finite_settings() == []


def not_finite_settings() -> list[str]:
    """Settings that may be inf."""
    floats = [key for key in known_keys() if isinstance(value_of(Settings(), key), float)]
    assert len(floats) > 20
    return [key for key in floats if not refuses_inf(key)]


def refuses_inf(key: str) -> bool:
    try:
        with_values(FILE, {key: float("inf")})
    except SettingsError:
        return True
    return False


def test_json_with_null_for_a_number_is_one_clear_sentence() -> None:
    """What JSON makes of inf."""
    text = told(set_to(learner__lr=3e-4)).to_json().replace("0.0003", "null")
    with pytest.raises(
        InvalidMessage, match=r"^not a steering: live.learner.lr.value: a setting is a finite number, not null$"
    ):
        Steering.from_json(text)
