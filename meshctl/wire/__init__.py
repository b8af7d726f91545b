"""The wire: `codec` turns messages into values of the core and back; `v1` is generated."""
