"""Chapter 1: fundamentals of linear algebra for deep learning.

| section | task |
|---|---|
| Data Structures and Operations: Matrix Operations | `matops` |
| Data Structures and Operations: Vector Operations | `matops` |
| Data Structures and Operations: Matrix-Vector Multiplication | `matops` |
| The Fundamental Spaces: The Column Space | `column_space` |
| The Fundamental Spaces: The Null Space | `null_space` |
| Eigenvectors and Eigenvalues | `eigen` |
| Summary | prose, nothing to run |
"""

HEADLINE = "eigen"
