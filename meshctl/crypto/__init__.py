"""Pure computation on `cryptography`: sealing, identities, certificates, probe tags. No I/O, no clock.

AES-256-GCM covers what is sealed here and the control plane; WireGuard's own data plane is ChaCha20-Poly1305 (ENC-8).
"""
