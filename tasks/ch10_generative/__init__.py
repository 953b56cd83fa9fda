"""Chapter 10: generative models.

| section | task |
|---|---|
| Generative Adversarial Networks | not covered yet |
| Variational Autoencoders; Implementing a VAE | `vae` |
| Score-Based Generative Models | not covered yet |
| Denoising Autoencoders and Score Matching | not covered yet |
| Summary | prose, nothing to run |
"""

HEADLINE = "vae"
