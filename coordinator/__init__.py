"""The server: keeps the registry in etcd, admits nodes, and pushes to each the part of the mesh it may see."""

from coordinator.backend import choose_poller

choose_poller()  # here, because grpc reads it when it is imported
