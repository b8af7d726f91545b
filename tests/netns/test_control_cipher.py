"""A real node asks its real coordinator which ciphers it takes, and says so (MESH-ENC-003, ENC-3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.mesh import READY_S, Lab, until

pytestmark = pytest.mark.root


def test_node_proves_the_cipher_of_its_coordinator(record_property: Callable[[str, object], None]) -> None:
    with Lab() as lab:
        node = lab.member("a")

        def told() -> str:
            rows = [row for row in node.status().get("rows", []) if row["code"] == "MESH-ENC-003"]
            return next((row["evidence"] for row in rows if row["verdict"] == "ok"), "")

        evidence = until(told, READY_S, "the cipher is proven")
        assert "names 0x1302; refused: AES-128-GCM, ChaCha20-Poly1305, TLS 1.2" in evidence
        record_property("figure", evidence)
