"""Chapter 90, toys."""
