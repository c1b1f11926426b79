"""Which rank a process is, what it computes, and which engine may run on how many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SettingsError
from common.settings import Learner, Lora, Settings
from learner.engines import own_place
from learner.ranks.deal import deal, passes
from learner.ranks.place import place_of

LAUNCHED = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}


def test_without_a_launcher_a_process_is_rank_0_of_its_own_job() -> None:
    place = place_of({"PATH": "/bin"}, 4)
    assert (place.rank, place.world_size, place.local_rank, place.launched) == (0, 4, 0, False)


def test_a_launcher_says_which_rank_a_process_is_whatever_the_settings_say() -> None:
    place = place_of(LAUNCHED, 1)
    assert (place.rank, place.world_size, place.local_rank, place.address, place.port) == (3, 8, 1, "node-0", 29500)
    assert place.launched
    assert not place.is_first
    assert place_of({**LAUNCHED, "TORCHELASTIC_RESTART_COUNT": "2"}, 1).attempt == "2"


def test_a_child_finds_the_place_that_rank_0_has_given_it() -> None:
    first = place_of({**LAUNCHED, "RANK": "0"}, 1)
    child = place_of(first.environment(5), 1)
    assert (child.rank, child.local_rank, child.world_size, child.port) == (5, 5, 8, 29500)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MASTER_PORT": ""}, "no MASTER_PORT"),
        ({"LOCAL_RANK": "", "MASTER_ADDR": ""}, "no LOCAL_RANK and no MASTER_ADDR"),
        ({"RANK": "8"}, "RANK=8 is not below WORLD_SIZE=8"),
        ({"RANK": "-1"}, "RANK='-1' is no number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is no number"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0 is no port"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
    ],
)
def test_a_launcher_that_makes_no_sense_is_told_what_to_set(changes: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        place_of({**LAUNCHED, **changes}, 1)


def test_plain_torch_is_refused_on_several_processes() -> None:
    two = Settings(learner=Learner(processes=2))
    with pytest.raises(SettingsError, match=r"learner\.processes=2; set it to 'deepspeed'"):
        own_place(two, {})
    with pytest.raises(SettingsError, match="WORLD_SIZE=8"):
        own_place(Settings(), LAUNCHED)
    assert own_place(Settings(), {**LAUNCHED, "RANK": "0", "WORLD_SIZE": "1"}).is_first
    assert own_place(Settings(learner=Learner(processes=2, engine="deepspeed")), {}).world_size == 2


def test_an_adapter_is_refused_on_deepspeed() -> None:
    with pytest.raises(SettingsError, match=r"lora\.rank=8.*'torch'"):
        own_place(Settings(learner=Learner(engine="deepspeed"), lora=Lora(rank=8)), {})


@given(tokens=st.lists(st.integers(1, 100), max_size=40), world_size=st.integers(1, 9))
def test_every_microbatch_is_dealt_once_and_evenly_by_tokens(tokens: list[int], world_size: int) -> None:
    hands = deal(tokens, world_size)
    assert sorted(index for hand in hands for index in hand) == list(range(len(tokens)))
    loads = [sum(tokens[index] for index in hand) for hand in hands]
    assert max(loads) - min(loads) <= max(tokens, default=0)
    assert min(map(len, hands)) > 0 or passes(hands) <= 1
    assert passes(hands) == max(map(len, hands))


def test_a_large_microbatch_weighs_as_much_as_several_small_ones() -> None:
    assert deal([10, 10, 30, 10], 2) == [[2], [0, 1, 3]]
