"""Pages about runs: HTML and SVG made here, without a script or an outside request."""
