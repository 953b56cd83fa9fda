"""Commands about a Ray cluster."""

from pathlib import Path
from typing import Annotated

import typer

from suite.cli.options import say

app = typer.Typer(help="A Ray cluster: check, wait, status, token.", no_args_is_help=True)

Joined = Annotated[
    str, typer.Option("--on", help="The cluster: auto, host:port or ray://host:port.")
]


@app.command("check")
def cluster_check(
    file: Annotated[Path, typer.Argument(help="A configuration for ray up.")],
) -> None:
    """Check a configuration for ray up."""
    from suite import launch

    config = launch.check(file)
    kinds = ", ".join(
        f"{name} (up to {kind['max_workers']})" if kind["max_workers"] else name
        for name, kind in config["available_node_types"].items()
    )
    print(f"{file}: ok; provider {config['provider']['type']}, nodes: {kinds}")


@app.command("wait")
def cluster_wait(
    nodes: Annotated[int, typer.Option(min=1, help="How many nodes, the head among them.")],
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait at most.")] = 300.0,
    on: Joined = "auto",
) -> None:
    """Wait for nodes; if they do not join, say why."""
    from suite import launch

    for host in launch.wait(on, nodes, timeout, say):
        print(host)


@app.command("status")
def cluster_status(on: Joined = "auto") -> None:
    """Show the nodes, their use, and what runs."""
    from suite import launch

    hosts, commands = launch.status(on)
    for host in hosts:
        print(host)
    print("\n".join(["runs:", *commands]) if commands else "runs: nothing")


@app.command("token")
def cluster_token(
    write: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder that file_mounts distributes.")
    ] = None,
) -> None:
    """Show or make the token that all hosts share."""
    from suite import launch

    path, made = launch.token(write)
    print(path)
    if made:
        say("a new token; keep it to yourself, and put its folder under file_mounts as ~/.ray")
