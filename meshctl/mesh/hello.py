"""A ClientHello that offers exactly one cipher suite, and what the server made of it: read from the wire (ENC-3).

Written by hand after RFC 8446 and RFC 5246, because a TLS library offers what it likes and hides what was chosen. No
handshake is ever completed: the first flight and its answer are all there is. Randomness is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

RANDOM_BYTES: Final = 96  # the client's random, the session id, and an X25519 share: any 32 bytes are one
ANSWER_BYTES: Final = 5 + 4 + 2 + 32 + 33 + 2  # of a ServerHello, as far as its cipher suite
_HANDSHAKE, _ALERT, _CLIENT_HELLO, _SERVER_HELLO = 22, 21, 1, 2


class Suite(IntEnum):
    """What is offered, by the number that stands on the wire."""

    AES_256_GCM = 0x1302
    AES_128_GCM = 0x1301
    CHACHA20_POLY1305 = 0x1303
    TLS12_AES_256_GCM = 0xC02C


WEAK: Final[Mapping[Suite, str]] = {
    Suite.AES_128_GCM: "AES-128-GCM",
    Suite.CHACHA20_POLY1305: "ChaCha20-Poly1305",
    Suite.TLS12_AES_256_GCM: "TLS 1.2",
}


def client_hello(suite: Suite, random: bytes) -> bytes:
    """One record that offers `suite` and nothing else, for gRPC (ALPN h2). `random` has RANDOM_BYTES bytes."""
    nonce, session, share = random[:32], random[32:64], random[64:96]
    extensions = [
        _extension(10, _vector(2, b"\x00\x1d\x00\x17")),  # groups: X25519; P-256, of which certificates are
        _extension(11, _vector(1, b"\x00")),  # points: uncompressed
        _extension(13, _vector(2, bytes.fromhex("040305030603080708040401"))),  # signatures: ECDSA, Ed25519, RSA
        _extension(16, _vector(2, _vector(1, b"h2"))),
    ]
    if suite is not Suite.TLS12_AES_256_GCM:
        extensions += [
            _extension(43, _vector(1, b"\x03\x04")),  # versions: TLS 1.3
            _extension(51, _vector(2, b"\x00\x1d" + _vector(2, share))),
        ]
    suites = _vector(2, suite.to_bytes(2, "big"))
    body = b"\x03\x03" + nonce + _vector(1, session) + suites + b"\x01\x00" + _vector(2, b"".join(extensions))
    return b"\x16\x03\x01" + _vector(2, bytes([_CLIENT_HELLO]) + _vector(3, body))


def chosen(answer: bytes) -> int | None:
    """The cipher suite that the server's first bytes name; None for an alert, silence, or anything else."""
    if len(answer) < 44 or answer[0] != _HANDSHAKE or answer[5] != _SERVER_HELLO:
        return None
    at = 44 + answer[43]  # behind record and message headers, version, random and session id
    return int.from_bytes(answer[at : at + 2], "big") if len(answer) >= at + 2 else None


def is_refusal(answer: bytes) -> bool:
    """Whether the server said no: an alert, or the end of the connection without a word."""
    return not answer or answer[0] == _ALERT


def _vector(prefix: int, data: bytes) -> bytes:
    return len(data).to_bytes(prefix, "big") + data


def _extension(number: int, data: bytes) -> bytes:
    return number.to_bytes(2, "big") + _vector(2, data)
