"""Chapter 7: convolutional neural networks.

| section | task |
|---|---|
| Neurons in Human Vision; Summary | prose, nothing to run |
| The Shortcomings of Feature Selection | `filters`: detectors that nobody tells where to look |
| Vanilla Deep Neural Networks Don't Scale | `filters` counts the parameters |
| Filters and Feature Maps | `filters` |
| Full Description of the Convolutional Layer | `conv_layer` |
| Max Pooling | `maxpool` |
| Full Architectural Description of Convolution Networks | `mnist_conv`, as `recipe` |
| Closing the Loop on MNIST with Convolutional Networks | `mnist_conv` |
| Image Preprocessing Pipelines Enable More Robust Models | `preprocess` |
| Accelerating Training with Batch Normalization | `batchnorm` |
| Group Normalization for Memory Constrained Learning Tasks | `groupnorm` |
| Building a Convolutional Network for CIFAR-10 | `cifar10` |
| Visualizing Learning in Convolutional Networks | `visualize` |
| Residual Learning and Skip Connections for Very Deep Networks | `resnet` |
| Building a Residual Network with Superhuman Vision | `resnet` |
| Leveraging Convolutional Filters to Replicate Artistic Styles | `style_transfer` |
| Learning Convolutional Filters for Other Problem Domains | `other_domains` |
"""

HEADLINE = "mnist_conv"
