"""Import torchvision where its C++ extension does not fit the installed torch.

PyPI's torchvision is built against the CUDA build of torch. Beside a CPU-only torch of the same
version its extension cannot be loaded, and the import ends in ``operator torchvision::nms does
not exist``, for ``torchvision/_meta_registrations.py`` attaches shape functions to operators that
the extension would have defined. Data sets, transforms and models need none of those operators.
"""

import functools
import importlib
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.library import Library

# The operators that _meta_registrations.py names without asking whether the extension is there.
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def import_torchvision() -> ModuleType:
    """Import torchvision; define the operators' schemas if their absence is all that is wrong.

    Data sets, transforms and models then work. Calling the operators themselves raises
    torchvision's own error about its missing extension.

    Raises:
        Exception: whatever else the import raises, unchanged.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if not _extension_is_absent(error):
            raise
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _define_operators()
    return importlib.import_module("torchvision")


def _extension_is_absent(error: RuntimeError) -> bool:
    named = re.fullmatch(r"operator torchvision::\w+ does not exist", str(error))
    extension = sys.modules.get("torchvision.extension")
    return bool(named) and extension is not None and not extension._has_ops()


@functools.cache
def _define_operators() -> "Library":
    """Define the schemas, once. The definitions live as long as the library, so it is cached."""
    from torch.library import Library

    library = Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    return library
