"""What each implementation of an op costs, behind a proof that it computes the op.

``workloads`` lists what the cases of all ops ask for, ``measure`` checks and times one of them with
every provider in turn. Nothing here writes anything; ``suite bench kernels`` makes records of it.
"""
