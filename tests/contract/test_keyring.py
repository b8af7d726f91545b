"""The sealed registry: what an attacker who writes to etcd tries, what one who reads it finds (ENC-1, ENC-2, ENC-6)."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from coordinator import records
from coordinator.etcd import EtcdRegistry
from coordinator.keyring import FileKek, Kek, Keyring, PassphraseKek, SealedRegistry
from coordinator.records import MeshRecord, NodeRecord, Tombstone, Why
from coordinator.registry import (
    ADDRESSES,
    KEYS,
    MESH,
    NAMES,
    NODES,
    ROOT,
    SECRETS,
    TOKENS,
    Changes,
    Committed,
    Conflict,
    Delete,
    Deleted,
    Put,
    Registry,
)
from meshctl.crypto.identity import Identity
from meshctl.errors import EnvironmentFault, ProtocolError, RefusedError, TrustError, UsageError
from meshctl.mesh.admission import Token
from meshctl.mesh.model import Candidate, Endpoint, MeshInfo, Origin
from tests.harness.etcd import RealEtcd
from tests.harness.memory_registry import MemoryRegistry

A, B = NODES + "aaaa", NODES + "bbbb"


@pytest.fixture
def kek(tmp_path: Path) -> FileKek:
    made = FileKek(tmp_path / "kek")
    made.create()
    return made


@pytest.fixture(params=["memory", "etcd"])
async def raw(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Registry]:
    """An empty registry, as an attacker with etcd's own certificate sees it."""
    if request.param == "memory":
        yield MemoryRegistry()
        return
    with RealEtcd(tmp_path / "etcd") as etcd:
        registry = await EtcdRegistry.connect(etcd.address)
        yield registry
        await registry.close()


@pytest.fixture
async def sealed(raw: Registry, kek: FileKek) -> SealedRegistry:
    registry = SealedRegistry(raw, await Keyring.create(raw, kek))
    assert isinstance(await registry.commit(Put(A, b"alpha", 0), Put(B, b"beta", 0)), Committed)
    return registry


async def overwrite(raw: Registry, path: str, value: bytes) -> None:
    (old,) = await raw.read(path)
    assert isinstance(await raw.commit(Put(path, value, old.generation if old else 0)), Committed)


async def stolen(raw: Registry, path: str) -> bytes:
    (record,) = await raw.read(path)
    assert record is not None
    return record.value


async def drain(sealed: SealedRegistry) -> None:
    async for _ in sealed.watch(NODES, 1):
        pass


async def refused(sealed: SealedRegistry, path: str) -> None:
    """Reading, listing and watching `path` all say which record is not what it must be."""
    with pytest.raises(TrustError, match=path):
        await sealed.read(path)
    with pytest.raises(TrustError, match=path):
        await sealed.list(NODES)
    with pytest.raises(TrustError, match=path):
        await asyncio.wait_for(drain(sealed), 10)


async def test_plaintext_above_is_ciphertext_below(raw: Registry, sealed: SealedRegistry) -> None:
    (record,) = await sealed.read(A)
    assert record is not None
    assert (record.value, record.generation) == (b"alpha", 1)
    below = await stolen(raw, A)
    assert below.startswith(b"MCR1")
    assert b"alpha" not in below
    assert "alpha" not in repr(record)


async def test_port_is_kept_by_the_sealed_registry(sealed: SealedRegistry) -> None:
    _, revision = await sealed.list(ROOT)
    assert await sealed.commit(Put(A, b"late", 0)) == Conflict(A)
    assert isinstance(await sealed.commit(Put(A, b"alpha two", 1)), Committed)
    assert isinstance(await sealed.commit(Delete(B, 1)), Committed)
    found, _ = await sealed.list(ROOT)
    assert [(r.path, r.value, r.generation) for r in found] == [(A, b"alpha two", 2)]
    events = []
    async with asyncio.timeout(10):
        async for news in sealed.watch(ROOT, revision + 1):
            assert isinstance(news, Changes)
            events += news.events
            if len(events) == 2:
                break
    assert [e.path if isinstance(e, Deleted) else e.value for e in events] == [b"alpha two", B]
    assert (await sealed.health()).ok


async def test_two_values_swapped(raw: Registry, sealed: SealedRegistry) -> None:
    a, b = await stolen(raw, A), await stolen(raw, B)
    await raw.commit(Delete(A, 1), Delete(B, 1))
    await raw.commit(Put(A, b, 0), Put(B, a, 0))
    with pytest.raises(TrustError, match=B):
        await sealed.read(B)
    await refused(sealed, A)


async def test_old_value_put_again(raw: Registry, sealed: SealedRegistry) -> None:
    old = await stolen(raw, A)
    await sealed.commit(Put(A, b"locked out", 1))
    await overwrite(raw, A, old)
    await refused(sealed, A)


