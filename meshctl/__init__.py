"""meshctl: the node agent, the operator's command, and the core both sides share."""

__version__ = "0.1.0"
