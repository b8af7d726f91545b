"""The core's small decisions, by example and by oracle (NET-1, NET-2, NET-3, NET-8, ACC-3, ENC-4).

Addresses, admission, statements, names, liveness, journal, keys, and the digest and disjointness of interfaces.
"""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshctl.crypto.identity import Identity
from meshctl.errors import ProtocolError, RefusedError, UsageError
from meshctl.mesh import addressing, admission, limits, liveness
from meshctl.mesh.admission import Admitted, Refused, Request, Token
from meshctl.mesh.interface import Interface, Peer, Session, digest, network, overlap
from meshctl.mesh.journal import Journal, chunk_hash
from meshctl.mesh.keys import PresharedKey, PrivateKey, PublicKey
from meshctl.mesh.model import Candidate, Endpoint, Gone, Node, NodeId, Origin, Put, Roster, check_name, node_id
from meshctl.mesh.statement import Statement

MESH = "mesh00000001"
IDS = [Identity.generate() for _ in range(4)]


def node(number: int, **changes: object) -> Node:
    identity = IDS[number]
    facts = {"joined": number + 1, "name": f"n{number}", "statement": identity.state(MESH, 1), "id": identity.id}
    v4, v6 = IPv4Address(f"10.77.0.{number + 1}"), IPv6Address(number + 1)
    return Node(address4=v4, address6=v6, **facts | changes)  # type: ignore[arg-type]


def key(number: int) -> PublicKey:
    return PublicKey(number.to_bytes(32, "big"))


# ---- addressing ------------------------------------------------------------------------------------------------------


@given(st.integers(24, 30), st.sets(st.integers(0, 255)), st.integers(0, 10_000))
def test_dealt_address_is_free_and_a_host(length: int, used: set[int], start: int) -> None:
    prefix = IPv4Network((f"10.9.8.{0}", length))
    taken = {prefix.network_address + n for n in used}
    free = [host for host in prefix.hosts() if host not in taken]
    if not free:
        with pytest.raises(RefusedError, match="no free address"):
            addressing.next4(prefix, taken, start)
    else:
        assert addressing.next4(prefix, taken, start) in free


def test_addresses_are_dealt_in_order_and_wrap_round() -> None:
    prefix, taken = IPv4Network("10.9.8.0/29"), set()
    for _ in range(6):
        taken.add(addressing.next4(prefix, taken, start=4))
    assert taken == set(prefix.hosts())


@given(st.binary(min_size=16, max_size=16))
def test_v6_prefix_is_a_local_one_and_addresses_follow_the_key(seed: bytes) -> None:
    prefix = addressing.prefix6(seed)
    assert prefix.subnet_of(IPv6Network("fd00::/8"))
    assert prefix.prefixlen == 64
    addresses = {addressing.address6(prefix, identity.id) for identity in IDS}
    assert len(addresses) == len(IDS)
    assert all(address in prefix for address in addresses)


@pytest.mark.parametrize(
    "bad", ["10.77.0.0/33", "10.77.0.1/16", "fd00::/64", "10.0.0.0/30", "100.96.0.0/16", "banana", "10.8.0.0/16"]
)
def test_unusable_mesh_prefix_is_refused(bad: str) -> None:
    with pytest.raises(UsageError) as refusal:
        addressing.check_prefix4(bad, [ip_network("10.8.1.0/24"), ip_network("0.0.0.0/0"), ip_network("fd00::/8")])
    assert refusal.value.hint


@given(st.lists(st.integers(0, 255), max_size=200), st.integers(0, 1 << 32))
def test_chosen_prefix_collides_with_no_route(second_octets: list[int], seed: int) -> None:
    routes = [IPv4Network(f"10.{n}.128.0/17") for n in second_octets]
    prefix = addressing.choose_prefix4(routes, seed)
    assert addressing.check_prefix4(str(prefix), routes) == prefix


def test_host_that_routes_all_of_ten_must_choose_itself() -> None:
    with pytest.raises(UsageError, match="routes all of"):
        addressing.choose_prefix4([IPv4Network("10.0.0.0/8")], 3)


# ---- admission -------------------------------------------------------------------------------------------------------

TOKEN = Token("t1", b"h", created=0.0, expires=100.0, uses=1, tags=("gpu", "eu"))


