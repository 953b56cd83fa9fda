import dataclasses
import functools

import pytest
import torch
from triton.runtime import interpreter


def _remap_once_a_launch():
    """Have Triton's interpreter remap its language at a launch, not at each device function too.

    Between two calls of one launch nothing is mapped back, so all but the first remap what is
    remapped already, in half the time of these tests. Whoever collects this folder with others, as
    all tests together do, has tasks interpreted faster too.
    """
    launch, remap, remapped = interpreter.GridExecutor.__call__, interpreter._patch_lang, set()

    def launched(*args, **kw):
        remapped.clear()
        return launch(*args, **kw)

    def remap_once(function):
        module = id(function.__globals__)
        if module in remapped:
            return None
        remapped.add(module)
        return remap(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launched, remap_once


def _as_compiled():
    """Leave out what a compiled kernel leaves out too: whether an integer sum fits its type.

    It takes the interpreter a third of its time, and without ``debug``, which the tests of the
    bounds set, it throws the answer away. Nor need it make a table of dtypes at each operation.
    """
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    look_up = interpreter._get_np_dtype
    of_number = functools.cache(look_up)
    # A pointer's type has no hash.
    interpreter._get_np_dtype = lambda t: look_up(t) if t.scalar.is_ptr() else of_number(t.scalar)


_remap_once_a_launch()
_as_compiled()

# PyTorch notes at its first use of a default device which functions obey one: not the poisoned ones
# of below, or the real ones would obey none for the rest of the process.
with torch.device("cpu"):
    torch.empty(0)


@pytest.fixture(autouse=True)
def _new_memory_is_poisoned(monkeypatch):
    """Fill new memory with NaN, so that a kernel cannot leave an element out."""

    def poisoned(make):
        def made(*args, **kw):
            tensor = make(*args, **kw)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return made

    for where, kind in ((torch, ""), (torch.Tensor, "new_")):
        for name in (f"{kind}empty", f"{kind}empty_strided"):
            monkeypatch.setattr(where, name, poisoned(getattr(where, name)))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
