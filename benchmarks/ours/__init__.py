"""Our side of the measurements: the real path, driven through `contender`."""