def judged(token: Token | None = TOKEN, request: Request | None = None, **facts: object) -> Admitted | Refused:
    facts = {"secret_matches": True, "member": False, "name_taken": False, "tombstone": None, "now": 50.0} | facts
    return admission.decide(request or Request(IDS[0].id, "gpu-a1"), token, **facts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "token", "facts"),
    [
        ("token-unknown", None, {}),
        ("token-unknown", TOKEN, {"secret_matches": False}),
        ("token-revoked", Token("t1", b"h", 0, 100, 1, revoked=True), {}),
        ("token-expired", TOKEN, {"now": 100.0}),
        ("token-used", Token("t1", b"h", 0, 100, 0), {}),
        ("name-taken", TOKEN, {"name_taken": True}),
        ("node-revoked", TOKEN, {"tombstone": "revoked"}),
        ("node-revoked", TOKEN, {"tombstone": "revoked", "member": True}),
    ],
)
def test_refused_join_says_why_and_what_to_do(code: str, token: Token | None, facts: dict[str, object]) -> None:
    verdict = judged(token, **facts)
    assert isinstance(verdict, Refused)
    assert verdict.code == code
    assert verdict.what
    assert verdict.hint


def test_unknown_token_and_wrong_secret_look_the_same() -> None:
    assert judged(None) == judged(secret_matches=False)


def test_join_spends_one_use_and_never_grants_a_tag_the_token_lacks() -> None:
    verdict = judged()
    assert isinstance(verdict, Admitted)
    assert (verdict.token.uses, verdict.token.used_by, verdict.tags) == (0, (IDS[0].id,), TOKEN.tags)
    narrow = judged(request=Request(IDS[0].id, "a", ("eu",)))
    assert isinstance(narrow, Admitted)
    assert narrow.tags == ("eu",)
    wide = judged(request=Request(IDS[0].id, "a", ("eu", "root")))
    assert isinstance(wide, Refused)
    assert wide.code == "tag-denied"


def test_join_that_was_cut_off_is_resumed_with_the_spent_token() -> None:
    spent = Token("t1", b"h", 0, 100, 0, used_by=(IDS[0].id,))
    verdict = judged(spent, member=True, name_taken=True, now=1e9)
    assert isinstance(verdict, Admitted)
    assert verdict.resumed
    assert verdict.token == spent
    assert isinstance(judged(spent), Refused)  # a node that was removed does not resume


# ---- statements and the roster ---------------------------------------------------------------------------------------


def test_statement_shows_what_was_signed() -> None:
    statement = IDS[0].state(MESH, 41)
    assert len(statement.signed) == limits.STATEMENT_BYTES
    assert (statement.mesh_id, statement.serial, statement.device_key) == (MESH, 41, IDS[0].device_key)
    assert statement.body + statement.signature == statement.signed
    assert statement == Statement(statement.signed)
    assert statement.fingerprint != IDS[0].state(MESH, 42).fingerprint


@given(st.binary(max_size=250))
def test_garbage_is_no_statement(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        Statement(raw)


def test_node_cannot_take_the_id_of_another_key() -> None:
    with pytest.raises(ProtocolError, match="not named after its device key"):
        node(0, id=IDS[1].id)
    assert len(node_id(IDS[0].device_key)) == limits.NODE_ID_CHARS


def test_node_that_claims_too_much_is_refused() -> None:
    hint = Candidate(Endpoint.parse("192.0.2.1:1"), Origin.LOCAL)
    for claims in ({"candidates": (hint,) * 17}, {"tags": ("t",) * 17}, {"name": "UPPER"}):
        with pytest.raises(ProtocolError):
            node(0, **claims)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a.b", "a" * 64, "a\n", "ä"])
def test_name_that_is_no_dns_label_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        check_name(name)


@pytest.mark.parametrize("text", ["192.0.2.1:51820", "[2001:db8::1]:1", "[::]:65535"])
def test_endpoint_survives_its_text(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "1.2.3.4", "1.2.3.4:0", "1.2.3.4:65536", "::1:5", "[1.2.3.4]:5", "host:5", "[::1]", "1.2.3.4:x"]
)
def test_bad_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        Endpoint.parse(text)


def test_roster_changes_by_put_and_gone_alone() -> None:
    old = Roster("i", 1, {}).apply([Put(node(0)), Put(node(1))], 5)
    new = old.apply([Gone(IDS[0].id), Gone(NodeId("stranger")), Put(node(1, name="renamed"))], 6)
    assert (set(old.nodes), set(new.nodes), new.revision) == ({IDS[0].id, IDS[1].id}, {IDS[1].id}, 6)
    assert {node.name for node in new.nodes.values()} == {"renamed"}


