"""The `mesh-coordinator` command: verbs to calls, answers to text. Decides nothing."""
