"""Tasks that exist to test the engine."""
