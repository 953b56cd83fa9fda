"""Custom GPU operators: tensors in, tensors out."""
