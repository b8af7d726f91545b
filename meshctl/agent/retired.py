"""Our last retired WireGuard key, kept to see that nobody answers it any more (MESH-STR-001, NET-5).

**Law: in memory alone.** It is never written, printed or told, and it is let go as soon as every peer that there was
has been seen to refuse it, at the latest after KEPT_S. A restart forgets it; a later rotation takes its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from meshctl.mesh.keys import PrivateKey
from meshctl.mesh.model import NodeId

# A thousand peers at two or three seconds each are through by then; for one that sleeps longer it is not kept.
KEPT_S: Final = 3600.0


class Retired:
    """`of` a peer: the key that is still to be tried with it."""

    def __init__(self) -> None:
        self.on_retired: Callable[[], None] = lambda: None
        self._key: PrivateKey | None = None
        self._left: set[NodeId] = set()  # have not been seen to refuse it
        self._timer: asyncio.TimerHandle | None = None

    def retire(self, key: PrivateKey, peers: Iterable[NodeId]) -> None:
        """`key` was ours until now, and `peers` knew it."""
        self._drop()
        self._left = set(peers)
        if self._left:
            self._key = key
            self._timer = asyncio.get_running_loop().call_later(KEPT_S, self._drop)
        self.on_retired()

    def of(self, peer: NodeId) -> PrivateKey | None:
        """What to try with this peer, if anything."""
        return self._key if peer in self._left else None

    def refused(self, peer: NodeId, key: PrivateKey | None) -> None:
        """This peer did not answer `key`; which need not be the last one any more."""
        if key is None or key != self._key:
            return
        self._left.discard(peer)
        if not self._left:
            self._drop()

    def _drop(self) -> None:
        self._key = None
        self._left.clear()
        if self._timer:
            self._timer.cancel()
            self._timer = None
