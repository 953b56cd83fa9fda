"""What several commands share: options, what they mean, how a campaign ended."""

import sys
from collections import Counter
from typing import Annotated, Any

import typer

from suite import task
from suite.codes import INFRASTRUCTURE, UNTRUSTED

Selection = Annotated[
    list[str],
    typer.Argument(
        metavar="SELECTION...",
        help="Task ids (ch12.dnc_copy), chapters (ch12), globs ('ch*.lstm*').",
    ),
]
StoreURI = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="SUITE_STORE",
        help="Where records go: a path, s3://..., gs://..., memory://...",
    ),
]
Profile = Annotated[str, typer.Option(help="How big: smoke, laptop or paper.")]
Seeds = Annotated[str, typer.Option(help="The repetitions: 0-4, 7 or 0,2,10-12.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Runs at a time; all cores when not given.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Fresh = Annotated[
    bool, typer.Option("--fresh/--resume", help="Run again what is finished, or continue.")
]
Timeout = Annotated[float | None, typer.Option(help="Seconds a run may take.", min=0.001)]
On = Annotated[
    str,
    typer.Option(
        envvar="SUITE_ON",
        metavar="WHERE",
        help="local; ray or ray:N, a private cluster of N nodes on this machine; or a running "
        "one: auto, host:port, ray://host:port.",
    ),
]
Cpus = Annotated[
    int | None, typer.Option(min=1, help="Cores of a run on a cluster; the task's own needs.")
]
Gpus = Annotated[
    float | None,
    typer.Option(min=0.01, help="GPUs of a run on a cluster, such as 0.25; the task's own needs."),
]
Exclusive = Annotated[
    bool, typer.Option("--exclusive", help="One run a node, with all its cores: for timing.")
]
SaveEvery = Annotated[
    float | None, typer.Option(min=0.0, help="Seconds between two snapshots of a run; 60.")
]
Price = Annotated[
    float | None,
    typer.Option(
        "--price-per-hour",
        envvar="SUITE_PRICE",
        min=0.0,
        metavar="USD",
        help="What the machine costs an hour: records then say what a run costs.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what Ray has to say.")]
DEFAULT_STORE = "runs"


def say(line: str) -> None:
    """Say something to the user, beside the command's output."""
    print(line, file=sys.stderr)


def known_profile(profile: str) -> str:
    """The profile. Raises ValueError for one that does not exist."""
    if profile not in task.PROFILES:
        raise task.unknown("profile", profile, task.PROFILES)
    return profile


def assignments(pairs: list[str]) -> dict[str, Any]:
    """``field=value`` pairs as a mapping. Raises ValueError for another shape."""
    parsed = {}
    for pair in pairs:
        field, equals, value = pair.partition("=")
        if not equals or not field:
            raise ValueError(f"--set {pair!r}: write field=value")
        parsed[field] = value
    return parsed


def own_device(name: str) -> str:
    """The torch device to use. Raises ValueError for one that this machine lacks."""
    import torch

    gpus = torch.cuda.device_count()
    allowed = ["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if name not in allowed:
        raise ValueError(f"{task.unknown('device', name, allowed)} on this machine")
    return ("cuda" if gpus else "cpu") if name == "auto" else name


def ended(statuses: Counter[str]) -> int:
    """The exit code of a campaign: 0, 3 where a run failed, 4 where the machine did."""
    if statuses.keys() & {"infra_error", "killed"}:
        return INFRASTRUCTURE
    return UNTRUSTED if statuses.keys() & {"crashed", "oom", "nan", "timeout", "invalid"} else 0
