"""The mesh's certificates: one CA, node leaves with a SPIFFE id, coordinator leaves (ACC-4, ENC-3).

P-256 throughout (a P-384 handshake costs six times the CPU). The CA and the coordinators' leaves have no end that a
wrong clock could reach (RFC 5280 "99991231235959Z"): a node whose clock is years off must still be able to join and
renew; what protects them is the pinned key and that a coordinator's key never leaves its memory. Node leaves
live 24 h by the coordinator's clock.
"""

from __future__ import annotations

import datetime as dt
import hashlib

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshctl.crypto.identity import compressed
from meshctl.errors import TrustError
from meshctl.mesh import limits

EVER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
ALWAYS = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
COORDINATOR_NAME = "coordinator.mesh"  # every coordinator's DNS name; addresses are not identities

Key = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


def spiffe_id(mesh_id: str, node: str) -> str:
    """The URI of a node's certificate."""
    return f"spiffe://{mesh_id}/node/{node}"


def node_of(uri: str, mesh_id: str) -> str:
    """The node id in a SPIFFE URI of this mesh. Raises TrustError."""
    head, _, node = uri.rpartition("/")
    if head != f"spiffe://{mesh_id}/node" or len(node) != limits.NODE_ID_CHARS:
        raise TrustError("the client certificate carries no node id of this mesh")
    return node


def fingerprint(der: bytes) -> bytes:
    """SHA-256 of a certificate: its name where one is shown."""
    return hashlib.sha256(der).digest()


def ca_key(ca: bytes) -> bytes:
    """The public key of a CA certificate (DER), compressed: what a join token carries."""
    return compressed(_public(x509.load_der_x509_certificate(ca)))


def anchor(mesh_id: str, key: bytes) -> bytes:
    """What stands for the mesh's CA where only its public key (compressed) is known -> certificate (DER).

    Whoever verifies against an anchor takes its name and its key and does not look at its signature (RFC 5280, 6.1.1d):
    a throw-away key has made this one. Raises TrustError when `key` is none.
    """
    try:
        public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), key)
    except ValueError as error:
        raise TrustError("this token names no CA", "ask for a new one") from error
    return _ca(mesh_id, public, new_key())


def is_anchored(ca: bytes, trusted: bytes) -> bool:
    """Whether a CA certificate is the one that an anchor stands for: by name and key."""
    one, other = x509.load_der_x509_certificate(ca), x509.load_der_x509_certificate(trusted)
    return one.subject == other.subject and _public(one) == _public(other)


def _public(certificate: x509.Certificate) -> PublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TrustError("the CA's key is not an elliptic curve key")
    return key


def new_key() -> Key:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def make_ca(mesh_id: str) -> tuple[Key, bytes]:
    """The CA of a new mesh -> (key, certificate DER)."""
    key = new_key()
    return key, _ca(mesh_id, key.public_key(), key)


def _ca(mesh_id: str, public: PublicKey, signer: Key) -> bytes:
    name = _name(f"meshctl CA {mesh_id}")
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(public)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(ALWAYS).not_valid_after(EVER)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(ca=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _leaf(
    ca_key: Key,
    ca: bytes,
    public: ec.EllipticCurvePublicKey,
    name: str,
    san: x509.GeneralName,
    purposes: list[x509.ObjectIdentifier],
    begin: dt.datetime,
    end: dt.datetime,
) -> bytes:
    issuer = x509.load_der_x509_certificate(ca)
    builder = x509.CertificateBuilder().subject_name(_name(name)).issuer_name(issuer.subject).public_key(public)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(ca=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([san]), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
    )
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def issue_node(
    ca_key: Key,
    ca: bytes,
    mesh_id: str,
    device_key: bytes,
    node: str,
    *,
    now: float,
    life_s: float = limits.CERTIFICATE_LIFE_S,
) -> bytes:
    """A node's client certificate (DER), for its compressed P-256 device key."""
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), device_key)
    begin, end = (dt.datetime.fromtimestamp(at, dt.UTC) for at in (now - limits.CERTIFICATE_BACKDATE_S, now + life_s))
    san = x509.UniformResourceIdentifier(spiffe_id(mesh_id, node))
    return _leaf(ca_key, ca, public, node, san, [ExtendedKeyUsageOID.CLIENT_AUTH], begin, end)


def issue_coordinator(ca_key: Key, ca: bytes) -> tuple[Key, bytes]:
    """A coordinator's own server leaf, made anew at each start and held in memory only."""
    key = new_key()
    san = x509.DNSName(COORDINATOR_NAME)
    return key, _leaf(
        ca_key, ca, key.public_key(), COORDINATOR_NAME, san, [ExtendedKeyUsageOID.SERVER_AUTH], ALWAYS, EVER
    )


def pem(der: bytes) -> bytes:
    """A certificate as PEM."""
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)


def key_pem(key: Key) -> bytes:
    """A private key as PEM, for a TLS library that wants it so; never for a file that is not sealed."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def key_der(key: Key) -> bytes:
    """A private key as DER, to be sealed."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(der: bytes) -> Key:
    """Inverse of `key_der`."""
    key = serialization.load_der_private_key(der, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TrustError("the CA key is not an elliptic curve key")
    return key


def expiry(der: bytes) -> float:
    """notAfter as unix seconds."""
    return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()
