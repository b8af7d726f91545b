"""Keeps the certificate young: renewed at half life, or at once when it has expired; never bricks a node (ACC-4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from meshctl.agent import join
from meshctl.agent.join import Member
from meshctl.agent.store import Store
from meshctl.crypto import pki
from meshctl.crypto.identity import Identity
from meshctl.errors import EnvironmentFault, MeshError
from meshctl.events import CertificateRenewed, Events
from meshctl.mesh import limits
from meshctl.mesh.model import MeshInfo
from meshctl.wire import codec

RETRY_S = (5.0, 300.0)  # first and longest pause after a failure
LOOK_EVERY_S = 60.0  # the wall clock may be stepped: never sleep through half a life


class Keeper:
    """Holds the membership in force. `on_renewed` hears of a new certificate."""

    def __init__(self, store: Store, identity: Identity, on_renewed: Callable[[], None], events: Events) -> None:
        self.member: Member = Member.load(store)
        self._store, self._identity, self._on_renewed, self._events = store, identity, on_renewed, events
        self._renewed_at: float | None = None  # monotonic

    @property
    def key_age_s(self) -> float:
        """Seconds since this node's WireGuard key was made."""
        return max(time.time() - self.member.saved.key_made_at, 0.0)

    @property
    def left_s(self) -> float:
        """Seconds of life the certificate has left by our own clock."""
        return pki.expiry(self.member.certificate) - time.time()

    @property
    def is_due(self) -> bool:
        """Past half life. Once we renewed, our own steady clock counts: the wall clock may be days off."""
        if self._renewed_at is not None:
            return time.monotonic() - self._renewed_at > limits.CERTIFICATE_LIFE_S / 2
        return not limits.CERTIFICATE_LIFE_S / 2 < self.left_s <= limits.CERTIFICATE_LIFE_S * 2

    def adopt(self, mesh: MeshInfo) -> None:
        """Take the mesh's record as a coordinator tells it (further coordinators, policy). Never another mesh or CA."""
        held = self.member.mesh
        if mesh != held and (mesh.id, mesh.ca) == (held.id, held.ca):
            saved = replace(self.member.saved, mesh=codec.encode_mesh(mesh))
            self.member = replace(self.member, mesh=mesh, saved=saved)
            with suppress(EnvironmentFault):  # a full disk is no reason to end a session: it is told again at the next
                self._store.save_membership(saved)

    def stated(self, serial: int, key_made_at: float | None) -> None:
        """The statement in force has this serial; its key was made then, or is the one before (None)."""
        saved = replace(self.member.saved, serial=serial, key_made_at=key_made_at or self.member.saved.key_made_at)
        self._store.save_membership(saved)
        self.member = replace(self.member, saved=saved)

    async def run(self) -> None:
        """For ever. Failures are retried with growing pauses and show in MESH-KEY-001, never in an exit."""
        pause = RETRY_S[0]
        while True:
            if not self.is_due:
                await asyncio.sleep(LOOK_EVERY_S)
                continue
            try:
                await self.renew()
                pause = RETRY_S[0]
                await asyncio.sleep(LOOK_EVERY_S)
            except MeshError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_S[1])

    async def renew(self) -> None:
        """Now. Raises MeshError."""
        late = self.left_s < 0
        self.member = await join.renew(self._store, self.member, self._identity)
        self._renewed_at = time.monotonic()
        node = self.member.node.id
        expires = pki.expiry(self.member.certificate)
        self._events.emit(CertificateRenewed(actor=f"agent:{node}", node=node, expires=expires, late=late))
        self._on_renewed()
