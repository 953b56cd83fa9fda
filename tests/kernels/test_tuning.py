import importlib
import json

import proof
import pytest
import torch

from kernels import dispatch, tuning
from kernels.bench import tune
from kernels.tuning import tuned

GPU = "NVIDIA H200"
DEFAULT = {"BM": 64, "num_warps": 4}


class OnGpu:
    """Stands for a tensor on a GPU: of it, only type and place are looked at."""

    dtype = torch.bfloat16
    device = torch.device("cuda", 0)


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A folder of parameters for a GPU that need not be here."""
    monkeypatch.setattr(tuning, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: GPU)
    tuning.forget()

    def write(*entries):
        path = tuning.path("op.", tuning.device_file(GPU))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"entries": list(entries)}))
        tuning.forget()
        return path

    yield write
    tuning.forget()


def entry(config, sizes, kernel="op.forward", dtype="bfloat16"):
    return {"kernel": kernel, "dtype": dtype, "sizes": sizes, "config": config}


def test_without_measured_parameters_the_launcher_keeps_its_own(configs):
    assert tuned("op.forward", OnGpu(), DEFAULT, M=64) == DEFAULT
    assert tuned("op.forward", torch.zeros(1), DEFAULT, M=64) == DEFAULT


def test_the_nearest_sizes_in_the_logarithm_decide(configs):
    configs(entry({"BM": 128}, {"M": 1000, "D": 64}), entry({"BM": 32}, {"M": 250, "D": 64}))
    assert tuned("op.forward", OnGpu(), DEFAULT, M=400, D=64)["BM"] == 32
    assert tuned("op.forward", OnGpu(), DEFAULT, M=600, D=64) == {"BM": 128, "num_warps": 4}


def test_a_device_is_asked_for_its_name_once(configs, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: asked.append(device) or GPU)
    for size in (64, 64, 128):
        tuned("op.forward", OnGpu(), DEFAULT, M=size)
    assert asked == [OnGpu.device]


@pytest.mark.parametrize(
    "other",
    [
        entry({"BM": 32}, {"M": 64}, dtype="float32"),
        entry({"BM": 32}, {"M": 64}, kernel="op.backward"),
        entry({"BM": 32}, {"M": 64 * 5}),
        entry({"BM": 32}, {"M": 64, "N": 1}),
    ],
    ids=["type", "kernel", "far away", "other sizes"],
)
def test_what_was_measured_for_something_else_is_not_taken(configs, other):
    configs(other)
    assert tuned("op.forward", OnGpu(), DEFAULT, M=64) == DEFAULT


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"entries": [{"kernel": "op.forward"}]}',
        '{"entries": [{"kernel": "op.forward", "dtype": "bfloat16", "sizes": {"M": 1},'
        ' "config": {"BM": 0}}]}',
    ],
)
def test_a_broken_file_is_an_error_that_names_it(configs, text):
    path = configs()
    path.write_text(text)
    tuning.forget()
    with pytest.raises(ValueError, match=r"NVIDIA-H200\.json"):
        tuned("op.forward", OnGpu(), DEFAULT, M=64)


def test_a_parameter_that_the_launcher_has_not_is_an_error(configs):
    configs(entry({"BX": 32}, {"M": 64}))
    with pytest.raises(ValueError, match=r"op\.forward takes no BX"):
        tuned("op.forward", OnGpu(), DEFAULT, M=64)
    configs(entry({"BM": 32}, {"M": 64}))
    with pytest.raises(ValueError, match="takes no BM"):
        tuned("op.forward", OnGpu(), DEFAULT, ("num_warps",), M=64)


def test_a_trial_ends_with_its_block(configs):
    with tuning.trial("op.forward", {"BM": 16}):
        assert tuned("op.forward", torch.zeros(1), DEFAULT, M=64) == {"BM": 16, "num_warps": 4}
        assert tuned("op.backward", torch.zeros(1), DEFAULT, M=64) == DEFAULT
    assert tuned("op.forward", torch.zeros(1), DEFAULT, M=64) == DEFAULT


@pytest.mark.skipif(not dispatch.INTERPRETED, reason="kernels run on a processor by interpretation")
@pytest.mark.parametrize(
    ("folder", "op", "names"),
    [
        ("dnc", "link", ["BI", "BJ", "num_warps"]),
        ("dnc", "allocation", ["num_warps"]),
        ("lstm", "lstm", ["num_warps"]),
        ("attention", "attention", ["BM", "BN", "num_stages", "num_warps"]),
        ("conv2d", "conv2d", ["BK", "BM", "BN", "num_stages", "num_warps"]),
    ],
)
def test_launchers_ask_for_their_parameters_and_take_them(folder, op, names):
    module = importlib.import_module(f"kernels.{folder}")
    cases = importlib.import_module(f"kernels.{folder}.cases")
    args = cases.arguments(op, cases.TEST[1], torch.float32)
    with tuning.observed() as asked:
        before = proof.flat(getattr(module, op)(*args, impl="triton"))
    (found,) = asked.values()
    assert found.kernel.startswith(f"{folder}.")
    assert found.dtype == "float32"
    assert sorted(found.default) == names
    for block in {"BI", "BM"} & set(names):
        with tuning.trial(found.kernel, {block: 16}), tuning.observed():
            after = proof.flat(getattr(module, op)(*args, impl="triton"))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(before, after, strict=True))


def test_tuning_climbs_to_the_fastest_and_stops_at_the_limits(monkeypatch):
    best = {"BM": 128, "num_warps": 2}
    asked = tuning.Asked("op.forward", "bfloat16", {"M": 64}, {"BM": 32, "num_warps": 4})
    monkeypatch.setattr(tune, "launched", lambda w: [asked])
    tried = []

    def seconds(w, kernel, candidate, so_far):
        tried.append(candidate)
        cost = [
            1 + sum(abs(c[k].bit_length() - best[k].bit_length()) for k in best)
            for c in (candidate, so_far)
        ]
        return cost[0], cost[1]

    (found,) = tune.tune(None, seconds)
    assert found.config == best
    assert found.gain == pytest.approx(4.0)
    assert {"BM": 256, "num_warps": 4} in tried
    assert all(16 <= c["BM"] <= 256 for c in tried)


def test_a_search_begins_a_step_from_the_heuristic(monkeypatch):
    asked = tuning.Asked("op.forward", "bfloat16", {"M": 64}, {"BM": 16, "num_stages": 2})
    monkeypatch.setattr(tune, "launched", lambda w: [asked])
    assert tune.tried_first("w") == [
        ("w", "op.forward", {"BM": 32, "num_stages": 2}),
        ("w", "op.forward", {"BM": 16, "num_stages": 3}),
        ("w", "op.forward", {"BM": 16, "num_stages": 1}),
    ]


def test_candidates_that_fail_or_gain_nothing_leave_the_heuristic(monkeypatch):
    asked = tuning.Asked("op.forward", "bfloat16", {"M": 64}, {"BM": 32, "num_warps": 4})
    monkeypatch.setattr(tune, "launched", lambda w: [asked])
    assert tune.tune(None, lambda *a: "too large") == []
    assert tune.tune(None, lambda *a: (0.99, 1.0)) == []
    assert tune.tune(None, lambda *a: (0.1, 1.0), stop=lambda: True) == []


def test_what_is_written_is_what_launchers_get(configs):
    asked = tuning.Asked("op.forward", "bfloat16", {"M": 64}, dict(DEFAULT))
    tune.write([tune.Found(asked, {"BM": 16, "num_warps": 8}, 1.5)], GPU)
    assert tuned("op.forward", OnGpu(), DEFAULT, M=64) == {"BM": 16, "num_warps": 8}
    tune.write([tune.Found(asked, {"BM": 32, "num_warps": 8}, 1.6)], GPU)
    assert tuned("op.forward", OnGpu(), DEFAULT, M=64) == {"BM": 32, "num_warps": 8}
    assert len(tuning.entries("op.forward", tuning.device_file(GPU))) == 1
