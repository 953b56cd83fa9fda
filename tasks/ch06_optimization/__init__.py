"""Chapter 6: beyond gradient descent.

| section | task |
|---|---|
| The Challenges with Gradient Descent | prose, nothing to run |
| Local Minima in the Error Surfaces of Deep Networks | `identifiability` |
| Model Identifiability | `identifiability` |
| How Pesky Are Spurious Local Minima in Deep Networks? | `linear_interp` |
| Flat Regions in the Error Surface | `flat_regions` |
| When the Gradient Points in the Wrong Direction | `gradient_direction` |
| Momentum-Based Optimization | `momentum_walk`; on a net in `optimizers` |
| A Brief View of Second-Order Methods | `second_order` |
| Learning Rate Adaptation: AdaGrad, RMSProp, Adam | `optimizers` |
| The Philosophy Behind Optimizer Selection | `optimizers` |
| Summary | prose, nothing to run |
"""

HEADLINE = "optimizers"
