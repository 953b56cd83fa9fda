"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import torch
from torch import nn

import kernels


def test_what_the_readme_shows_runs():
    text = (Path(kernels.__file__).parent / "README.md").read_text()
    section = text.split("## In a model of yours")[1].split("\n## ")[0]
    code = "\n".join(re.findall(r"^    (.*)$", section, re.MULTILINE))
    names = {"torch": torch, "nn": nn}
    exec(code, names)
    assert names["y"].shape == (2, 4, 8, 8)
    assert (names["y"] >= 0).all()
    assert names["hidden"].shape == (2, 5, 32)
    assert (names["hidden"] >= 0).all()
    assert names["out"].shape == (2, 5, 32)
    assert not names["out"][1, 3:].any()
    assert names["mixed"].shape == (2, 4, 7, 16)
    torch.testing.assert_close(names["weights"].sum(-1), torch.ones(2, 1))
