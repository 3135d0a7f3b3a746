"""Pages about runs: HTML and SVG made here, and asking for nothing outside."""
