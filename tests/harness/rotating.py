"""What tests of rotations ask of a mesh: do all kernels agree, and can no handshake begin?"""

from __future__ import annotations

from collections.abc import Sequence

from tests.harness.mesh import Node

# WireGuard's handshake initiation begins with a 1 (its message type), behind 8 bytes of UDP header.
_NO_HANDSHAKES = """
table ip deaf {
  chain in { type filter hook input priority 0; udp dport 51820 @th,64,8 1 drop; }
}
"""


def agree(nodes: Sequence[Node]) -> bool:
    """Every kernel holds exactly the keys that the others' kernels have in force, and every pair is proven."""
    keys = {node: node.key() for node in nodes}
    held = all(set(node.peers()) == {k for other, k in keys.items() if other is not node} for node in nodes)
    return held and all(node.proves(*(other.name for other in nodes if other is not node)) for node in nodes)


def deafen(nodes: Sequence[Node]) -> None:
    """No handshake can begin anywhere."""
    for node in nodes:
        node.ns.command("nft", "-f", "-", stdin=_NO_HANDSHAKES)


def undeafen(nodes: Sequence[Node]) -> None:
    """They can again."""
    for node in nodes:
        node.ns.command("nft", "delete", "table", "ip", "deaf", check=False)


def lose_first(node: Node, peers: Sequence[Node]) -> None:
    """The next initiation of each of these peers is lost on its way to `node`."""
    initiation = 20 + 8 + 148  # bytes: the quota that lets every later one pass
    node.ns.command("nft", "add table ip deaf; add chain ip deaf in { type filter hook input priority 0; }")
    for peer in peers:
        what = f"ip saddr {peer.address} udp dport 51820 @th,64,8 1 quota until {initiation} bytes counter drop"
        node.ns.command("nft", f"add rule ip deaf in {what}")


def is_lost(node: Node, peers: Sequence[Node]) -> bool:
    """Whether one of each of them was."""
    listed = node.ns.command("nft", "list", "chain", "ip", "deaf", "in")
    return listed.count("counter packets 1 ") == len(peers)
