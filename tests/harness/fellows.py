"""What tests of several coordinators share: members that are connected somewhere and say what they applied (OPS-2)."""

from __future__ import annotations

from tests.harness.world import Computer, Coordinator, World


async def connect(mesh: World, at: int, *names: str, ephemeral: bool = False) -> list[Computer]:
    """New members that are connected to a coordinator, and have applied its map."""
    made = []
    for name in names:
        node = mesh.computer(name)
        await node.join(mesh.coordinators[at], await mesh.token(ephemeral=ephemeral))
        made.append(node)
    await mesh.caught_up()
    for node in made:
        mesh.coordinators[at].presence.opened(node.id, "192.0.2.1", "1.0", now=mesh.clock())
        says(mesh.coordinators[at], node)
    await mesh.heard()
    return made


def says(one: Coordinator, node: Computer, verdict: str = "ok") -> None:
    """The node reports that it applied all that the coordinator has."""
    revision = one.feed.revision
    one.presence.report(
        node.id, (revision, one.feed.expected_digest(node.id, revision) or b"", verdict), (), now=1.0
    )


async def silence(mesh: World, dead: Coordinator, seconds: float) -> None:
    """All but one go on."""
    mesh.coordinators.remove(dead)
    for _ in range(int(seconds)):
        await mesh.heard()
