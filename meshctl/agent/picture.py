"""The whole picture of a node for `meshctl status --json`: a stable shape, documented here (MON-6).

    mesh {id, name, policy}   node {id, name, address4, address6}   interface {name, kind, listen_port}
    revision {applied, server, age_s}   link {coordinator, connected, age_s, error}   keys {age_s, certificate_left_s}
    verdict, ready, rows, findings (see health.py; findings carry age_s, subject_name, remedy, and signed: it was
    told with a signature)   mesh_findings: the coordinator's own conclusions, which no node signed
    peers [{id, name, address4, address6, endpoint, handshake_age_s, rtt_ms, loss, proven {ok, of, age_s}, state, mtu,
    psk {version, age_s, proven} or null}]

Ages in seconds, null where there is none. `mtu`: bytes of the largest packet to a peer whose path is narrower than full
(its route has that limit, MESH-PATH-002), null where it is not known to be. Fields are only ever added.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from meshctl.agent.book import Book
from meshctl.agent.control import ControlCheck
from meshctl.agent.deep import Deep
from meshctl.agent.follow import Link, Report
from meshctl.agent.health import Health
from meshctl.agent.prober import Prober
from meshctl.agent.psk import PresharedKeys
from meshctl.agent.reconcile import Reconciler
from meshctl.agent.renew import Keeper
from meshctl.agent.rotate import Rotor
from meshctl.mesh.catalogue import CATALOGUE, Scope, Verdict
from meshctl.mesh.interface import Session, network
from meshctl.mesh.model import Candidate, Node


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the picture, and the examiner's readings, come from."""

    keeper: Keeper
    kind: str
    book: Book
    reconciler: Reconciler
    prober: Prober
    health: Health
    link: Link
    rotor: Rotor
    deep: Deep
    control: ControlCheck
    psks: PresharedKeys


def picture(sources: Sources) -> dict[str, Any]:
    """Everything above, as of now."""
    keeper, health, link, prober = sources.keeper, sources.health, sources.link, sources.prober
    member, roster, outcome = keeper.member, sources.book.roster, sources.reconciler.outcome
    now, wall = time.monotonic(), time.time()
    judged = health.status()
    names: dict[str, str] = {node.id: node.name for node in roster.nodes.values()}
    for finding in judged["findings"]:
        finding["age_s"], finding["subject_name"] = wall - finding["since"], finding["name"]
        finding["signed"] = (finding["code"], finding["subject"]) in link.signed
    rows = {(row.code, row.subject): row.verdict for row in health.rows}
    narrow = {route.prefix: route.mtu for route in sources.reconciler.routes if route.mtu}
    peers = [node for node in roster.nodes.values() if node.id != member.node.id]
    return {
        **judged,
        "mesh": {"id": member.mesh.id, "name": member.mesh.name, "policy": member.mesh.policy},
        "node": {
            "id": member.node.id,
            "name": member.node.name,
            "address4": str(member.node.address4),
            "address6": str(member.node.address6),
        },
        "interface": {"name": member.saved.interface, "kind": sources.kind, "listen_port": member.saved.listen_port},
        "revision": {
            "applied": outcome.revision,
            "server": link.beat.revision if link.beat else None,
            "age_s": now - outcome.at if outcome.at else None,
        },
        "link": {
            "coordinator": link.coordinator,
            "connected": link.connected,
            "age_s": wall - link.since if link.since else None,
            "error": link.last_error,
        },
        "keys": {"age_s": keeper.key_age_s, "certificate_left_s": keeper.left_s},
        "mesh_findings": [
            {
                "code": f.code,
                "subject": f.subject,
                "subject_name": names.get(f.subject, f.subject),
                "verdict": f.verdict,
                "age_s": wall - f.since,
                "evidence": f.evidence,
                "remedy": CATALOGUE[f.code].remedy if f.code in CATALOGUE else "",
                "signed": bool(f.signature),
            }
            for f in (link.beat.findings if link.beat else ())
        ],
        "peers": [
            {
                **_peer(node, outcome.sessions.get(node.statement.wireguard), prober, rows, now=now, wall=wall),
                "mtu": narrow.get(network(f"{node.address4}/32")),
                "psk": sources.psks.of(node.id),
            }
            for node in sorted(peers, key=lambda node: node.name)
        ],
    }


def report(sources: Sources, candidates: tuple[Candidate, ...]) -> Report | None:
    """What the coordinator is told; nothing before the first pass."""
    outcome, found = sources.reconciler.outcome, sources.health.told()
    if not outcome.digest:
        return None
    kinds, turn = frozenset((f.code, f.subject, f.verdict) for f in found), sources.rotor.report
    verdict, row = sources.health.verdict, sources.health.row
    return Report(outcome.revision, outcome.digest, verdict, kinds, found, candidates, turn, row, sources.health.ended)


def _peer(
    node: Node,
    session: Session | None,
    prober: Prober,
    rows: dict[tuple[str, str], Verdict],
    *,
    now: float,
    wall: float,
) -> dict[str, Any]:
    echo = prober.echo(node.id)
    checks = [check for check in CATALOGUE.values() if check.scope is Scope.PEER]
    states = {check.code: rows.get((check.code, node.id), Verdict.UNKNOWN) for check in checks if not check.deep}
    # A deep check that was not tried yet changes no state (integrity.overall); one that found something does.
    told = {rows.get((check.code, node.id)) for check in checks}
    calm = Verdict.UNKNOWN if Verdict.UNKNOWN in states.values() else Verdict.OK
    worst = next((verdict for verdict in (Verdict.FAILED, Verdict.DEGRADED) if verdict in told), calm)
    return {
        "id": node.id,
        "name": node.name,
        "address4": str(node.address4),
        "address6": str(node.address6),
        "tags": node.tags,
        "endpoint": str(session.endpoint) if session and session.endpoint else None,
        "handshake_age_s": wall - session.last_handshake if session and session.last_handshake else None,
        "rtt_ms": None if echo.rtt_s is None else round(echo.rtt_s * 1e3, 3),
        "loss": echo.loss if echo.sent else None,
        "proven": {
            "ok": sum(v is Verdict.OK for v in states.values()),
            "of": len(states),
            "age_s": None if echo.last_ok_at is None else now - echo.last_ok_at,
        },
        "state": str(worst),
    }