async def test_flipped_bit(raw: Registry, sealed: SealedRegistry) -> None:
    value = bytearray(await stolen(raw, A))
    value[-20] ^= 1
    await raw.commit(Delete(A, 1))
    await raw.commit(Put(A, bytes(value), 0))
    await refused(sealed, A)


async def test_value_never_sealed(raw: Registry, sealed: SealedRegistry) -> None:
    await raw.commit(Put(NODES + "cccc", records.encode({"id": "forged"}), 0))
    await refused(sealed, NODES + "cccc")


async def test_value_of_an_unknown_ring_key(raw: Registry, sealed: SealedRegistry) -> None:
    value = await stolen(raw, A)
    await raw.commit(Delete(A, 1))
    await raw.commit(Put(A, value[:5] + b"\0\0\0\x09" + value[9:], 0))
    await refused(sealed, A)


async def test_registry_opens_again_with_its_kek_and_finds_names_by_the_same_index(
    raw: Registry, sealed: SealedRegistry, kek: FileKek
) -> None:
    again = SealedRegistry(raw, await Keyring.open(raw, kek))
    assert await again.read(A) == await sealed.read(A)
    assert again.index_key("name", "gpu-a1") == sealed.index_key("name", "gpu-a1")
    keys = {sealed.index_key(k, t) for k, t in [("name", "a"), ("name", "b"), ("address", "a"), ("nam", "ea")]}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)


async def test_wrong_kek_is_told_from_the_right_one_by_id(
    raw: Registry, sealed: SealedRegistry, tmp_path: Path
) -> None:
    other = FileKek(tmp_path / "other")
    other.create()
    with pytest.raises(TrustError, match=r"want [0-9a-f]{16}, have [0-9a-f]{16}"):
        await Keyring.open(raw, other)
    with pytest.raises(TrustError, match="key file, not with a passphrase"):
        await Keyring.open(raw, PassphraseKek("x"))


async def test_wrapped_key_altered_in_etcd(raw: Registry, sealed: SealedRegistry, kek: FileKek) -> None:
    path = KEYS + "00000001"
    good = await stolen(raw, path)
    forged = records.decode(good, dict)
    forged["wrapped"] = base64.b64encode(bytes(72)).decode()
    await overwrite(raw, path, records.encode(forged))
    with pytest.raises(TrustError, match="does not open"):
        await Keyring.open(raw, kek)
    await overwrite(raw, path, b"{")
    with pytest.raises(ProtocolError):
        await Keyring.open(raw, kek)
    await overwrite(raw, path, good)
    await overwrite(raw, KEYS + "zz", good)
    with pytest.raises(TrustError, match=r"key/zz.*does not open"):
        await Keyring.open(raw, kek)


async def test_registry_is_made_once_and_not_out_of_nothing(kek: FileKek) -> None:
    raw = MemoryRegistry()
    with pytest.raises(RefusedError, match="holds no mesh"):
        await Keyring.open(raw, kek)
    done = await asyncio.gather(*(Keyring.create(raw, kek) for _ in range(3)), return_exceptions=True)
    assert sorted(type(one).__name__ for one in done) == ["Keyring", "RefusedError", "RefusedError"]


async def test_passphrase_opens_with_the_parameters_kept_beside_the_keys() -> None:
    raw = MemoryRegistry()
    made = SealedRegistry(raw, await Keyring.create(raw, PassphraseKek("correct horse")))
    await made.commit(Put(A, b"alpha", 0))
    again = SealedRegistry(raw, await Keyring.open(raw, PassphraseKek("correct horse")))
    assert await again.read(A) == await made.read(A)
    with pytest.raises(TrustError, match="not the one this registry was made with"):
        await Keyring.open(raw, PassphraseKek("wrong horse"))
    with pytest.raises(TrustError, match="passphrase, not with a key file"):
        await Keyring.open(raw, FileKek(Path("unread")))


async def test_secrets_do_not_show_themselves(kek: FileKek) -> None:
    keyring: object = await Keyring.create(MemoryRegistry(), kek)
    shown = repr(keyring) + str(vars(keyring).keys()) + repr(PassphraseKek("correct horse"))
    assert "correct" not in shown
    assert repr(keyring) == "Keyring(current=1, 1 hidden)"


def fails(kek: Kek) -> str:
    with pytest.raises(EnvironmentFault) as caught:
        kek.key(None)
    assert caught.value.hint
    return caught.value.what


def test_key_file_missing_open_to_others_or_broken(tmp_path: Path) -> None:
    path = tmp_path / "kek"
    kek = FileKek(path)
    assert "cannot read" in fails(kek)
    kek.create()
    assert len(kek.key(None)) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UsageError, match="exists"):
        kek.create()
    path.chmod(0o640)
    assert "open to others" in fails(kek)
    path.chmod(0o600)
    for content in (b"", b"short", b"*" * 44, base64.b64encode(bytes(33)), base64.b64encode(bytes(32)) * 2):
        path.write_bytes(content)
        assert "is not a key file" in fails(kek)


