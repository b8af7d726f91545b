"""Signed findings: one form per value, numbers that only grow, lines that verify by themselves (NET-7, MON-1)."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from coordinator.cli.main import cli
from coordinator.testimony import LINE_BYTES, audit, event_of
from meshctl.agent.ledger import CLOSED_KEPT, Ledger
from meshctl.crypto.identity import FINDING_CONTEXT, JOIN_CONTEXT, Identity, verify
from meshctl.errors import MeshError, ProtocolError, TrustError
from meshctl.eventlog import EventLog, HumanLog
from meshctl.mesh import evidence
from meshctl.mesh.catalogue import PATH
from meshctl.mesh.evidence import SIGNED_OPEN, Claim
from meshctl.wire.codec import FindingRow
from tests.harness.world import Clock

MESH = "mesh00000001"
ME, OTHER = Identity.generate(), Identity.generate()
CLAIM = Claim(MESH, ME.id, 7, False, PATH, OTHER.id, "failed", 1_800_000_000_000, 1_800_000_000_500, "3 unanswered: é")
words = st.text(st.characters(codec="utf-8"), max_size=evidence.EVIDENCE_CHARS)
claims = st.builds(
    Claim, st.from_regex(r"\A[!-~]{1,16}\Z"), st.sampled_from([ME.id, OTHER.id]),
    st.integers(1, evidence.NUMBER_MAX - 1), st.booleans(), st.from_regex(r"\A[A-Z0-9-]{1,32}\Z"),
    st.from_regex(r"\A[!-~]{0,64}\Z"),
    st.from_regex(r"\A[a-z]{1,16}\Z"), st.integers(0, evidence.TIME_MAX_MS - 1),
    st.integers(0, evidence.TIME_MAX_MS - 1), words,
)  # fmt: skip


def row(code: str = PATH, subject: str = OTHER.id, verdict: str = "failed", words: str = "seen") -> FindingRow:
    return FindingRow(code, subject, verdict, 1_800_000_000.25, 1_800_000_001.125, words)


def signed(claim: Claim, by: Identity = ME) -> bytes:
    return by.sign(FINDING_CONTEXT + claim.body)


# ---- the layout ------------------------------------------------------------------------------------------------------


@given(claims, claims)
def test_two_claims_have_one_form_only_when_they_are_one(one: Claim, other: Claim) -> None:
    assert (one.body == other.body) == (one == other)


@given(claims, st.sampled_from(["code", "subject", "verdict", "evidence"]), st.text(max_size=300))
def test_text_moved_from_one_field_to_another_is_another_claim(claim: Claim, field: str, text: str) -> None:
    changed = replace(claim, **{field: text})
    try:
        body = changed.body
    except ProtocolError:
        return
    assert (body == claim.body) == (changed == claim)


@pytest.mark.parametrize("change", [
    {"number": 0}, {"number": -1}, {"number": evidence.NUMBER_MAX}, {"since_ms": -1}, {"at_ms": evidence.TIME_MAX_MS},
    {"code": ""}, {"code": "mesh-path"}, {"code": "A" * 33}, {"subject": "a b"}, {"subject": "x" * 65},
    {"verdict": "FAILED"}, {"verdict": "a" * 17}, {"evidence": "e" * 257}, {"evidence": "\ud800"},
    {"mesh": ""}, {"mesh": "m" * 17}, {"node": "short"}, {"node": ME.id + "\n"},
], ids=str)  # fmt: skip
def test_what_no_node_says_has_no_form(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        _ = replace(CLAIM, **change).body


def test_signature_given_for_something_else_proves_no_finding() -> None:
    verify(ME.device_key, FINDING_CONTEXT + CLAIM.body, signed(CLAIM))
    for other in (JOIN_CONTEXT, b""):
        with pytest.raises(TrustError):
            verify(ME.device_key, FINDING_CONTEXT + CLAIM.body, ME.sign(other + CLAIM.body))


# ---- the node's side -------------------------------------------------------------------------------------------------


def ledger(clock: Clock) -> tuple[Ledger, Callable[..., list[tuple[str, int]]]]:
    made = Ledger(ME, lambda: MESH, clock)

    def tell(*rows: FindingRow) -> list[tuple[str, int]]:
        found, closed = made.tell(rows, {(PATH, OTHER.id): ("ok", "answered")})
        for one, over in [*((r, False) for r in found), *((r, True) for r in closed)]:
            verify(ME.device_key, FINDING_CONTEXT + one.claim(MESH, ME.id, closed=over).body, one.signature)
        return [("open", r.number) for r in found] + [("closed", r.number) for r in closed]

    return made, tell


def test_transition_is_signed_once_and_newer_words_are_none() -> None:
    clock = Clock()
    made, tell = ledger(clock)
    first = int(clock() * 1000)
    assert tell(row()) == [("open", first)]
    clock.now += 60
    assert tell(row(words="still")) == [("open", first)], "not signed for a probe round"
    assert made.open[PATH, OTHER.id].evidence == "seen"
    assert tell(row(verdict="degraded")) == [("open", first + 60_000)]
    assert tell() == [("closed", first + 60_001)]
    assert tell() == [], "said already in this session"
    made.begin(first + 60_000)
    assert tell() == [("closed", first + 60_001)], "this coordinator has not heard it"
    made.begin(first + 60_001)
    assert tell() == []


def test_numbers_grow_while_the_clock_goes_back() -> None:
    clock = Clock()
    _, tell = ledger(clock)
    ((_, first),) = tell(row())
    clock.now -= 3600
    assert tell() == [("closed", first + 1)]
    assert tell(row()) == [("open", first + 2)]


def test_node_that_restarts_with_its_clock_set_back_signs_above_what_was_heard() -> None:
    clock = Clock()
    _, before = ledger(clock)
    ((_, heard),) = before(row())
    clock.now -= 3600
    made, tell = ledger(clock)
    ((_, low),) = tell(row())
    assert low < heard
    made.begin(heard)
    assert tell(row()) == [("open", heard + 1)]
    made.begin(2**63)
    assert tell(row()) == [("open", heard + 1)], "nobody talks it into a number without a successor"


def test_peers_that_all_go_and_come_back_are_told_within_bounds() -> None:
    clock = Clock()
    made, tell = ledger(clock)
    many = [row(subject=f"p{n}", words="é" * 999) for n in range(3 * SIGNED_OPEN)]
    told = tell(*many)
    assert len(told) == SIGNED_OPEN
    assert tell(*reversed(many)) == told, "those that were told first stay told"
    assert len(tell()) == CLOSED_KEPT
    assert not made.open


# ---- a line of a log, offline ----------------------------------------------------------------------------------------


def lines(tmp_path: Path) -> list[bytes]:
    log = EventLog(tmp_path / "events.jsonl", actor="coordinator:1", human=HumanLog(io.StringIO()))
    log.emit(event_of(CLAIM, ME.device_key, signed(CLAIM)))
    over = replace(CLAIM, number=8, closed=True, verdict="ok", evidence="e" * evidence.EVIDENCE_CHARS)
    log.emit(event_of(over, ME.device_key, signed(over)))
    log.close()
    return (tmp_path / "events.jsonl").read_bytes().splitlines(keepends=True)


def test_line_verifies_with_nothing_but_itself(tmp_path: Path) -> None:
    first, second = lines(tmp_path)
    assert audit(first) == CLAIM
    told = audit(second)
    assert told
    assert (told.closed, told.number) == (True, 8)
    assert audit(b'{"seq":1,"event":"token.created"}') is None


@pytest.mark.parametrize(("field", "value"), [
    ("mesh", "mesh00000002"), ("node", OTHER.id), ("number", 9), ("code", "MESH-HS-001"), ("subject", ME.id),
    ("verdict", "degraded"), ("since_ms", 1), ("at_ms", 1), ("evidence", "nothing"), ("actor", f"node:{OTHER.id}"),
    ("event", "node-finding.closed"), ("outcome", "success"), ("signature", "AAAA"), ("device_key", "AAAA"),
    ("device_key", base64.b64encode(OTHER.device_key).decode()),
    ("signature", base64.b64encode(signed(CLAIM, OTHER)).decode()), ("signature", "é"), ("number", "7"),
    ("at_ms", None),
], ids=lambda value: str(value)[:20])  # fmt: skip
def test_altered_line_is_caught(tmp_path: Path, field: str, value: object) -> None:
    line = json.loads(lines(tmp_path)[0])
    assert line[field] != value
    with pytest.raises((TrustError, ProtocolError)):
        audit(json.dumps({**line, field: value}).encode())


def test_line_with_a_field_twice_is_caught(tmp_path: Path) -> None:
    line = lines(tmp_path)[0]
    with pytest.raises(ProtocolError):
        audit(line.replace(b'"evidence":', b'"evidence":"all is well","evidence":', 1))


def test_other_nodes_key_and_signature_prove_nothing_about_this_one(tmp_path: Path) -> None:
    line = json.loads(lines(tmp_path)[0])
    key, own = base64.b64encode(OTHER.device_key).decode(), base64.b64encode(signed(CLAIM, OTHER)).decode()
    with pytest.raises(TrustError, match="not the node's"):
        audit(json.dumps({**line, "device_key": key, "signature": own}).encode())


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode), st.builds(
    lambda found: json.dumps(found).encode(),
    st.dictionaries(st.sampled_from([*json.loads('["event","node","number","evidence","signature"]')]),
                    st.one_of(st.just("node-finding.opened"), st.integers(), st.none(), st.text(max_size=9))),
)))  # fmt: skip
def test_no_line_breaks_the_auditor(raw: bytes) -> None:
    try:
        assert audit(raw) is None
    except MeshError:
        pass


def test_deep_and_endless_lines_are_refused() -> None:
    for raw in (b"[" * 60_000, b'{"event":"node-finding.opened","evidence":"' + b"a" * LINE_BYTES + b'"}', b"[]", b"1"):
        with pytest.raises(ProtocolError):
            audit(raw)


def test_auditor_reads_a_log_at_the_command_line(tmp_path: Path) -> None:
    lines(tmp_path)
    log = tmp_path / "events.jsonl"
    run = CliRunner().invoke
    good = run(cli, ["findings", "verify", str(log), "--node", ME.id])
    assert (good.exit_code, good.stdout.count(ME.id)) == (0, 2)
    assert "2 lines verify, 0 do not" in good.stderr
    log.write_bytes(log.read_bytes().replace(b"3 unanswered", b"0 unanswered"))
    bad = run(cli, ["findings", "verify", str(log)])
    assert bad.exit_code == TrustError.exit_code
    assert "! line 1: a signature does not match" in bad.stdout
    assert run(cli, ["findings", "verify", str(tmp_path / "absent")]).exit_code != 0
