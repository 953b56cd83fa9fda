"""Chapter 3: the neural network.

| section | task |
|---|---|
| Building Intelligent Machines | prose, nothing to run |
| The Limits of Traditional Computer Programs | prose, nothing to run |
| The Mechanics of Machine Learning | prose, nothing to run |
| The Neuron; Expressing Linear Perceptrons as Neurons | not covered yet |
| Feed-Forward Neural Networks | `activations` builds nets of 2, 6 and 10 hidden layers |
| Linear Neurons and Their Limitations | not covered yet |
| Sigmoid, Tanh, and ReLU Neurons | `activations` |
| Softmax Output Layers | `softmax` |
| Summary | prose, nothing to run |
"""

HEADLINE = "activations"
