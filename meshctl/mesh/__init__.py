"""The core: everything that decides.

Pure functions and frozen values on the standard library alone: no clock, no I/O, no randomness, no logging, no async.
Time is an argument (`now`, keyword only, seconds). The import contracts in pyproject.toml hold this folder to it.
Reading order: keys, model, interface, topology, plan.
"""
