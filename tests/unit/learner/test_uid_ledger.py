"""The ledger of ended uids survives the disk, and says how each ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.uid_ledger import CODES, UidLedger


@given(ends=st.dictionaries(st.binary(min_size=16, max_size=16).map(bytes.hex), st.sampled_from(CODES), max_size=30))
def test_what_was_added_is_found_again(ends) -> None:
    ledger = UidLedger()
    for uid, (outcome, kind) in ends.items():
        ledger.add(uid, outcome, kind)
    read = UidLedger.from_bytes(ledger.to_bytes())
    assert read == ledger
    assert {uid: read.end_of(uid) for uid in ends} == {uid: outcome for uid, (outcome, _) in ends.items()}
    assert (len(read), read.uids()) == (len(ends), set(ends))
    assert read.counts().total() == len(ends)
    assert read.end_of("00" * 17) is None
    assert "00" * 17 not in read


@pytest.mark.parametrize("data", [b"x", bytes(16), bytes(16) + bytes([len(CODES)])])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no uid ledger"):
        UidLedger.from_bytes(data)
