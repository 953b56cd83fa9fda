"""Models that more than one task uses."""
