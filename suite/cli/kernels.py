"""Commands about the kernels: what they use of a GPU, their speed, their tuning."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from suite.cli.options import (
    DEFAULT_STORE,
    Device,
    Fresh,
    Jobs,
    StoreURI,
    ended,
    own_device,
)

app = typer.Typer(
    help="The kernels: their speed, what they use of a GPU, their tuning.", no_args_is_help=True
)


@app.command("compile")
def bench_compile(
    arch: Annotated[
        list[int] | None, typer.Option(help="90 or 80: compute capability; both when not given.")
    ] = None,
    op: Annotated[list[str] | None, typer.Option(help="Only these ops. Repeatable.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Compile also what is made from the same as before.")
    ] = False,
    accept: Annotated[bool, typer.Option(help="Store what was found as the new table.")] = False,
    jobs: Jobs = None,
) -> int:
    """Compile every kernel for a GPU without one; compare what it uses with the stored table."""
    import os
    import subprocess

    # Triton decides at the definition of a kernel whether to interpret it, so in a new process.
    command = [sys.executable, "-m", "kernels.compile_gate", *(["--accept"] if accept else [])]
    command += ["--all"] if everything else []
    command += [f"--arch={a}" for a in arch or ()] + [f"--op={o}" for o in op or ()]
    command += [f"--jobs={jobs}"] if jobs else []
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(command, env=environment, check=False).returncode


@app.command("kernels")
def bench_kernels(
    op: Annotated[
        list[str] | None, typer.Option(help="dnc.step, dnc or a glob; all. Repeatable.")
    ] = None,
    case: Annotated[
        list[str] | None, typer.Option(help="A case's name or a glob; all. Repeatable.")
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(help="reference, torch, compile, triton, nn.LSTM, ... Repeatable."),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of all tensors; each case's own.")] = "",
    mode: Annotated[
        list[str] | None, typer.Option(help="forward, backward or full. Repeatable.")
    ] = None,
    store: StoreURI = DEFAULT_STORE,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each call.")] = 20,
    most_gflop: Annotated[
        float | None,
        typer.Option(min=0.0, help="Leave larger calls out; 5 on a processor, no limit on a GPU."),
    ] = None,
    fresh: Fresh = False,
) -> int:
    """Check and time every case of every kernel with every provider in turn."""
    from rich.console import Console

    from suite import bench
    from suite.progress import Benchmarks
    from suite.store import Store

    chosen = own_device(device)
    if most_gflop is None and chosen == "cpu":
        most_gflop = bench.MOST_GFLOP_ON_CPU
    sessions = bench.Request(
        ops=tuple(op or ()),
        cases=tuple(case or ()),
        providers=tuple(provider or ()),
        device=chosen,
        dtype=dtype,
        modes=tuple(mode or bench.DEFAULT_MODES),
    ).sessions()
    target = Store(store)
    target.check_writable()
    console = Console(stderr=True)
    with Benchmarks(len(sessions), console) as display:
        records = bench.run(
            sessions, target, rounds=rounds, fresh=fresh, most_gflop=most_gflop, told=display
        )
    console.print(f"{len(records)} new records in {store}", style="dim", highlight=False)
    return ended(Counter(r.status for r in records))


@app.command("ingest")
def bench_ingest(
    file: Annotated[
        Path,
        typer.Argument(exists=True, dir_okay=False, help="What pytest --benchmark-json wrote."),
    ],
    store: StoreURI = DEFAULT_STORE,
) -> int:
    """Make records of a file of pytest-benchmark."""
    from suite.ingest import ingest
    from suite.store import Store

    records = ingest(file, Store(store))
    kinds = Counter(r.micro.producer if r.status == "ok" and r.micro else r.status for r in records)
    print(f"{len(records)} records: {', '.join(f'{n} {k}' for k, n in sorted(kinds.items()))}")
    return ended(Counter(r.status for r in records))


@app.command("tune")
def bench_tune(
    op: Annotated[list[str] | None, typer.Option(help="Only these ops. Repeatable.")] = None,
    store: StoreURI = DEFAULT_STORE,
) -> int:
    """Find launch parameters for this machine's GPU, and write them to kernels/configs."""
    from suite.gpu import tuner
    from suite.gpu.command import check_machine

    check_machine()
    return tuner.tune_ops(op or list(tuner.TUNED), store)
