"""What has changed between two pictures of a node, one sentence each, for who watches it (MON-6).

A picture is agent/picture.py's: plain values, as they come over the status socket. Compares, and nothing else: ages,
round trips and evidence move all the time and are no change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshctl.mesh.spans import span

Picture = Mapping[str, Any]


def changes(before: Picture | None, after: Picture | None) -> Iterator[str]:
    """Sentences; those that begin with `!` deserve attention. None: the agent did not answer."""
    if after is None:
        if before is not None:
            yield "! the agent does not answer"
        return
    if before is None:
        peers = after["peers"]
        proven = sum(peer["state"] == "ok" for peer in peers)
        who = f"{after['node']['name']} in mesh {after['mesh']['name']}"
        yield f"{who}: {after['verdict']}, {proven} of {len(peers)} peers ok"
        before = {"verdict": after["verdict"], "link": {"connected": True}, "peers": peers, "findings": []}
    if before["verdict"] != after["verdict"]:
        yield f"verdict {before['verdict']} -> {after['verdict']}"
    yield from _link(before["link"], after["link"])
    yield from _peers(before["peers"], after["peers"])
    yield from _findings(before["findings"], after["findings"])


def _link(before: Picture, after: Picture) -> Iterator[str]:
    if before["connected"] and not after["connected"]:
        why = f": {after['error']}" if after["error"] else ""
        yield f"! coordinator {after['coordinator'] or '-'} lost{why}; the mesh works on"
    elif after["connected"] and (
        not before["connected"] or before.get("coordinator", "") not in ("", after["coordinator"])
    ):
        yield f"coordinator {after['coordinator']} connected"


def _peers(before: list[Picture], after: list[Picture]) -> Iterator[str]:
    then, now = ({peer["id"]: peer for peer in peers} for peers in (before, after))
    for peer in (now[node] for node in now if node not in then):
        yield f"{peer['name']} ({peer['address4']}) is new: {peer['state']}"
    for peer in (then[node] for node in then if node not in now):
        yield f"{peer['name']} ({peer['address4']}) is gone from the mesh"
    for node, peer in now.items():
        if node in then and then[node]["state"] != peer["state"]:
            mark = "" if peer["state"] == "ok" else "! "
            yield f"{mark}{peer['name']} {then[node]['state']} -> {peer['state']}"
        if node in then and then[node]["endpoint"] != peer["endpoint"]:
            yield f"{peer['name']} moved from {then[node]['endpoint'] or 'nowhere'} to {peer['endpoint'] or 'nowhere'}"


def _findings(before: list[Picture], after: list[Picture]) -> Iterator[str]:
    then, now = ({(f["code"], f["subject"]): f for f in found} for found in (before, after))
    for key, found in now.items():
        if key not in then:
            yield f"! {_named(found)} opened: {found['evidence']} -> {found['remedy']}"
        elif then[key]["verdict"] != found["verdict"]:
            yield f"! {_named(found)} {then[key]['verdict']} -> {found['verdict']}: {found['evidence']}"
    for key, found in then.items():
        if key not in now:
            yield f"{_named(found)} closed after {span(found['age_s'])}"


def _named(found: Picture) -> str:
    return f"{found['code']} {found['subject_name']}" if found["subject_name"] else str(found["code"])
