"""Chapter 3: the neural network.

| section | task |
|---|---|
| Building Intelligent Machines | prose, nothing to run |
| The Limits of Traditional Computer Programs | prose, nothing to run |
| The Mechanics of Machine Learning | prose, nothing to run |
| The Neuron | `perceptron` |
| Expressing Linear Perceptrons as Neurons | `perceptron` |
| Feed-Forward Neural Networks | `linear_limits` trains them with and without nonlinearities |
| Linear Neurons and Their Limitations | `linear_limits` |
| Sigmoid, Tanh, and ReLU Neurons | `activations` |
| Softmax Output Layers | `softmax` |
| Summary | prose, nothing to run |
"""

HEADLINE = "activations"
