"""The server: keeps the registry in etcd, admits nodes, and pushes to each the part of the mesh it may see."""
