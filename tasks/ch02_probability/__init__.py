"""Chapter 2: fundamentals of probability.

| section | task |
|---|---|
| Events and Probability; Conditional Probability | `expectation` |
| Random Variables; Expectation; Variance | `expectation` |
| Bayes' Theorem | `bayes` |
| Entropy, Cross Entropy, and KL Divergence | `entropy_kl` |
| Continuous Probability Distributions | `continuous` |
| Summary | prose, nothing to run |
"""

HEADLINE = "entropy_kl"
