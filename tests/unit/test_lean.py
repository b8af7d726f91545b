"""What an agent imports without, and that whoever needs the real thing later gets it (OPS-1)."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import sys
from meshctl import lean
with lean.imports():
    from meshctl.agent import daemon
    from pyroute2.iproute.linux import AsyncIPRoute
assert not {"ssl", "unittest.mock", "multiprocessing", "pyroute2.netlink.rtnl.tcmsg"} & sys.modules.keys()
"""
LATER = {
    "TLS of Python": "import ssl; ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)",
    "the rest of the library": "import shutil, unittest.mock, multiprocessing; assert shutil.which('sh')",
    "messages": "from meshctl.wire.v1 import mesh_pb2; assert not mesh_pb2.Hello().SerializeToString()",
    "netlink": "import asyncio\nasync def look():\n    async with AsyncIPRoute() as ipr:\n"
    "        return [link async for link in await ipr.get_links()]\nassert asyncio.run(look())",
}


@pytest.mark.parametrize("what", LATER)
def test_what_is_needed_later_is_there(what: str) -> None:
    done = subprocess.run([sys.executable, "-c", BEGIN + LATER[what]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
