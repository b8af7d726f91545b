"""How fast things may happen in a mesh of this many nodes, so that what all nodes do at once stays bearable (OPS-3).

Both ends compute the same answers from the size of their map: nothing is negotiated. Seconds everywhere.
"""

from __future__ import annotations

from meshctl.mesh import limits

SILENT_BEATS = 3.5  # so many missed heartbeats: the stream is dead


def heartbeat_s(nodes: int) -> float:
    """Between two heartbeats of one stream. In a large mesh all heartbeats together would keep a core busy."""
    return max(limits.HEARTBEAT_S, nodes / limits.HEARTBEATS_PER_S)


def silence_s(nodes: int) -> float:
    """A stream that was silent for so long is dead."""
    return SILENT_BEATS * heartbeat_s(nodes)


def report_after_s(nodes: int, since_s: float, *, chance: float) -> float:
    """How long a node waits before it tells what it applied, `since_s` after it told something else.

    All nodes would answer a change at once, and each of many changes. `chance` is random between 0 and 1.
    """
    soon = chance * report_within_s(nodes)
    steady = (0.5 + chance / 2) * nodes / limits.STEADY_REPORTS_PER_S
    return max(soon, steady - since_s)


def report_within_s(nodes: int) -> float:
    """Within this time all nodes have answered a change that comes alone."""
    return nodes / limits.REPORTS_PER_S


def longest_backoff_s(nodes: int) -> float:
    """Between two attempts to connect: all nodes of a mesh come back at once."""
    return max(limits.RECONNECT_MAX_S, nodes / limits.RECONNECTS_PER_S)


def pause_s(lasted_s: float) -> float:
    """After a pass over all streams that lasted so long: joins, reports and handshakes get the same time."""
    return min(limits.PASS_PAUSE_PART * lasted_s, limits.PASS_PAUSE_MAX_S)