# ---- liveness --------------------------------------------------------------------------------------------------------

SPOTS = tuple(Endpoint.parse(f"192.0.2.{n}:51820") for n in (1, 2, 3))


@pytest.mark.parametrize(("age", "alive"), [(0.0, True), (179.9, True), (180.0, False)])
def test_session_lives_until_wireguard_refuses_it(age: float, alive: bool) -> None:
    key = PublicKey(bytes(32))
    assert (key in liveness.alive({key: Session(None, 1000.0, 0, 0)}, now=1000.0 + age)) is alive
    assert not liveness.alive({key: Session(None, 0.0, 0, 0)}, now=100.0)


def test_exactly_one_end_of_a_pair_leads() -> None:
    for a in range(4):
        for b in range(4):
            twins = node(a, joined=7), node(b, joined=7)
            assert a == b or liveness.leads(*twins) != liveness.leads(*reversed(twins))
    assert liveness.leads(node(1), node(0))  # the later to join


@given(st.binary(min_size=1, max_size=32), st.binary(min_size=1, max_size=32))
def test_first_attempts_of_a_pair_never_cross(mine: bytes, theirs: bytes) -> None:
    times: dict[bool, list[float]] = {}
    for leader, seed in ((True, mine), (False, theirs)):
        state, times[leader] = liveness.first(leader, now=0.0), []
        for _ in range(30):
            times[leader].append(state.next_at)
            state = liveness.tried(state, leader, seed)
    assert times[True][:3] == list(limits.LEADER_ATTEMPTS_S)
    assert times[False][0] == limits.FOLLOWER_OFFSET_S
    assert all(abs(a - b) > 1.0 for a in times[True][:3] for b in times[False])
    for attempts in times.values():
        gaps = [later - sooner for sooner, later in pairwise(attempts)]
        patient = limits.PATIENT_AFTER_ATTEMPTS - 1
        assert all(4.99 <= gap <= 6.01 for gap in gaps[3:patient])
        assert all(29.99 <= gap <= 31.01 for gap in gaps[patient:])


def test_each_attempt_takes_the_next_endpoint_and_success_forgets() -> None:
    states, tried, now = {}, [], 50.0
    for _ in range(300):
        states, due = liveness.step(states, {key(1): (True, SPOTS), key(2): (True, ())}, frozenset(), now=now)
        tried += due.values()
        now += 0.1
    assert tried[:4] == [*SPOTS, SPOTS[0]]
    assert 5 <= len(tried) <= 9
    assert set(states) == {key(1)}
    assert liveness.step(states, {key(1): (True, SPOTS)}, frozenset({key(1)}), now=now) == ({}, {})


@pytest.mark.parametrize("leads", [True, False])
def test_rotated_peer_is_tried_again_where_it_was_and_then_as_any_other(leads: bool) -> None:
    peers, was = {key(1): (leads, SPOTS)}, Endpoint.parse("198.51.100.9:51820")
    states = {key(1): liveness.heir(was, now=50.0)}
    tried: list[tuple[float, Endpoint]] = []
    for now in (50.0, 50.9, 51.0, 51.1, 54.0, 55.9, 57.1):
        states, due = liveness.step(states, peers, frozenset(), now=now)
        tried += [(now, endpoint) for endpoint in due.values()]
    assert tried[0] == (51.0, was)
    assert [now for now, _ in tried] == [51.0, 57.1]
    assert tried[1][1] in SPOTS


def test_near_endpoints_are_tried_first_and_only_once() -> None:
    said = (Origin.COORDINATOR, Origin.LOCAL, Origin.CONFIGURED, Origin.PEER)
    candidates = [Candidate(*pair) for pair in zip((*SPOTS, SPOTS[1]), said, strict=True)]
    assert liveness.order(candidates, []) == (SPOTS[2], SPOTS[1], SPOTS[0])
    assert liveness.order(candidates, [ip_network("192.0.2.1/32")])[0] == SPOTS[0]


# ---- the journal: an oracle that cannot be wrong ---------------------------------------------------------------------

CHANGES = st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from([None, b"1", b"2", b"3"])), max_size=250)


