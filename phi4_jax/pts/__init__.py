"""Pivotal token search: which single tokens decide whether a response succeeds."""
