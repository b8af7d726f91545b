"""Gives a node that is stopped the certificate that it would hold had it not renewed for two days (MESH-KEY-001).

    python -m tests.attacks.expired COORDINATOR_DATA NODE_STATE

A genuine one, of the mesh's own CA for the node's own key: nobody can make another that a coordinator renews.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from coordinator import founding
from coordinator.config import load
from coordinator.embedded import Layout
from coordinator.etcd import EtcdRegistry
from coordinator.keyring import Keyring, SealedRegistry
from coordinator.server import kek_provider
from meshctl.agent.store import Store
from meshctl.crypto import pki

AGO_S = 2 * 86400.0


async def expire(data: Path, state: Path) -> None:
    """Beside the coordinator, which goes on."""
    ports = json.loads((data / "etcd" / "ports.json").read_bytes())
    registry = await EtcdRegistry.connect(Layout(data / "etcd", *ports).address)
    try:
        keyring = await Keyring.open(registry, kek_provider(data, load(data)))
        authority = await founding.authority(SealedRegistry(registry, keyring))
    finally:
        await registry.close()
    store = Store(state)
    me, mesh = store.identity(), authority.mesh
    old = pki.issue_node(authority.ca_key, mesh.ca, mesh.id, me.device_key, me.id, now=time.time() - AGO_S)
    store.save_membership(replace(store.membership(), certificate=old))


if __name__ == "__main__":
    asyncio.run(expire(Path(sys.argv[1]), Path(sys.argv[2])))
