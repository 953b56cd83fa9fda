"""Chapter 92, kernels that count their own work."""
