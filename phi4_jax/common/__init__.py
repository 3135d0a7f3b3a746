"""What every room shares: axis letters, meshes, random keys, files, protocols."""
