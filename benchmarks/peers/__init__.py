"""Other people's programs at the same work; they run in .venv-bench."""
