import functools
import gc
import hashlib
import subprocess
import sys
import weakref

import pytest
import torch

from kernels import dispatch, dnc, lstm
from kernels.dnc import cases
from kernels.lstm import cases as lstm_cases
from suite import bench


def on_a_gpu(monkeypatch, proven):
    """What is on the processor is taken for on a GPU where kernels are compiled."""
    monkeypatch.setattr(dispatch, "PROVEN", {"dnc": proven} if proven else {})
    monkeypatch.setattr(dispatch, "_machine", lambda tensors: [])
    monkeypatch.setattr(dispatch, "_capability", lambda tensors: "9.0")
    monkeypatch.setattr(dispatch, "INTERPRETED", False)


def _usage(**kw):
    return torch.rand(2, 5, **kw)


def test_an_unknown_impl_names_those_that_exist():
    with pytest.raises(ValueError, match=r"unknown impl 'tritn'\. Allowed: auto, reference"):
        dnc.allocation(_usage(), impl="tritn")
    with pytest.raises(ValueError, match="unknown impl"), dispatch.use_impl("fast"):
        pass


def test_auto_on_a_processor_is_torch_and_says_why():
    choice = dispatch.explain("dnc.allocation", _usage())
    assert choice.impl == "torch"
    assert "interpreted" in choice.reason
    assert str(choice).startswith("dnc.allocation: torch (")


def test_what_is_asked_for_by_name_is_what_runs():
    for impl in dispatch.IMPLS:
        assert dispatch.explain("dnc.allocation", _usage(), impl=impl).impl == impl


def test_an_unknown_op_names_those_that_exist():
    with pytest.raises(ValueError, match=r"unknown op 'dnc\.sort'.*dnc\.allocation"):
        dispatch.explain("dnc.sort", _usage())
    with pytest.raises(ValueError, match="unknown op"):
        dispatch.explain("nothing.at_all", _usage())


def test_the_default_can_be_set_for_a_block():
    with dispatch.use_impl("reference"):
        assert dispatch.explain("dnc.allocation", _usage()).impl == "reference"
        assert dispatch.explain("dnc.allocation", _usage(), impl="torch").impl == "torch"
    assert dispatch.explain("dnc.allocation", _usage()).impl == "torch"


def test_compile_runs_the_reference_compiled(monkeypatch):
    seen = []
    monkeypatch.setattr(dispatch, "_compiled", lambda op: seen.append(op.name) or op.reference)
    dispatch.reset_counts()
    got = dnc.allocation(_usage(), impl="compile")
    assert got.shape == (2, 5)
    assert seen == ["dnc.allocation"]
    assert dispatch.counts() == {"dnc.allocation": {"compile": 1}}


@pytest.fixture
def compilations(monkeypatch):
    """What was compiled of references, as weak references to what ran instead."""
    found = []

    def backend(graph, inputs):
        found.append(weakref.ref(graph))
        return graph

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    torch.compiler.reset()
    dispatch._compiled.cache_clear()
    yield found
    dispatch._compiled.cache_clear()


def test_each_length_of_a_sequence_is_compiled_once(compilations):
    """PyTorch refuses to compile one function for more than eight."""
    x, *rest = lstm_cases.arguments("lstm", lstm_cases.Case("ten steps", 10, 2, 1, 2))
    for steps in (*range(1, 11), *range(1, 11)):
        got, _ = lstm.lstm(x[:steps], *rest, impl="compile")
        want, _ = lstm.lstm(x[:steps], *rest, impl="reference")
        torch.testing.assert_close(got, want)
    assert len(compilations) == 10


def test_what_was_compiled_longest_ago_is_forgotten(compilations, monkeypatch):
    monkeypatch.setattr(dispatch, "MOST_COMPILED", 2)
    for slots in (3, 4, 3, 5, 3):
        dnc.allocation(torch.rand(2, slots), impl="compile")
    assert len(compilations) == 3
    gc.collect()
    assert [graph() is None for graph in compilations] == [False, True, False]
    dnc.allocation(torch.rand(2, 4), impl="compile")
    assert len(compilations) == 4


def test_compiled_code_is_for_one_type_and_one_set_of_options(compilations):
    args = cases.arguments("link", cases.GRADCHECK)
    for dtype in (torch.float32, torch.float64):
        for book in (False, True):
            given = [t.to(dtype) for t in args]
            got = dnc.link(*given, book=book, impl="compile")
            assert all(map(torch.equal, got, dnc.link(*given, book=book, impl="reference")))
    assert len(compilations) == 4


@pytest.mark.parametrize(
    ("reason", "setting"),
    [
        ("Triton is not installed", {"TRITON_INSTALLED": False}),
        ("tensors are on cpu, not on a CUDA device", {"INTERPRETED": False}),
    ],
)
def test_triton_that_cannot_run_is_an_error_with_the_reason(monkeypatch, reason, setting):
    for name, value in setting.items():
        monkeypatch.setattr(dispatch, name, value)
    with pytest.raises(dispatch.Unavailable, match=reason):
        dnc.allocation(_usage(), impl="triton")
    assert reason in dispatch.explain("dnc.allocation", _usage()).reason


OURS = {"on": "a GPU", "capability": "9.0"}


