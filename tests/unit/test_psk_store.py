"""Pre-shared keys on disk: sealed to their pair, whole or not at all, gone with the membership (NET-6, ENC-4)."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshctl.agent.store import Store
from meshctl.errors import EnvironmentFault
from meshctl.mesh.keys import PresharedKey
from meshctl.mesh.model import NodeId
from meshctl.mesh.psk import Bunch, Key, in_force

A, B = NodeId("a" * 24), NodeId("b" * 24)
SECRET = bytes(range(32))
BUNCH = Bunch((Key(3, PresharedKey(SECRET), 5.0, True), Key(4, PresharedKey(b"n" * 32), 6.0, False)), 3, 3, 7.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.prepare()
    made.save_bunch(A, BUNCH)
    return made


def test_what_was_filed_is_found_by_another_process_and_shows_nothing(store: Store, tmp_path: Path) -> None:
    assert Store(tmp_path).bunches() == {A: BUNCH}
    assert in_force(store.bunches()) == {A: PresharedKey(SECRET)}
    assert SECRET not in (tmp_path / "psk" / A).read_bytes()
    assert (tmp_path / "psk").stat().st_mode & 0o777 == 0o700
    assert "hidden" in repr(BUNCH)
    assert repr(SECRET) not in repr(BUNCH)


def test_a_file_under_another_peers_name_or_damaged_is_none(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "psk" / A
    (tmp_path / "psk" / B).write_bytes(file.read_bytes())
    assert store.bunches().keys() == {A}
    file.write_bytes(file.read_bytes()[:-1])
    assert store.bunches() == {}


def test_a_write_that_was_cut_off_leaves_the_file_before(store: Store, tmp_path: Path) -> None:
    (tmp_path / "psk" / f".{A}.1234").write_bytes(b"half")
    assert store.bunches() == {A: BUNCH}


def test_what_cannot_be_written_is_an_error_with_a_remedy(store: Store, tmp_path: Path) -> None:
    store.forget_bunches()
    (tmp_path / "psk").write_text("")  # no directory can be made here
    with pytest.raises(EnvironmentFault):
        store.save_bunch(A, BUNCH)


def test_who_left_is_forgotten_and_all_with_the_membership(store: Store, tmp_path: Path) -> None:
    store.save_bunch(B, BUNCH)
    store.forget_bunch(A)
    assert store.bunches().keys() == {B}
    store.forget()
    assert not (tmp_path / "psk").exists()
