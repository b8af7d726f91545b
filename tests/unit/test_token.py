"""Join tokens as text: what survives copying, and what damage is told from what (NET-1, ACC-3)."""

from __future__ import annotations

import base64
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshctl.errors import UsageError
from meshctl.mesh.token import PREFIX, JoinToken

TOKEN = JoinToken(
    bytes(range(33)), "abcdefghij23", "0123456789abcdef", bytes(range(100, 132)),
    ("192.0.2.1:7443", "[2001:db8::1]:7443"),
)
HOSTS = st.from_regex(r"[a-z0-9.\-]{1,40}:[0-9]{1,5}", fullmatch=True)


@settings(deadline=None)
@given(
    key=st.binary(min_size=33, max_size=33),
    mesh=st.from_regex(r"[a-z2-7]{12}", fullmatch=True),
    name=st.binary(min_size=8, max_size=8),
    secret=st.binary(min_size=32, max_size=32),
    hosts=st.lists(HOSTS, min_size=1, max_size=5),
)
def test_token_survives_its_text(key: bytes, mesh: str, name: bytes, secret: bytes, hosts: list[str]) -> None:
    token = JoinToken(key, mesh, name.hex(), secret, tuple(hosts))
    assert JoinToken.parse(f"  {token.text()}\n") == token


def test_token_is_one_word_that_shells_and_urls_leave_alone() -> None:
    text = TOKEN.text()
    assert text.startswith(PREFIX)
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert len(text) < 200


def test_secret_does_not_show_itself() -> None:
    shown = f"{TOKEN!r} {TOKEN}"
    assert "0123456789abcdef" in shown
    assert TOKEN.secret.hex() not in shown
    assert repr(TOKEN.secret) not in shown


def test_token_that_was_cut_off_or_mistyped_says_so() -> None:
    text, dice = TOKEN.text(), random.Random(7)
    damaged = [text[:length] for length in range(len(PREFIX), len(text))] + [text + "AAAA"]
    for place in range(len(PREFIX), len(text) - 1):  # of the last letter some bits mean nothing
        other = dice.choice([letter for letter in "ABCxyz019-_" if letter != text[place]])
        damaged.append(text[:place] + other + text[place + 1 :])
    for bad in damaged:
        with pytest.raises(UsageError, match="damaged or was cut off") as refused:
            JoinToken.parse(bad)
        assert refused.value.hint


def test_token_of_an_older_release_is_told_so() -> None:
    with pytest.raises(UsageError, match="older release"):
        JoinToken.parse("mesh1.AAAA")


@pytest.mark.parametrize("text", ["", "hello", "mesh3.AAAA", "MESH2.AAAA", "@token", "-"])
def test_what_is_no_token_is_told_from_a_damaged_one(text: str) -> None:
    with pytest.raises(UsageError, match="not a join token"):
        JoinToken.parse(text)


@settings(deadline=None)
@given(st.text(max_size=300))
def test_any_text_after_the_prefix_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError):
        JoinToken.parse(PREFIX + text)


@settings(deadline=None)
@given(st.binary(min_size=0, max_size=120))
def test_checksum_is_not_all_that_is_looked_at(raw: bytes) -> None:
    text = PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("=")
    with pytest.raises(UsageError):
        JoinToken.parse(text)
