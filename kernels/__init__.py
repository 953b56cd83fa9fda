"""GPU operators with proofs: tensors in, tensors out.

Each op is a folder, such as ``kernels.dnc``. ``impl`` chooses what computes it:
``reference``, ``torch``, ``compile``, ``triton`` or ``auto``; see ``kernels.dispatch``. Importing
this package, or an op, needs no Triton.
"""
