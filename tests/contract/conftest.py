"""Fixtures that several contract suites share."""

from tests.harness.probing import mesh

__all__ = ["mesh"]
