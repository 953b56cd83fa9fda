"""Chapter 4: training feed-forward neural networks.

| section | task |
|---|---|
| The Fast-Food Problem | `fast_food` |
| Gradient Descent | `fast_food` |
| The Delta Rule and Learning Rates | `fast_food` |
| Gradient Descent with Sigmoidal Neurons | `sigmoid_gd` |
| The Backpropagation Algorithm | `backprop` |
| Stochastic and Minibatch Gradient Descent | `sgd_minibatch` |
| Test Sets, Validation Sets, and Overfitting | `overfitting` |
| Preventing Overfitting in Deep Neural Networks | `regularization` |
| Summary | prose, nothing to run |
"""

HEADLINE = "regularization"
