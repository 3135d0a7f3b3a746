"""Documents to token rows to batches; nothing is imported from here."""
