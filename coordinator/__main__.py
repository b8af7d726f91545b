"""`python -m coordinator` is `mesh-coordinator`."""

from coordinator.cli.main import main

main()
