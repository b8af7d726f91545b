"""Identities and certificates: what verifies, and every forgery that must not (ENC-3, ENC-4, ACC-3, ACC-4, NET-2)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from meshctl.crypto import identity, pki
from meshctl.crypto.identity import Identity
from meshctl.errors import TrustError
from meshctl.mesh import limits
from meshctl.mesh.keys import PrivateKey
from meshctl.mesh.statement import Statement, body

MESH = "mesh00000001"
ME, OTHER = Identity.generate(), Identity.generate()
CA_KEY, CA = pki.make_ca(MESH)
NOW = 1_800_000_000.0


def leaf(now: float = NOW, device: bytes = ME.device_key) -> x509.Certificate:
    return x509.load_der_x509_certificate(pki.issue_node(CA_KEY, CA, MESH, device, ME.id, now=now))


def test_identity_survives_its_sealed_form() -> None:
    again = Identity.from_bytes(ME.to_bytes())
    assert len(ME.to_bytes()) == 96
    assert (again.id, again.wireguard, again.to_bytes()) == (ME.id, ME.wireguard, ME.to_bytes())
    assert again.state(MESH, 1).body == ME.state(MESH, 1).body


def test_identity_prints_its_id_and_nothing_else() -> None:
    assert repr(ME) == str(ME) == f"Identity({ME.id})"


def test_public_key_agrees_with_wg(tmp_path: Path) -> None:
    secret = PrivateKey(bytes(range(1, 33)))
    said = subprocess.run(["wg", "pubkey"], input=secret.reveal(), capture_output=True, text=True, check=True).stdout
    assert str(identity.public_key(secret)) == said.strip()


def test_genuine_statement_is_accepted_again_and_again() -> None:
    claim = ME.state(MESH, 7)
    identity.check(claim, MESH, seen_serial=7)
    identity.check(Statement(claim.signed), MESH)


def test_replayed_statement() -> None:
    with pytest.raises(TrustError, match="replayed"):
        identity.check(ME.state(MESH, 6), MESH, seen_serial=7)


def test_statement_of_another_mesh() -> None:
    with pytest.raises(TrustError, match="offered in mesh"):
        identity.check(ME.state("mesh00000002", 7), MESH)


def test_statement_signed_by_somebody_else() -> None:
    wireguard = identity.public_key(ME.wireguard)
    unsigned = body(MESH, ME.device_key, wireguard, bytes(32), 8)
    with pytest.raises(TrustError, match="does not match"):
        identity.check(Statement(unsigned + OTHER.sign(unsigned)), MESH)


@settings(max_examples=60)
@given(st.integers(0, limits.STATEMENT_BYTES * 8 - 1))
def test_statement_with_one_bit_flipped(bit: int) -> None:
    signed = bytearray(ME.state(MESH, 7).signed)
    signed[bit // 8] ^= 1 << bit % 8
    if bit >= 32:  # the magic is refused at parsing
        with pytest.raises(TrustError):
            identity.check(Statement(bytes(signed)), MESH)


@pytest.mark.parametrize("signature", [b"", bytes(64), b"\xff" * 64, bytes(63) + b"\1"])
@pytest.mark.parametrize("device_key", [ME.device_key, b"", bytes(33), b"\x02" + b"\xff" * 32])
def test_nonsense_signature_or_key_is_a_refusal_not_a_crash(signature: bytes, device_key: bytes) -> None:
    with pytest.raises(TrustError):
        identity.verify(device_key, b"message", signature)


def test_node_certificate_says_who_for_a_day() -> None:
    certificate = leaf()
    (uri,) = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(
        x509.UniformResourceIdentifier
    )
    assert pki.node_of(uri, MESH) == ME.id
    assert certificate.not_valid_before_utc.timestamp() == NOW - limits.CERTIFICATE_BACKDATE_S
    assert certificate.not_valid_after_utc.timestamp() == NOW + 24 * 3600
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]  # a stolen node key cannot play coordinator
    assert certificate.public_key() == ME.device.public_key()


@pytest.mark.parametrize(
    "uri",
    ["", f"spiffe://{MESH}/node/", f"spiffe://other/node/{ME.id}", f"spiffe://{MESH}/operator/{ME.id}",
     f"spiffe://{MESH}/node/{ME.id}/", f"spiffe://{MESH}/node/x/{ME.id}", f"https://{MESH}/node/{ME.id}"],
)  # fmt: skip
def test_certificate_of_another_kind_names_no_node(uri: str) -> None:
    with pytest.raises(TrustError):
        pki.node_of(uri, MESH)


def test_ca_and_coordinator_outlive_any_wrong_clock() -> None:
    key, der = pki.issue_coordinator(CA_KEY, CA)
    for certificate in (x509.load_der_x509_certificate(CA), x509.load_der_x509_certificate(der)):
        assert certificate.not_valid_before_utc.year == 1970
        assert certificate.not_valid_after_utc.year == 9999
    assert pki.expiry(der) > 250_000_000_000
    server = x509.load_der_x509_certificate(der)
    usage = server.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert server.public_key() == key.public_key()


def test_leaf_cannot_sign_another_leaf() -> None:
    constraints = leaf().extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca


def test_openssl_verifies_the_chain_and_refuses_a_strangers(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(pki.pem(CA))
    (tmp_path / "stranger.pem").write_bytes(pki.pem(pki.make_ca(MESH)[1]))
    (tmp_path / "leaf.pem").write_bytes(pki.pem(pki.issue_node(CA_KEY, CA, MESH, ME.device_key, ME.id, now=NOW)))
    verify = ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-attime", str(int(NOW)), "-CAfile"]
    good = subprocess.run([*verify, tmp_path / "ca.pem", tmp_path / "leaf.pem"], capture_output=True, text=True)
    assert good.returncode == 0, good.stdout + good.stderr
    bad = subprocess.run([*verify, tmp_path / "stranger.pem", tmp_path / "leaf.pem"], capture_output=True, text=True)
    assert bad.returncode != 0


def test_openssl_verifies_by_an_anchor_of_the_key_alone(tmp_path: Path) -> None:
    _, leaf = pki.issue_coordinator(CA_KEY, CA)
    (tmp_path / "leaf.pem").write_bytes(pki.pem(leaf))
    key = pki.ca_key(CA)
    stranger = pki.ca_key(pki.make_ca(MESH)[1])
    for mesh, anchored, is_trusted in ((MESH, key, True), (MESH, stranger, False), ("othermesh234", key, False)):
        trusted = pki.anchor(mesh, anchored)
        (tmp_path / "anchor.pem").write_bytes(pki.pem(trusted))
        command = ["openssl", "verify", "-purpose", "sslserver", "-CAfile", tmp_path / "anchor.pem"]
        done = subprocess.run([*command, tmp_path / "leaf.pem"], capture_output=True, text=True)
        assert (done.returncode == 0) is is_trusted, done.stdout + done.stderr
        assert pki.is_anchored(CA, trusted) is is_trusted


@pytest.mark.parametrize("key", [b"", bytes(33), b"\x02" + b"\xff" * 32, b"\x04" + bytes(64)])
def test_token_with_no_key_in_it_is_refused_in_words(key: bytes) -> None:
    with pytest.raises(TrustError, match="names no CA"):
        pki.anchor(MESH, key)


def test_ca_key_survives_its_sealed_form_and_nothing_else_passes_for_it() -> None:
    again = pki.load_key(pki.key_der(CA_KEY))
    assert isinstance(again, ec.EllipticCurvePrivateKey)
    assert again.private_numbers() == CA_KEY.private_numbers()
    assert pki.fingerprint(CA) != pki.fingerprint(pki.make_ca(MESH)[1])
