"""Measurements: one file per question, on the one contract of `harness`."""
