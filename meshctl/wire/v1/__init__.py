"""Generated from proto/meshctl/wire/v1/mesh.proto; never edited (proto/README.md)."""
