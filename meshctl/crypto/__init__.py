"""Pure computation on `cryptography`: sealing, identities, certificates, probe tags. No I/O, no clock."""
