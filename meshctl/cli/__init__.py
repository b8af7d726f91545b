"""The `meshctl` command: verbs to calls, answers to text. Decides nothing."""
