"""Errors that a person can cause, with enough in them to be mended.

A `ConfigError` names a configuration path, a `DataError` a file and a row. Both
are `ValueError`s, so a caller of the library needs no import to catch them.
"""


class ConfigError(ValueError):
  """A configuration value is missing, mistyped, unknown or contradictory."""


class DataError(ValueError):
  """A record on disk is unusable; the message names file, row and field."""


class CheckpointError(ValueError):
  """A checkpoint is missing, incomplete or does not fit what it is loaded into."""


class OutOfData(DataError):
  """The training data ended before the run did."""
