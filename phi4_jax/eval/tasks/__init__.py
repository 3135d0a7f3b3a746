"""The tasks: one file each, about a hundred lines."""
