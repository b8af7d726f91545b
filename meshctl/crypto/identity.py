"""A node's own keys, the statements it signs, and how peers verify them (ENC-4, ACC-3, NET-2).

Device key: ECDSA P-256, proves who the node is. WireGuard key and probe key: X25519. Signatures are raw r||s, 64 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils, x25519

from meshctl.errors import TrustError
from meshctl.mesh import statement
from meshctl.mesh.keys import PrivateKey, PublicKey
from meshctl.mesh.model import NodeId, node_id
from meshctl.mesh.statement import Statement

_RAW = serialization.Encoding.Raw
_CURVE = ec.SECP256R1()
JOIN_CONTEXT = b"meshctl/join/v1\0"  # what a signature was given for: one made for a renewal proves no join
RENEW_CONTEXT = b"meshctl/renew/v1\0"
FINDING_CONTEXT = b"meshctl/finding/v1\0"  # mesh/evidence.py


def public_key(private: PrivateKey) -> PublicKey:
    """The WireGuard public key of `private`."""
    return PublicKey(
        x25519.X25519PrivateKey.from_private_bytes(private.raw)
        .public_key()
        .public_bytes(_RAW, serialization.PublicFormat.Raw)
    )


def compressed(key: ec.EllipticCurvePublicKey) -> bytes:
    """33 bytes of X9.62."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """All private keys of one node. `repr` shows the node id alone."""

    device: ec.EllipticCurvePrivateKey
    wireguard: PrivateKey
    probe: x25519.X25519PrivateKey

    @classmethod
    def generate(cls) -> Identity:
        """Fresh keys from the operating system's generator."""
        wireguard = x25519.X25519PrivateKey.generate().private_bytes_raw()
        return cls(ec.generate_private_key(_CURVE), PrivateKey(wireguard), x25519.X25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, raw: bytes) -> Identity:
        """Inverse of `to_bytes`; the caller has opened the seal."""
        number = int.from_bytes(raw[:32], "big")
        return cls(
            ec.derive_private_key(number, _CURVE),
            PrivateKey(raw[32:64]),
            x25519.X25519PrivateKey.from_private_bytes(raw[64:96]),
        )

    def to_bytes(self) -> bytes:
        """96 bytes of private keys, to be sealed at once."""
        device = self.device.private_numbers().private_value.to_bytes(32, "big")
        return device + self.wireguard.raw + self.probe.private_bytes_raw()

    @property
    def device_key(self) -> bytes:
        """Public device key, compressed."""
        return compressed(self.device.public_key())

    @property
    def id(self) -> NodeId:
        """The node id that this device key is."""
        return node_id(self.device_key)

    def __repr__(self) -> str:
        return f"Identity({self.id})"

    def sign(self, message: bytes) -> bytes:
        """64 bytes: r and s."""
        r, s = utils.decode_dss_signature(self.device.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def state(self, mesh_id: str, serial: int) -> Statement:
        """This node's key statement for `mesh_id`."""
        body = statement.body(
            mesh_id, self.device_key, public_key(self.wireguard), self.probe.public_key().public_bytes_raw(), serial
        )
        return Statement(body + self.sign(body))


def verify(device_key: bytes, message: bytes, signature: bytes) -> None:
    """Raise TrustError unless `signature` (r||s) of `message` is by `device_key`."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, device_key)
        pair = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
        key.verify(utils.encode_dss_signature(*pair), message, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError) as error:
        raise TrustError(
            "a signature does not match its device key", "the data was altered on the way, or is not this node's"
        ) from error


def check(claim: Statement, mesh_id: str, *, seen_serial: int = 0) -> None:
    """Raise TrustError unless a statement is genuine, for this mesh, and not older than the newest seen."""
    if claim.mesh_id != mesh_id:
        raise TrustError(f"a key statement for mesh {claim.mesh_id!r} was offered in mesh {mesh_id!r}")
    if claim.serial < seen_serial:
        raise TrustError(f"an old key statement was replayed: serial {claim.serial}, already seen {seen_serial}")
    verify(claim.device_key, claim.body, claim.signature)