@pytest.mark.parametrize(
    ("proven", "impl", "reason"),
    [
        ({}, "torch", "have not been proven on a GPU yet; impl 'triton' runs them"),
        (OURS, "triton", "nothing speaks against it"),
        (
            OURS | {"capability": "8.9"},
            "torch",
            "of compute capability 8.9, and this one is of 9.0",
        ),
        (OURS | {"except": {"allocation": "it is slow"}}, "torch", "it is slow; impl 'triton'"),
        (OURS | {"except": {"float32": "they are slow"}}, "torch", "they are slow"),
        (OURS | {"except": {"allocation float32": "both are slow"}}, "torch", "both are slow"),
        (OURS | {"except": {"usage": "slow", "bfloat16": "slow too"}}, "triton", "a GPU"),
    ],
)
def test_auto_takes_triton_where_it_is_proven_and_no_slower(monkeypatch, proven, impl, reason):
    on_a_gpu(monkeypatch, proven)
    choice = dispatch.explain("dnc.allocation", _usage())
    assert choice.impl == impl
    assert reason in choice.reason


@pytest.mark.skipif(not dispatch.INTERPRETED, reason="kernels run on a processor by interpretation")
@pytest.mark.parametrize("proven", [{}, OURS, OURS | {"except": {"float32": "they are slow"}}])
def test_auto_chooses_within_a_compiled_region_too(monkeypatch, proven):
    on_a_gpu(monkeypatch, proven)
    torch.compiler.reset()
    compiled = torch.compile(dnc.allocation, fullgraph=True, backend="eager")
    usage = _usage()
    torch.testing.assert_close(compiled(usage), dnc.allocation(usage, impl="reference"))


@pytest.mark.parametrize("folder", sorted(dispatch.PROVEN))
def test_what_is_said_to_be_proven_is_the_code_that_was(folder):
    entry = dispatch.PROVEN[folder]
    functions = {op.partition(".")[2] for op in bench.ops() if op.startswith(f"{folder}.")}
    assert functions, "no folder of kernels"
    files = [bench.KERNELS / name / "triton.py" for name in bench._folders(folder)]
    code = b"".join(p.read_bytes() for p in sorted([*files, bench.KERNELS / "language.py"]))
    digest = hashlib.sha256(code).hexdigest()
    assert entry["sources"] == digest[:16], (
        f"the kernels of {folder} are not those that passed tests/gpu on {entry['on']}: run "
        f"`suite gpu --only tests` and write down {digest[:16]}, or take the entry out"
    )
    both = {f"{function} {dtype}" for function in functions for dtype in bench.DTYPES}
    assert set(entry.get("except", {})) <= functions | set(bench.DTYPES) | both


def test_what_an_op_refuses_is_named():
    memory = torch.zeros(1, 2, dnc.MOST_WORD + 1)
    keys, strengths = torch.zeros(1, 1, dnc.MOST_WORD + 1), torch.ones(1, 1)
    with pytest.raises(dispatch.Unavailable, match="rows of 1025 exceed 1024"):
        dnc.content(memory, keys, strengths, impl="triton")


def test_a_dtype_without_a_kernel_is_refused():
    assert "float8" in dispatch._machine([_usage().to(torch.float8_e4m3fn)])[0]


def test_a_step_counts_once():
    args = cases.arguments("step", cases.GRADCHECK)
    dispatch.reset_counts()
    dnc.step(*args, impl="triton")
    assert dispatch.counts() == {"dnc.step": {"triton": 1}}


def test_ops_import_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "import kernels.attention, kernels.conv2d, kernels.dnc, kernels.linear, kernels.lstm\n"
        "import kernels.ntm\n"
        "print(kernels.dnc.allocation(torch.rand(1, 3)).shape)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "[1, 3]" in out.stdout


BAD = [
    ({"usage": torch.rand(5)}, ValueError, r"usage has shape \(B, N\), got \(5,\)"),
    ({"usage": torch.ones(2, 5, dtype=torch.int64)}, TypeError, "usage is of floating point"),
    ({"usage": [[0.5]]}, TypeError, "usage is a tensor, got list"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD)
def test_bad_arguments_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        dnc.allocation(**arguments)


def test_arguments_have_to_agree():
    memory, keys, strengths = cases.arguments("content", cases.GRADCHECK)
    with pytest.raises(ValueError, match=r"keys has shape \(B=2, H, W=3\), got \(2, 2, 2\)"):
        dnc.content(memory, keys[..., :2], strengths)
    with pytest.raises(TypeError, match=r"strengths is torch\.float32 as memory is, got"):
        dnc.content(memory, keys, strengths.double())
    with pytest.raises(ValueError, match="strengths is on cpu as memory is, got meta"):
        dnc.content(memory, keys, strengths.to("meta"))


@pytest.mark.parametrize("size", ["slots", "word", "read_heads"])
def test_a_memory_has_slots_words_and_heads(size):
    sizes = {"batch": 1, "slots": 2, "word": 3, "read_heads": 1} | {size: 0}
    with pytest.raises(ValueError, match=f"{size} is at least 1, got 0"):
        dnc.blank(torch.zeros(1), **sizes)
