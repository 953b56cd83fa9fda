"""Everything that has to be seen on a GPU, in stages that fit a short lease and can be continued.

The state is what the store holds: each stage leaves out what has a record of the same code, device
and versions, and stops when its share of the time is spent; what it leaves, later stages have. It
needs PyTorch, Triton, pydantic, fsspec, NumPy and pytest, and neither Ray nor a command-line
library: ``python -m suite.gpu`` runs without Typer and Rich.

``command`` names the stages, ``stage`` runs them; ``proofs``, ``runs``, ``tuner`` and ``tables``
are what they do, and ``checks`` records what passed.
"""
