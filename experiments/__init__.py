"""The verbs: one thin main() each, all on the same run directory and runner."""
