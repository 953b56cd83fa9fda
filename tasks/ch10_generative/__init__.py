"""Chapter 10, generative models.

- Variational Autoencoders; Implementing a VAE: `vae`.
- Generative Adversarial Networks: not covered yet.
- Score-Based Generative Models; Denoising Autoencoders and Score Matching: not covered yet.
"""

HEADLINE = "vae"
