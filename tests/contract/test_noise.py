"""Handshake initiations of our own making, judged by a real WireGuard: who is known is answered, a stranger is not."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshctl.crypto.identity import Identity, public_key
from meshctl.crypto.noise import initiation, initiator, tai64n
from meshctl.errors import TrustError
from meshctl.mesh import frames
from meshctl.mesh.keys import PrivateKey, PublicKey
from tests.harness.mesh import until
from tests.harness.netns import Namespace, unique

OURS, THEIRS = (Identity.generate().wireguard for _ in range(2))
PORT, INDEX = 51997, 0x01020304


@pytest.fixture(scope="module")
def responder() -> Iterator[Namespace]:
    name = unique("mn-")
    with Namespace() as ns:
        subprocess.run(["ip", "netns", "exec", ns.name, "wireguard-go", name], check=True, capture_output=True)
        until(lambda: Path(f"/var/run/wireguard/{name}.sock").exists(), 10, "wireguard-go serves")
        words = ("peer", str(public_key(OURS)), "allowed-ips", "10.0.0.1/32")
        ns.command("wg", "set", name, "private-key", "/dev/stdin", "listen-port", str(PORT), *words,
                   stdin=THEIRS.reveal())  # fmt: skip
        ns.command("ip", "link", "set", name, "up")
        yield ns


def answer(ns: Namespace, message: bytes, patience_s: float) -> bytes:
    with ns.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(patience_s)
        sock.sendto(message, ("127.0.0.1", PORT))
        try:
            return sock.recv(2048)
        except TimeoutError:
            return b""


@pytest.mark.root
def test_who_is_known_is_answered_and_a_stranger_is_not(responder: Namespace) -> None:

    def hello(key: PrivateKey) -> bytes:
        return initiation(key, public_key(THEIRS), INDEX, unix_ns=time.time_ns())

    assert len(hello(OURS)) == frames.INITIATION_BYTES
    found = answer(responder, hello(OURS), 5)
    assert (len(found), frames.answer_to(found, INDEX)) == (92, frames.RESPONSE)
    assert answer(responder, hello(Identity.generate().wireguard), 0.5) == b""
    # And it was the key that made the difference, not a responder that had enough.
    assert frames.answer_to(answer(responder, hello(OURS), 5), INDEX) == frames.RESPONSE


def test_moments_compare_as_their_bytes_do() -> None:
    moments = [0, 999_999_999, 10**9, 1_700_000_000 * 10**9 + 1]
    assert sorted(map(tai64n, moments)) == list(map(tai64n, moments))
    assert tai64n(0).hex() == "400000000000000a00000000"


def test_a_crafted_key_is_refused() -> None:
    with pytest.raises(TrustError):
        initiation(OURS, PublicKey(bytes(32)), INDEX, unix_ns=0)


def test_whose_an_initiation_is_only_the_receiver_can_tell() -> None:
    message = initiation(OURS, public_key(THEIRS), INDEX, unix_ns=time.time_ns())
    assert initiator(message, THEIRS) == public_key(OURS)
    assert initiator(message, OURS) is None
    assert initiator(message + b"x", THEIRS) is None
    assert initiator(b"", THEIRS) is None


def test_an_initiation_of_small_order_is_nobodys() -> None:
    """Anybody can give it the MAC that names us."""
    genuine = initiation(OURS, public_key(THEIRS), INDEX, unix_ns=0)
    body = genuine[:8] + bytes(32) + genuine[40:116]
    label = hashlib.blake2s(b"mac1----" + public_key(THEIRS).raw).digest()
    message = body + hashlib.blake2s(body, key=label, digest_size=16).digest() + bytes(16)
    assert initiator(message, THEIRS) is None
