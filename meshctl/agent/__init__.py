"""The shell on a node: waits, and lets the core decide.

One round: `reconcile` observes the device, asks `topology.desired` how it should look and `plan.diff` what must change,
prints and applies each step. `follow` brings rosters, `prober` brings readings, `health` answers; `daemon` starts them.
"""
