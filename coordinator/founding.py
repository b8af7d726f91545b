"""Makes a mesh: CA, nonce key, prefixes, policy record, sealed into an empty registry (ENC-1, ENC-2, ACC-1).

Runs once. All records go in one transaction, so a mesh is founded or it is not.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Network

from coordinator import records
from coordinator.enrol import Authority
from coordinator.keyring import SealedRegistry
from coordinator.records import MeshRecord, PolicyRecord
from coordinator.registry import MESH, POLICY, SECRETS, Committed, Conflict, Put
from meshctl.crypto import pki
from meshctl.errors import ConflictError, RefusedError, TrustError
from meshctl.mesh import addressing, limits
from meshctl.mesh.model import MeshInfo

CA_KEY = SECRETS + "ca"
NONCE_KEY = SECRETS + "nonce"
ROUNDS = 16  # lost races against other coordinators that start at the same time


async def found(
    registry: SealedRegistry, name: str, prefix4: IPv4Network, advertise: Sequence[str], *, now: float
) -> MeshInfo:
    """A new mesh called `name`. Raises RefusedError when the registry holds one already."""
    mesh_id = base64.b32encode(secrets.token_bytes(10)).decode().lower()[: limits.MESH_ID_CHARS]
    ca_key, ca = pki.make_ca(mesh_id)
    mesh = MeshInfo(
        id=mesh_id,
        name=name,
        prefix4=prefix4,
        prefix6=addressing.prefix6(secrets.token_bytes(16)),
        coordinators=tuple(advertise),
        ca=ca,
        incarnation=secrets.token_hex(8),
        policy="allow-all",
    )
    done = await registry.commit(
        Put(MESH, records.encode(MeshRecord(mesh, now)), 0),
        Put(CA_KEY, pki.key_der(ca_key), 0),
        Put(NONCE_KEY, secrets.token_bytes(32), 0),
        Put(POLICY, records.encode(PolicyRecord()), 0),
    )
    if isinstance(done, Conflict):
        raise RefusedError("this registry already holds a mesh", "use another etcd, or serve the mesh that is there")
    return mesh


async def authority(registry: SealedRegistry) -> Authority:
    """The mesh of a founded registry, and its keys. Raises RefusedError, TrustError."""
    mesh, ca_key, nonce_key = await registry.read(MESH, CA_KEY, NONCE_KEY)
    if mesh is None:
        raise RefusedError("this registry holds no mesh", "mesh-coordinator init")
    if ca_key is None or nonce_key is None:
        raise TrustError("the registry has lost the mesh's CA key", "restore it from a backup")
    return Authority(records.decode(mesh.value, MeshRecord).info, pki.load_key(ca_key.value), nonce_key.value)


async def advertise(registry: SealedRegistry, addresses: Sequence[str]) -> None:
    """Add addresses of coordinators to the mesh's record, for nodes and for new tokens."""
    for _ in range(ROUNDS):
        (at,) = await registry.read(MESH)
        if at is None:
            raise RefusedError("this registry holds no mesh", "mesh-coordinator init")
        record = records.decode(at.value, MeshRecord)
        wanted = tuple(dict.fromkeys((*record.info.coordinators, *addresses)))
        if wanted == record.info.coordinators:
            return
        fresh = replace(record, info=replace(record.info, coordinators=wanted))
        if isinstance(await registry.commit(Put(MESH, records.encode(fresh), at.generation)), Committed):
            return
    raise ConflictError("other coordinators keep changing the mesh's record", "try again")
