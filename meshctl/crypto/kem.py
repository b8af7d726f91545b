"""ML-KEM-768 between two nodes, and the pre-shared key made from it (NET-6; FIPS 203).

Who recorded the tunnel and has a quantum computer one day breaks X25519, and with it the tags of these exchanges; not
this: the shared secret never crosses the wire. No packet format here (mesh/psk_packets.py), no decision (mesh/psk.py).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from meshctl.errors import EnvironmentFault, ProtocolError
from meshctl.mesh.keys import PresharedKey
from meshctl.mesh.psk_packets import MARK_BYTES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

_CONTEXT: Final = b"meshctl/psk/v1"


class Offer:
    """An ephemeral key pair of the leader. It lives in memory alone: after a restart another one is offered."""

    __slots__ = ("_private", "exchange", "public")

    def __init__(self) -> None:
        """Raises EnvironmentFault where `cryptography` was built without ML-KEM."""
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

        try:
            self._private: MLKEM768PrivateKey = MLKEM768PrivateKey.generate()
        except UnsupportedAlgorithm as error:
            raise EnvironmentFault("this build of cryptography has no ML-KEM", "install its wheel from PyPI") from error
        self.public = self._private.public_key().public_bytes_raw()
        self.exchange = exchange_of(self.public)

    def __repr__(self) -> str:
        return "Offer(hidden)"

    def open(self, ciphertext: bytes) -> bytes:
        """The shared secret. A ciphertext that was not made for this key gives another one (implicit rejection)."""
        return self._private.decapsulate(ciphertext)


def exchange_of(public: bytes) -> bytes:
    """By which both ends name an exchange, and a follower the halves that belong together."""
    return hashlib.blake2s(public, digest_size=MARK_BYTES, person=b"mkc/kem").digest()


def answer(public: bytes) -> tuple[bytes, bytes]:
    """(shared secret, ciphertext) for an encapsulation key. Raises ProtocolError for bytes that are none."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

    try:
        return MLKEM768PublicKey.from_public_bytes(public).encapsulate()
    except ValueError as error:
        raise ProtocolError("a peer offers an encapsulation key that is none") from error
    except UnsupportedAlgorithm as error:
        raise EnvironmentFault("this build of cryptography has no ML-KEM", "install its wheel from PyPI") from error


def preshared_key(
    secret: bytes, public: bytes, ciphertext: bytes, *, mesh: str, leader: bytes, follower: bytes, version: int
) -> PresharedKey:
    """HKDF-SHA256, bound to the mesh, both ids (which are hashes of device keys), the version and the whole exchange.

    Not to the key statements: those change with each rotation, which keeps the pre-shared key.
    """
    transcript = hashlib.sha256(public + ciphertext).digest()
    info = _CONTEXT + leader + follower + version.to_bytes(4, "big") + transcript + mesh.encode()
    return PresharedKey(HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(secret))


def mark(key: PresharedKey, sender: bytes, version: int) -> bytes:
    """Shows that `sender`, a raw id, has this key; never zeros, which stand for none."""
    made = hashlib.blake2s(key=key.raw, digest_size=MARK_BYTES, person=b"mkc/psk")
    made.update(sender + version.to_bytes(4, "big"))
    return made.digest()


def is_mark(shown: bytes, key: PresharedKey, sender: bytes, version: int) -> bool:
    """Whether `shown` is that mark. Constant time."""
    return hmac.compare_digest(shown, mark(key, sender, version))