@given(CHANGES, st.data())
def test_follower_at_any_revision_ends_with_the_same_map(
    changes: list[tuple[str, bytes | None]], data: st.DataObject
) -> None:
    journal, history = Journal(), [{}]
    for revision, (name, chunk) in enumerate(changes, start=1):
        journal.record(revision, name, chunk)
        history.append({**history[-1], name: chunk} if chunk else {n: c for n, c in history[-1].items() if n != name})
    truth = history[-1]
    start = data.draw(st.integers(0, len(changes)))
    delta = list(journal.since(start))
    follower = dict(history[start])
    for name, chunk in delta:
        if chunk is None:
            follower.pop(name, None)
        else:
            follower[name] = chunk
    assert follower == truth == dict(journal.snapshot())
    assert len({name for name, _ in delta}) == len(delta)  # conflated
    assert len(journal) == len(truth)
    assert int.from_bytes(journal.hash, "big") == sum(map(chunk_hash, truth.values())) % (1 << 256)


def test_cursor_below_a_swept_tombstone_needs_a_snapshot() -> None:
    journal = Journal()
    journal.record(1, "a", b"1")
    journal.record(2, "b", b"1")
    assert not journal.record(3, "b", b"1")
    journal.record(4, "a", None)
    journal.forget("b")  # alive: stays
    assert (journal.can_resume(2), len(journal)) == (True, 1)
    journal.forget("a")
    assert [journal.can_resume(r) for r in (3, 4, 5)] == [False, True, False]
    assert list(journal.since(0)) == [("b", b"1")]


# ---- keys and interfaces ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [PrivateKey, PresharedKey])
def test_secret_key_shows_itself_to_wireguard_alone(secret: type[PrivateKey]) -> None:
    held = secret(bytes(range(32)))
    shown = f"{held} {held!r} {[held]} {Interface('m', PrivateKey(bytes(range(32))), 1, 1)}"
    assert "hidden" in shown
    assert held.reveal() not in shown
    assert "\\x01" not in shown
    assert secret.parse(held.reveal()) == held != secret(bytes(32))
    assert PrivateKey(bytes(32)) != PresharedKey(bytes(32))


@pytest.mark.parametrize("text", ["", "AAAA", "x" * 44, "A" * 43, "A" * 42 + "==", "=" * 44])
def test_malformed_key_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        PublicKey.parse(text)


SPANS = st.tuples(st.integers(0, 63), st.integers(26, 32))
V4 = SPANS.map(lambda span: ip_network((0x0A000000 + span[0], span[1]), strict=False))
V6 = SPANS.map(lambda span: IPv6Network((0x0A000000 + span[0], span[1] + 96), strict=False))  # the same numbers
CLAIMS = st.lists(st.lists(V4 | V6, max_size=3), max_size=5)


@given(CLAIMS)
def test_overlap_agrees_with_comparing_every_pair(claims: list[list[IPv4Network]]) -> None:
    peers = [Peer(key(n), tuple(ips)) for n, ips in enumerate(claims)]
    expected = any(
        a.version == b.version and a.overlaps(b)
        for p in peers for q in peers if p is not q for a in p.allowed_ips for b in q.allowed_ips
    )  # fmt: skip
    clash = overlap(peers)
    assert (clash is not None) == expected
    if expected:
        with pytest.raises(ProtocolError, match="two peers claim"):
            Interface("m", None, 1, 1420, peers={p.public_key: p for p in peers})


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 200)), unique=True), st.randoms(use_true_random=False))
def test_digest_knows_no_order_and_sees_every_change(pairs: list[tuple[int, int]], shuffle: random.Random) -> None:
    peers = [Peer(key(k), (network(f"10.0.0.{ip}/32"), network("fd00::1/128"))) for k, ip in pairs]
    whole = digest(peers)
    mixed = [Peer(p.public_key, p.allowed_ips[::-1], SPOTS[0], 25, PresharedKey(bytes(32))) for p in peers]
    shuffle.shuffle(mixed)
    assert digest(mixed) == whole  # endpoint, keepalive and pre-shared key are nobody else's business
    if peers:
        less = int.from_bytes(digest(peers[1:]), "big") + int.from_bytes(digest(peers[:1]), "big")
        assert (less % (1 << 256)).to_bytes(32, "big") == whole != digest(peers[1:])
        assert digest([Peer(peers[0].public_key, ()), *peers[1:]]) != whole
