"""Sealing: the C2SP vectors, and everything that must not open (ENC-1, ENC-4, ENC-6)."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshctl.crypto import sealing
from meshctl.errors import TrustError

KEY = bytes(range(32))
PATH = "/meshctl/v1/node/abc"


class Shake:
    """SHAKE-128 with empty input, read piece by piece."""

    def __init__(self, most: int) -> None:
        self._stream, self._at = hashlib.shake_128(b"").digest(most), 0

    def read(self, count: int) -> bytes:
        self._at += count
        return self._stream[self._at - count : self._at]


@pytest.mark.parametrize(
    ("key", "aad", "expected"),
    [
        (b"\x01" * 32, b"", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        (b"\x03" * 32, b"c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ],
    ids=["msb-of-L-0", "msb-of-L-1"],
)
def test_vectors_of_c2sp(key: bytes, aad: bytes, expected: str) -> None:
    cipher, rest = sealing.xaes(key, b"ABCDEFGHIJKLMNOPQRSTUVWX")
    assert cipher.encrypt(rest, b"XAES-256-GCM", aad).hex() == expected


def test_accumulated_vector_of_c2sp() -> None:
    rounds = 10_000
    source, result = Shake(rounds * (32 + 24 + 1 + 255 + 1 + 255)), hashlib.shake_128()
    for _ in range(rounds):
        key, nonce = source.read(32), source.read(24)
        plaintext = source.read(source.read(1)[0])
        aad = source.read(source.read(1)[0])
        cipher, rest = sealing.xaes(key, nonce)
        result.update(cipher.encrypt(rest, plaintext, aad))
    assert result.hexdigest(32) == "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"


@given(st.binary(max_size=2000), st.text(max_size=80), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_what_is_sealed_opens_and_says_how(plaintext: bytes, path: str, kid: int, generation: int) -> None:
    sealed = sealing.seal(KEY, kid, path, generation, plaintext)
    assert len(sealed) == len(plaintext) + sealing.OVERHEAD_BYTES
    assert sealing.header(path, sealed) == sealing.Header(kid, generation)
    assert sealing.open_(KEY, path, sealed, generation=generation) == plaintext


def test_layout_is_the_documented_one() -> None:
    sealed = sealing.seal(KEY, 7, PATH, 3, b"plain")
    assert sealed[:17] == b"MCR1\x01" + (7).to_bytes(4, "big") + (3).to_bytes(8, "big")
    aad = b"meshctl/rec/v1\0\x01" + sealed[5:17] + len(PATH).to_bytes(4, "big") + PATH.encode()
    cipher, rest = sealing.xaes(KEY, sealed[17:41])
    assert cipher.decrypt(rest, sealed[41:], aad) == b"plain"


def test_every_flipped_bit_is_refused() -> None:
    sealed = sealing.seal(KEY, 1, PATH, 1, b"registry record")
    for bit in range(len(sealed) * 8):
        altered = bytearray(sealed)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TrustError, match="node/abc"):
            sealing.open_(KEY, PATH, bytes(altered))


def test_every_cut_is_refused() -> None:
    sealed = sealing.seal(KEY, 1, PATH, 1, b"registry record")
    for length in range(len(sealed)):
        with pytest.raises(TrustError):
            sealing.open_(KEY, PATH, sealed[:length])


def test_value_moved_to_another_path_is_refused() -> None:
    with pytest.raises(TrustError, match="node/abd"):
        sealing.open_(KEY, "/meshctl/v1/node/abd", sealing.seal(KEY, 1, PATH, 1, b"x"))


def test_old_generation_put_back_is_refused() -> None:
    with pytest.raises(TrustError, match="generation 1, expected 2"):
        sealing.open_(KEY, PATH, sealing.seal(KEY, 1, PATH, 1, b"x"), generation=2)


def test_wrong_key_is_refused() -> None:
    with pytest.raises(TrustError, match="does not open"):
        sealing.open_(bytes(32), PATH, sealing.seal(KEY, 1, PATH, 1, b"x"))


def test_value_of_a_later_release_says_upgrade() -> None:
    sealed = sealing.seal(KEY, 1, PATH, 1, b"x")
    with pytest.raises(TrustError, match="upgrade"):
        sealing.header(PATH, sealed[:4] + b"\x02" + sealed[5:])


def test_equal_plaintexts_never_look_equal() -> None:
    assert len({sealing.seal(KEY, 1, PATH, 1, b"same") for _ in range(100)}) == 100


def test_wrapped_key_opens_only_with_its_kek_and_context() -> None:
    kek, key = sealing.new_key(), sealing.new_key()
    wrapped = sealing.wrap(kek, "key 1", key)
    assert key not in wrapped
    assert sealing.unwrap(kek, "key 1", wrapped) == key
    for bad_kek, context, blob in [(key, "key 1", wrapped), (kek, "key 2", wrapped), (kek, "key 1", wrapped[:-1])]:
        with pytest.raises(TrustError):
            sealing.unwrap(bad_kek, context, blob)


def test_wrapped_key_and_sealed_record_cannot_stand_in_for_each_other() -> None:
    wrapped = sealing.wrap(KEY, PATH, bytes(32))
    with pytest.raises(TrustError):
        sealing.open_(KEY, PATH, b"MCR1\x01" + bytes(12) + wrapped)


def test_passphrase_costs_64_mib_and_depends_on_the_salt() -> None:
    one, other = sealing.Argon2.fresh(), sealing.Argon2.fresh()
    assert (one.memory_kib, one.passes, one.lanes) == (65536, 3, 4)
    key = one.derive("correct horse")
    assert key == one.derive("correct horse") != other.derive("correct horse")
    assert len(key) == 32


def test_forged_costs_of_a_passphrase_are_refused_before_memory_is_taken() -> None:
    salt = bytes(16)
    huge, free, saltless = sealing.Argon2(salt, memory_kib=2**31), sealing.Argon2(salt, passes=0), sealing.Argon2(b"")
    for forged in (huge, free, saltless):
        with pytest.raises(TrustError):
            forged.derive("x")