@pytest.mark.skipif(os.geteuid() != 0, reason="absent: root, to give a file away")
def test_key_file_of_somebody_else(tmp_path: Path) -> None:
    kek = FileKek(tmp_path / "kek")
    kek.create()
    os.chown(kek.path, 65534, 65534)
    assert "open to others" in fails(kek)


def forms(secret: bytes) -> set[bytes]:
    """How bytes might lie about in a file: raw, hex, base64 at each of its three alignments, base32."""
    encoded = {secret, secret.hex().encode(), secret.hex().upper().encode(), base64.b32encode(secret).rstrip(b"=")}
    for shift in range(3):
        text = base64.b64encode(bytes(shift) + secret)
        encoded.add(text[4 if shift else 0 : -4])
    return {form for form in encoded if len(form) >= 6}


async def test_files_and_snapshot_of_etcd_hold_nothing_in_clear(tmp_path: Path, kek: FileKek) -> None:
    identity, token_hash, ca_key = Identity.generate(), os.urandom(32), os.urandom(121)
    name, v4, v6 = "gpu-a1-frankfurt", "10.77.201.119", "fd12:3456:789a::c0de"
    underlay = Endpoint.parse("203.0.113.217:51820")
    node = NodeRecord(
        identity.id,
        name,
        IPv4Address(v4),
        IPv6Address(v6),
        identity.state("meshmeshmesh", 1).signed,
        1.5,
        ("tag-of-secrecy",),
        (Candidate(underlay, Origin.CONFIGURED),),
    )
    info = MeshInfo(
        "meshmeshmesh", "production", IPv4Network("10.77.0.0/16"), IPv6Network("fd12:3456:789a::/64"), (), b""
    )
    with RealEtcd(tmp_path / "etcd") as etcd:
        raw = await EtcdRegistry.connect(etcd.address)
        keyring = await Keyring.create(raw, kek)
        sealed = SealedRegistry(raw, keyring)
        stone = Tombstone(
            identity.id, "gone-with-the-wind", IPv4Address("10.77.201.120"), Why.REVOKED, 2.0, "stolen laptop"
        )
        await sealed.commit(
            Put(MESH, records.encode(MeshRecord(info, 1.0)), 0),
            Put(NODES + node.id, records.encode(node), 0),
            Put(ROOT + "gone/" + node.id, records.encode(stone), 0),
            Put(NAMES + sealed.index_key("name", name), node.id.encode(), 0),
            Put(ADDRESSES + sealed.index_key("address", v4), node.id.encode(), 0),
            Put(TOKENS + "tokenid", records.encode(Token("tokenid", token_hash, 1.0, 2.0, 1, note="for-bob")), 0),
            Put(SECRETS + "ca", ca_key, 0),
        )
        await raw.commit(Put(ROOT + "control", b"canary-in-clear", 0))
        (again,) = await sealed.read(NODES + node.id)
        assert again is not None
        assert records.decode(again.value, NodeRecord) == node
        snapshot = tmp_path / "snapshot"
        await asyncio.to_thread(etcd.ctl, "snapshot", "save", str(snapshot))
        await raw.close()
        etcd.kill()
        dump = b"".join(path.read_bytes() for path in (snapshot, *etcd.database.rglob("*")) if path.is_file())
    dump = dump.replace(bytes(4096), b"")  # etcd reserves 64 MB for its log
    assert (NODES + node.id).encode() in dump
    assert any(form in dump for form in forms(b"canary-in-clear"))
    ring_keys = keyring._keys.values()
    said = ("203.0.113.217", "tag-of-secrecy", "production", "gone-with-the-wind", "stolen laptop", "for-bob")
    texts = (name, v4, v6, *said)
    keys = (ca_key, kek.key(None), keyring._index, *ring_keys)
    packed = (IPv6Address(v6).packed, node.statement[:40], token_hash, *keys)
    for secret in (*(text.encode() for text in texts), *packed):
        for form in forms(secret):
            assert form not in dump, secret


def test_record_of_a_later_release_is_read_and_a_broken_one_is_named() -> None:
    stone = Tombstone(Identity.generate().id, "gpu-a1", IPv4Address("10.77.0.9"), Why.LEFT, 2.0)
    raw = records.encode(stone)
    assert records.decode(raw[:-1] + b',"colour":"green"}', Tombstone) == stone
    for broken in (
        b"",
        b"{}",
        b"\xff",
        raw[:-1],
        raw.replace(b"10.77.0.9", b"10.77.0.999"),
        raw.replace(b'"left"', b"7"),
    ):
        with pytest.raises(ProtocolError, match="a stored Tombstone cannot be read"):
            records.decode(broken, Tombstone)
