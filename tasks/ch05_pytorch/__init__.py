"""Chapter 5: implementing neural networks in PyTorch.

| section | task |
|---|---|
| Introduction to PyTorch; Installing PyTorch | prose, nothing to run |
| PyTorch Tensors; Tensor Init, Attributes and Operations | `tensors_autograd` |
| Gradients in PyTorch | `tensors_autograd` |
| The PyTorch nn Module | `tensors_autograd`; `mnist_mlp` builds its classifier from it |
| PyTorch Datasets and Dataloaders | `dataloader` |
| Building the MNIST Classifier in PyTorch | `mnist_mlp` |
| Summary | prose, nothing to run |
"""

HEADLINE = "mnist_mlp"
