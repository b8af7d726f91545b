"""Imports without what they bring along and a node never calls, because an agent stays under 65 MB (OPS-1).

A stand-in is there only while the library that asks for it is imported; whoever needs the real one later gets it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Final

_STAND_INS: Final[Mapping[str, tuple[str, ...]]] = {
    "google.protobuf.internal.python_message": ("_AttachFieldHelpers",),  # messages in Python, where there is no upb
    "unittest.mock": ("Mock",),  # pyroute2's test doubles
    "unittest": ("mock",),
    "multiprocessing": ("Pipe", "Queue", "Process"),
    "ctypes.util": ("find_library",),  # for namespaces, which an agent is in but never enters
    "shutil": ("which",),  # for ping and its like
    "pyroute2.netlink.rtnl.probe_msg": ("probe_msg", "proxy_newprobe"),  # pings and TLS by netlink
    "pyroute2.netlink.rtnl.tcmsg": ("plugins", "tcmsg"),  # traffic control, thirty modules
}


@contextmanager
def imports() -> Iterator[None]:
    """Import asyncio, protobuf and parts of pyroute2 in here: 7 MB less.

    asyncio goes without `ssl`, as it does on a Python that has none: the running agent's TLS is gRPC's. pyroute2 goes
    without its `__init__`, which imports all of it.
    """
    if "pyroute2" not in sys.modules and (spec := importlib.util.find_spec("pyroute2")):
        sys.modules["pyroute2"] = importlib.util.module_from_spec(spec)
    borrowed = [name for name in _STAND_INS if name not in sys.modules]
    for name in borrowed:
        sys.modules[name] = ModuleType(name)
        for part in _STAND_INS[name]:
            setattr(sys.modules[name], part, sys.modules.get(f"{name}.{part}", object))
    if hides_ssl := not {"asyncio", "ssl"} & sys.modules.keys():
        sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in borrowed:
            del sys.modules[name]
        if hides_ssl:
            del sys.modules["ssl"]
