"""Chapter 1: fundamentals of linear algebra for deep learning.

| section | task |
|---|---|
| Data Structures and Operations: Matrix Operations | not covered yet |
| Data Structures and Operations: Vector Operations | not covered yet |
| Data Structures and Operations: Matrix-Vector Multiplication | not covered yet |
| The Fundamental Spaces: The Column Space | not covered yet |
| The Fundamental Spaces: The Null Space | not covered yet |
| Eigenvectors and Eigenvalues | `eigen` |
"""

HEADLINE = "eigen"
