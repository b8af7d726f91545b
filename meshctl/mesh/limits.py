"""Every number of the mesh, with its origin. Seconds, bytes or counts, as the name says."""

from __future__ import annotations

from typing import Final

# WireGuard's own constants (Donenfeld, "WireGuard: Next Generation Kernel Network Tunnel", section 6).
REKEY_AFTER_S: Final = 120.0
REJECT_AFTER_S: Final = 180.0  # a session older than this is refused: the age at which a peer is dead
REKEY_TIMEOUT_S: Final = 5.0  # between two initiations of one handshake attempt
STAGED_PACKETS: Final = 128  # WireGuard's queue per peer while there is no session
WIREGUARD_OVERHEAD_BYTES: Final = 80  # IPv6 40 + UDP 8 + WireGuard 32: safe for both families
KEEPALIVE_S: Final = 25  # the protocol's documented value behind NAT
MIN_MTU_BYTES: Final = 1280  # IPv6 minimum; below it v6 cannot run in the tunnel
MIN_MTU4_BYTES: Final = 576  # RFC 791: what every IPv4 host takes

# Starting a pair (mesh/liveness.py). The leader tries at once and soon again, because the other side may hear of
# the new key some tens of milliseconds later; the follower is offset so that initiations cannot keep crossing.
LEADER_ATTEMPTS_S: Final = (0.0, 0.4, 1.0)
FOLLOWER_OFFSET_S: Final = 2.5
HEIR_AGAIN_S: Final = 1.0  # a rotated peer: a second attempt drops what waits for the first
ATTEMPT_EVERY_S: Final = REKEY_TIMEOUT_S
PATIENT_AFTER_ATTEMPTS: Final = 18  # about WireGuard's own REKEY_ATTEMPT_TIME of 90 s: then a peer counts as absent
PATIENT_EVERY_S: Final = 30.0  # 1,000 absent peers at 5 s cost 4.6 % of a core (measured), at 30 s under 1 %

# Names and identities. A unix socket's abstract name has 107 bytes: 12 token + 1 + 39 address + 1 + 54 SPIFFE id.
NODE_ID_CHARS: Final = 24
MESH_ID_CHARS: Final = 12
NAME_CHARS: Final = 63  # a DNS label
TAGS_PER_NODE: Final = 16
ENDPOINTS_PER_NODE: Final = 16

# Message sizes.
PRE_AUTH_MESSAGE_BYTES: Final = 16 * 1024  # a join request is under 2 kB
UP_MESSAGE_BYTES: Final = 256 * 1024  # node to coordinator
DOWN_MESSAGE_BYTES: Final = 4 * 1024 * 1024  # grpc's own default; snapshots are cut well below it
SNAPSHOT_NODES_PER_FRAME: Final = 1000
STATEMENT_BYTES: Final = 189

# Control plane.
HEARTBEAT_S: Final = 10.0
HEARTBEATS_PER_S: Final = 75.0  # of all streams of a mesh: 60 us each (measured); over 750 nodes they come later
REGISTRY_OLD_S: Final = 20.0  # a coordinator cut off from etcd for so long is left, if there is another: past elections
REGISTRY_MOVE_EVERY_S: Final = 60.0  # to twice as long: when no coordinator hears etcd, nodes do not run in circles
NONCE_LIFE_S: Final = 60.0
CERTIFICATE_LIFE_S: Final = 24 * 3600.0
CERTIFICATE_BACKDATE_S: Final = 300.0
RENEWAL_WINDOW_S: Final = 30 * 24 * 3600.0  # an expired certificate still renews this long after its end
TOMBSTONE_LIFE_S: Final = 30 * 24 * 3600.0  # addresses of gone nodes are not reused before
RECONNECT_MAX_S: Final = 4.0  # in a small mesh
RECONNECTS_PER_S: Final = 1_500.0  # a large mesh spreads out a little; 5,000 at once are admitted too (measured: 9 s)
REPORTS_PER_S: Final = 5_000.0  # of all nodes, after one change: each costs a coordinator 65 us (measured)
STEADY_REPORTS_PER_S: Final = 1_000.0  # while changes go on: a fifteenth of a core
PASS_PAUSE_PART: Final = 3.0  # of the pass before: under steady change streams get half the time (measured, README)
PASS_PAUSE_MAX_S: Final = 0.5
EPHEMERAL_AWAY_S: Final = 600.0  # a node that joined with an ephemeral token is removed after this long offline

# Reconciling and proving.
TICK_S: Final = 1.0  # foreign changes are repaired within 2 s; WireGuard announces none, so we look
REREAD_EVERY_S: Final = 120.0  # what the kernel announces (links, routes, nftables); it says when it lost one, too
PROBE_PORT: Final = 51871  # UDP, inside the tunnel only
WATCH_EVERY_S: Final = 2.0
ECHO_LOST_AFTER_S: Final = 1.5
CLOCK_SKEW_WARN_S: Final = 2.0
CLOCK_SKEW_FAIL_S: Final = 30.0
KEY_AGE_WARN_S: Final = 30 * 24 * 3600.0
KEY_AGE_FAIL_S: Final = 90 * 24 * 3600.0
