import sys
from pathlib import Path

# The proofs are those of the interpreter, on another device.
sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))
