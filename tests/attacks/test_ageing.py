"""A pair whose sessions are never renewed is told by its age alone: data passes to the last second (NET-7).

One test of more than three minutes; tests/run.sh runs it beside the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from meshctl.mesh import catalogue, limits
from tests.attacks.faults import pair_s
from tests.attacks.watch import Watch
from tests.harness.mesh import READY_S, Lab, Node, until

pytestmark = pytest.mark.root
WHAT: Final = "handshakes dropped, data passes"
PROMISED_S: Final = limits.REJECT_AFTER_S + pair_s(catalogue.HANDSHAKE)  # after the last handshake
# Initiation and response, by the first byte of what UDP carries; transport data is 4.
DROP: Final = "priority 0; udp dport 51820 @th,64,8 { 1, 2 } drop;"
CHAINS: Final = "\n".join(f"chain {hook} {{ type filter hook {hook} {DROP} }}" for hook in ("input", "output"))


def test_readme_tells_it() -> None:
    told = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"| {catalogue.HANDSHAKE} | {WHAT} | {PROMISED_S:.0f} s | " in told


def judged(node: Node) -> dict[str, Any]:
    """The handshake's row of the only peer; empty while the agent does not answer."""
    return next((row for row in node.status().get("rows", ()) if row["code"] == catalogue.HANDSHAKE), {})


def test_session_grows_old_while_its_peer_answers(record_property: Callable[[str, object], None]) -> None:
    with Lab() as lab:
        a, b = lab.members("a", "b")
        # A pre-shared key that no handshake has proven would be a finding of its own.
        until(lambda: a.is_ripe(b) and b.is_ripe(a), READY_S, "the two have agreed on a pre-shared key")
        set_at = time.time()
        age = lambda: a.peer("b")["handshake_age_s"]  # noqa: E731
        until(lambda: time.time() - age() > set_at, limits.REKEY_AFTER_S + READY_S, "a handshake was made with it")
        key = "a", catalogue.HANDSHAKE, "b"
        with Watch([a, b]) as watch:
            a.ns.command("nft", "-f", "-", stdin=f"table ip middlebox {{ {CHAINS}\n}}\n")
            made = time.monotonic() - age()
            until(lambda: age() > limits.REJECT_AFTER_S - 10, limits.REJECT_AFTER_S, "the session is old")
            assert a.proves("b")
            assert b.proves("a")
            assert not watch.seen
            # The age itself fails it, before a's own attempts, which begin 2.5 s later, make that "no handshake yet".
            failed = until(lambda: judged(a).get("verdict") == "failed" and judged(a), 25, "the age is judged")
            assert failed["evidence"] == "last handshake 3 min ago, though traffic was sent"
            opened = watch.opened(key, made, made + PROMISED_S + 5 - time.monotonic(), failed=True)
            assert opened is not None, watch.seen
            assert opened - made <= PROMISED_S
            assert {seen.key[1] for seen in watch.seen} <= {catalogue.HANDSHAKE, catalogue.PATH}
            a.ns.command("nft", "delete", "table", "ip", "middlebox")
            repaired = time.monotonic()
            closed = watch.closed(key, 100)
            assert closed is not None
            until(lambda: a.proves("b") and b.proves("a"), READY_S, "both are well")
    words = f"found {opened - made:.1f} s after the last one, closed after {closed - repaired:.1f} s"
    record_property("figure", f"{catalogue.HANDSHAKE} {WHAT}: {words}")
