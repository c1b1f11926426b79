"""Anchors and differences from a learner's store to an actor's copy, with everything that can go wrong on the way."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from weight_versions import DAMAGES, FILE, Model, flip

from common.codec import decode, encode
from common.errors import WeightsError
from common.messages import WeightManifest
from common.weights import WeightStore, verified
from common.weights_source import WeightSource


class Run:
    """A learner that publishes to a directory; what it published is remembered by version."""

    def __init__(self, folder: Path, anchor_every: int = 5) -> None:
        self.folder = folder
        self.store = WeightStore(folder / "weights", anchor_every=anchor_every)
        self.model = Model()
        self.epoch = 1
        self.manifests: dict[int, WeightManifest] = {}
        self.written: dict[int, dict[str, bytes]] = {}

    def publish(self, *versions: int, share: float = 0.03, whole: bool = False) -> WeightManifest:
        for version in versions:
            self.model.step(share)
            self.written[version] = self.model.contents(self.folder / "expected")
            manifest = self.store.publish(self.epoch, version, version - 1, self.model.write, whole=whole)
            self.manifests[version] = decode(WeightManifest, encode(manifest))  # as it comes by the stream
        return self.manifests[versions[-1]]

    def got(self, source: WeightSource, version: int) -> None:
        """``source`` fetches a version, bit for bit."""
        files = source.fetch(self.manifests[version])
        assert {path.name: path.read_bytes() for path in files} == self.written[version]

    def names(self) -> list[str]:
        return sorted(path.name for path in self.store.root.iterdir())

    def file(self, version: int) -> Path:
        return Path(self.manifests[version].uri) / FILE


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.fixture
def actor(tmp_path: Path) -> Iterator[Callable[[], WeightSource]]:
    made: list[WeightSource] = []

    def make() -> WeightSource:
        made.append(WeightSource(cache_dir=tmp_path / "cache"))
        return made[-1]

    yield make
    for source in made:
        source.close()
    left = list((tmp_path / "cache").glob("*"))
    assert left == [], "every copy is gone with its actor"


def kinds(run: Run) -> list[int]:
    """How many links lead to each version; 0 for an anchor."""
    return [len(run.manifests[version].chain) for version in sorted(run.manifests)]


def test_a_chain_of_five_and_the_next_anchor(run: Run, actor: Callable[[], WeightSource]) -> None:
    source = actor()
    for version in range(12):
        run.publish(version)
        run.got(source, version)
    assert kinds(run) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    sizes = [run.manifests[version].files[0].size for version in range(12)]
    assert max(sizes[1:5]) < sizes[0] / 1.5


def test_a_chain_names_all_that_leads_to_a_version(run: Run) -> None:
    run.publish(0, 1, 2)
    links = run.manifests[2].links
    assert [link.version for link in links] == [0, 1, 2]
    assert [(link.uri, link.files) for link in links] == [(m.uri, m.files) for m in run.manifests.values()]


@pytest.mark.parametrize("joins_at", [0, 1, 3, 4])
def test_an_actor_that_joins_late_starts_from_the_anchor(
    run: Run, actor: Callable[[], WeightSource], joins_at: int
) -> None:
    run.publish(*range(5))
    source = actor()
    for version in range(joins_at, 5):
        run.got(source, version)


@pytest.mark.parametrize(
    "order", [(0, 4), (1, 4), (2, 2, 3), (3, 1, 4), (4, 0, 1), (2, 7, 3), (1, 5, 6), (4, 3, 2, 1, 0)]
)
def test_deliveries_may_be_missed_repeated_and_out_of_order(
    run: Run, actor: Callable[[], WeightSource], order: tuple[int, ...]
) -> None:
    run.publish(*range(8))
    source = actor()
    for version in order:
        run.got(source, version)


def test_two_actors_of_one_host_do_not_meet(run: Run, actor: Callable[[], WeightSource], tmp_path: Path) -> None:
    first, second = actor(), actor()
    run.publish(0, 1, 2, 3)
    run.got(first, 3)
    run.got(second, 1)
    run.got(first, 3)
    run.got(second, 2)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 2


# -- what is not a difference -----------------------------------------------------------------------------------


def test_an_epoch_begins_with_an_anchor(run: Run, actor: Callable[[], WeightSource], tmp_path: Path) -> None:
    source = actor()
    run.publish(0, 1, 2, 3)
    run.got(source, 3)
    successor = Run(tmp_path / "successor")
    successor.store = WeightStore(run.store.root, anchor_every=5)  # a new process
    successor.epoch = 2
    successor.model = Model(seed=9)
    successor.publish(2, 3)
    assert kinds(successor) == [0, 1]
    successor.got(source, 3)
    assert "e000001-v00000003.whole" not in successor.names()  # the dead learner's base


def test_within_a_process_another_epoch_begins_with_an_anchor_too(run: Run) -> None:
    run.publish(0, 1)
    run.epoch = 2
    assert run.publish(2).chain == ()


@pytest.mark.parametrize("parent", [0, 2])
def test_a_version_with_another_parent_is_no_difference(run: Run, parent: int) -> None:
    run.publish(0, 1)
    assert run.store.publish(1, 3, parent, run.model.write).chain == ()


def test_a_version_missed_by_the_store_does_not_break_the_chain(run: Run, actor: Callable[[], WeightSource]) -> None:
    """A full disk refused version 1: version 2 is a difference to its parent, version 0."""
    run.publish(0)
    run.model.step().step()
    run.written[2] = run.model.contents(run.folder / "expected")
    run.manifests[2] = run.store.publish(1, 2, 0, run.model.write)
    assert len(run.manifests[2].chain) == 1
    run.got(actor(), 2)


def test_what_changes_too_much_is_published_whole(run: Run, actor: Callable[[], WeightSource]) -> None:
    source = actor()
    run.publish(0, 1)
    run.publish(2, share=0.9)
    run.publish(3)
    assert kinds(run) == [0, 1, 0, 1]
    for version in range(4):
        run.got(source, version)


def test_another_shape_is_published_whole(run: Run, actor: Callable[[], WeightSource]) -> None:
    source = actor()
    run.publish(0, 1)
    run.model.tensors["layer.q"] = run.model.tensors["layer.q"].reshape(8, 32)  # the same bits
    run.publish(2)
    run.model.tensors["more"] = run.model.tensors["layer.q"].copy()
    run.publish(3)
    run.publish(4)
    assert kinds(run) == [0, 1, 0, 0, 1]
    for version in range(5):
        run.got(source, version)


def test_another_set_of_files_is_published_whole(run: Run) -> None:
    run.publish(0, 1)
    run.model.others["adapter_config.json"] = b"{}"
    assert run.publish(2).chain == ()
    assert run.publish(3).chain != ()


def test_tied_weights_stay_tied(run: Run, actor: Callable[[], WeightSource]) -> None:
    run.model.tensors["head"] = run.model.tensors["embed"]
    run.publish(0)
    before = run.model.tensors["embed"].copy()
    run.model.tensors["embed"][0, 0] ^= 5
    run.publish(1, share=0.0)
    assert (run.model.tensors["head"] != before).sum() == 1
    run.got(actor(), 1)


def test_small_files_beside_the_tensors_travel_whole(run: Run, actor: Callable[[], WeightSource]) -> None:
    source = actor()
    run.model.others = {"adapter_config.json": b'{"r": 8}', "empty": b""}
    run.publish(0, 1)
    run.model.others["adapter_config.json"] = b'{"r": 4}'
    run.publish(2)
    assert kinds(run) == [0, 1, 2]
    for version in (0, 1, 2):
        run.got(source, version)


def test_weights_that_are_no_tensors_are_always_whole(tmp_path: Path, actor: Callable[[], WeightSource]) -> None:
    store, source = WeightStore(tmp_path / "weights", anchor_every=4), actor()
    for version in range(4):
        manifest = store.publish(
            1, version, version - 1, lambda folder: (folder / "toy.json").write_text("[1]") and None
        )
        assert [path.read_text() for path in source.fetch(manifest)] == ["[1]"]
        assert manifest.chain == ()


# -- damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("version", [0, 2, 3])
def test_damage_to_any_link_is_noticed_and_mended_by_a_whole_version(
    run: Run, actor: Callable[[], WeightSource], damage: str, version: int
) -> None:
    source = actor()
    run.publish(0, 1, 2, 3)
    DAMAGES[damage](run.file(version))
    with pytest.raises(WeightsError):
        source.fetch(run.manifests[3])
    with pytest.raises(WeightsError):
        run.store.check(run.manifests[3])
    run.written[3] = run.model.contents(run.folder / "expected")
    run.manifests[3] = run.store.publish(1, 3, 2, run.model.write, whole=True)
    run.got(source, 3)
    run.publish(4)
    assert [link.version for link in run.manifests[4].links] == [3, 4]
    run.got(source, 4)


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_actor_that_is_ahead_of_the_damage_goes_on(run: Run, actor: Callable[[], WeightSource], damage: str) -> None:
    source = actor()
    run.publish(0, 1, 2)
    run.got(source, 2)
    DAMAGES[damage](run.file(0))
    DAMAGES[damage](run.file(1))
    run.publish(3)
    run.got(source, 3)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_difference_costs_the_copy_nothing(run: Run, actor: Callable[[], WeightSource], damage: str) -> None:
    source = actor()
    run.publish(0, 1, 2)
    run.got(source, 1)
    whole = run.file(2).read_bytes()
    DAMAGES[damage](run.file(2))
    with pytest.raises(WeightsError, match="version 2"):
        source.fetch(run.manifests[2])
    run.file(0).unlink()  # starting again from the anchor is impossible, and not needed
    run.file(2).write_bytes(whole)
    run.got(source, 2)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_the_copy_is_noticed_and_repaired_from_the_anchor(
    run: Run, actor: Callable[[], WeightSource], tmp_path: Path, damage: str
) -> None:
    source = actor()
    run.publish(0, 1, 2)
    run.got(source, 1)
    [copy] = (tmp_path / "cache").glob(f"*/whole/{FILE}")
    DAMAGES[damage](copy)
    with capture_logs() as logs:
        run.got(source, 2)
    assert [entry["event"] for entry in logs] == ["weights.copy_started_again"]


def test_damage_to_the_copy_is_noticed_when_a_version_is_asked_for_again(
    run: Run, actor: Callable[[], WeightSource], tmp_path: Path
) -> None:
    source = actor()
    run.publish(0, 1)
    run.got(source, 1)
    flip(next((tmp_path / "cache").glob(f"*/whole/{FILE}")))
    run.got(source, 1)


def test_damage_to_a_small_file_of_the_copy_is_noticed(
    run: Run, actor: Callable[[], WeightSource], tmp_path: Path
) -> None:
    source = actor()
    run.model.others = {"adapter_config.json": b'{"r": 8}'}
    run.publish(0, 1)
    run.got(source, 1)
    flip(next((tmp_path / "cache").glob("*/whole/adapter_config.json")))
    run.got(source, 1)


def test_a_chain_with_a_link_left_out_is_refused(run: Run, actor: Callable[[], WeightSource]) -> None:
    run.publish(0, 1, 2, 3)
    anchor, _, *rest = run.manifests[3].chain
    gap = dataclasses.replace(run.manifests[3], chain=(anchor, *rest))
    with pytest.raises(WeightsError, match="from version 1 to 2 of epoch 1, not from version 0 to 2"):
        actor().fetch(gap)


def test_a_difference_to_another_line_is_refused(run: Run, actor: Callable[[], WeightSource], tmp_path: Path) -> None:
    """Same epoch, same versions, other weights: only the hash of the result can tell."""
    other = Run(tmp_path / "other")
    other.model = Model(seed=5)
    run.publish(0, 1)
    other.publish(0, 1)
    mixed = dataclasses.replace(run.manifests[1], chain=other.manifests[1].chain)
    with capture_logs() as logs, pytest.raises(WeightsError, match="differs after"):
        actor().fetch(mixed)
    assert logs == []  # it came from the anchor just now: doing so again would end the same


def test_a_manifest_of_another_epoch_cannot_use_the_chain(run: Run, actor: Callable[[], WeightSource]) -> None:
    run.publish(0, 1)
    with pytest.raises(WeightsError, match="of epoch 1, not from version 0 to 1 of epoch 7"):
        actor().fetch(dataclasses.replace(run.manifests[1], epoch=7))


@pytest.mark.parametrize("name", ["../secret", "..", "", "a/b", "/etc/passwd"])
def test_names_that_lead_elsewhere_are_refused(run: Run, actor: Callable[[], WeightSource], name: str) -> None:
    run.publish(0, 1)
    manifest = run.manifests[1]
    file = dataclasses.replace(manifest.files[0], name=name)
    with pytest.raises(WeightsError, match="not a bare"):
        actor().fetch(dataclasses.replace(manifest, files=(file,)))


def test_a_difference_without_files_is_no_weights(run: Run, actor: Callable[[], WeightSource]) -> None:
    run.publish(0, 1)
    with pytest.raises(WeightsError, match="names no file"):
        actor().fetch(dataclasses.replace(run.manifests[1], files=()))


def test_a_learner_whose_base_was_altered_publishes_whole(run: Run, actor: Callable[[], WeightSource]) -> None:
    run.publish(0, 1)
    (run.store.root / "e000001-v00000001.whole" / FILE).write_bytes(b"torn")
    run.publish(2, 3)
    assert kinds(run) == [0, 1, 0, 1]
    run.got(actor(), 3)


def test_a_learner_whose_base_is_gone_publishes_whole(run: Run) -> None:
    run.publish(0, 1)
    (run.store.root / "e000001-v00000001.whole" / FILE).unlink()
    assert run.publish(2).chain == ()
    shutil.rmtree(run.store.root / "e000001-v00000002")
    assert run.publish(3).chain == ()
    assert run.publish(4).chain != ()


def test_a_version_is_whole_when_it_is_asked_for(run: Run, actor: Callable[[], WeightSource]) -> None:
    run.publish(0, 1)
    run.publish(2, whole=True)
    run.publish(3)
    assert kinds(run) == [0, 1, 0, 1]
    run.got(actor(), 3)


def test_a_version_that_could_not_be_written_again_does_not_end_the_line(run: Run) -> None:
    def full(_folder: Path) -> None:
        raise OSError(28, "No space left on device")

    run.publish(0, 1)
    with pytest.raises(OSError, match="No space left"):
        run.store.publish(1, 1, 0, full, whole=True)  # its folder was that of the base
    assert run.publish(2).chain == ()
    assert run.publish(3).chain != ()


def test_a_full_disk_publishes_nothing_and_the_chain_goes_on(run: Run, actor: Callable[[], WeightSource]) -> None:
    def full(folder: Path) -> None:
        (folder / FILE).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    run.publish(0, 1)
    with pytest.raises(OSError, match="No space left"):
        run.store.publish(1, 2, 1, full)
    run.publish(2)
    assert kinds(run) == [0, 1, 2]
    run.got(actor(), 2)


# -- what is kept ------------------------------------------------------------------------------------------------


def test_the_chain_of_what_is_kept_is_kept(run: Run, actor: Callable[[], WeightSource]) -> None:
    run.publish(*range(8))
    run.store.remove_older_than(6, epoch=1)
    assert run.names() == [*(f"e000001-v{version:08d}" for version in (5, 6, 7)), "e000001-v00000007.whole"]
    for version in (6, 7):
        run.got(actor(), version)
    run.store.remove_older_than(4, epoch=1)  # nothing comes back, nothing more goes
    assert len(run.names()) == 4


def test_the_anchor_of_the_newest_is_never_removed(run: Run, actor: Callable[[], WeightSource]) -> None:
    for version in range(5):
        run.publish(version)
        run.store.remove_older_than(version, epoch=1)
        run.got(actor(), version)
    run.publish(5)
    run.store.remove_older_than(5, epoch=1)
    assert run.names() == ["e000001-v00000005"]


def test_nothing_is_left_of_whole_versions_but_what_is_published(tmp_path: Path) -> None:
    run = Run(tmp_path, anchor_every=1)
    run.publish(0, 1)
    assert run.names() == ["e000001-v00000000", "e000001-v00000001"]
    assert [path.name for path in verified(run.manifests[1])] == [FILE]
    assert kinds(run) == [0, 0]
