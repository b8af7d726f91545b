"""ML-KEM-768 at both ends, and what a pre-shared key is bound to (NET-6)."""

from __future__ import annotations

import pytest

from meshctl.crypto import kem
from meshctl.errors import ProtocolError
from meshctl.mesh.keys import PresharedKey

IDS = {"mesh": "m" * 12, "leader": b"l" * 15, "follower": b"f" * 15}


def test_both_ends_make_the_same_key_and_it_is_bound_to_everything() -> None:
    offer = kem.Offer()
    secret, ciphertext = kem.answer(offer.public)
    assert offer.open(ciphertext) == secret
    made = kem.preshared_key(secret, offer.public, ciphertext, version=1, **IDS)  # type: ignore[arg-type]
    others = [
        kem.preshared_key(secret, offer.public, ciphertext, version=2, **IDS),  # type: ignore[arg-type]
        kem.preshared_key(secret, offer.public, bytes(1088), version=1, **IDS),  # type: ignore[arg-type]
        kem.preshared_key(secret, bytes(1184), ciphertext, version=1, **IDS),  # type: ignore[arg-type]
        *(
            kem.preshared_key(secret, offer.public, ciphertext, version=1, **IDS | {name: value})  # type: ignore[arg-type]
            for name, value in (("mesh", "n" * 12), ("leader", b"x" * 15), ("follower", b"x" * 15))
        ),
    ]
    assert len({made, *others}) == 7
    assert made == kem.preshared_key(secret, offer.public, ciphertext, version=1, **IDS)  # type: ignore[arg-type]


def test_an_altered_ciphertext_gives_another_secret_and_no_error() -> None:
    offer = kem.Offer()
    secret, ciphertext = kem.answer(offer.public)
    assert offer.open(bytes([ciphertext[0] ^ 1]) + ciphertext[1:]) != secret


def test_bytes_that_are_no_encapsulation_key_are_refused() -> None:
    for wrong in (b"", bytes(1183), b"\xff" * 1184):
        with pytest.raises(ProtocolError):
            kem.answer(wrong)


def test_nothing_of_an_offer_shows() -> None:
    assert repr(kem.Offer()) == "Offer(hidden)"


def test_a_mark_shows_the_key_and_who_has_it() -> None:
    key, other = PresharedKey(b"k" * 32), PresharedKey(b"o" * 32)
    shown = kem.mark(key, b"a" * 15, 1)
    assert kem.is_mark(shown, key, b"a" * 15, 1)
    assert not any(
        kem.is_mark(shown, *other_way)
        for other_way in ((other, b"a" * 15, 1), (key, b"b" * 15, 1), (key, b"a" * 15, 2))
    )
