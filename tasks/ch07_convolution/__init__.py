"""Chapter 7: convolutional neural networks.

| section | task |
|---|---|
| Neurons in Human Vision; Summary | prose, nothing to run |
| The Shortcomings of Feature Selection | not covered yet |
| Vanilla Deep Neural Networks Don't Scale | not covered yet |
| Filters and Feature Maps | not covered yet |
| Full Description of the Convolutional Layer; Max Pooling | not covered yet |
| Full Architectural Description of Convolution Networks | not covered yet |
| Closing the Loop on MNIST with Convolutional Networks | not covered yet |
| Image Preprocessing Pipelines Enable More Robust Models | not covered yet |
| Accelerating Training with Batch Normalization | `batchnorm` |
| Group Normalization for Memory Constrained Learning Tasks | not covered yet |
| Building a Convolutional Network for CIFAR-10 | not covered yet; `batchnorm` trains the net |
| Visualizing Learning in Convolutional Networks | not covered yet |
| Residual Learning and Skip Connections for Very Deep Networks | not covered yet |
| Building a Residual Network with Superhuman Vision | not covered yet |
| Leveraging Convolutional Filters to Replicate Artistic Styles | not covered yet |
| Learning Convolutional Filters for Other Problem Domains | not covered yet |
"""

HEADLINE = "batchnorm"
