"""Commands about the data sets."""

from typing import Annotated

import typer

from suite.codes import INFRASTRUCTURE

app = typer.Typer(help="The data sets: list, fetch, verify, where.", no_args_is_help=True)


@app.command("list")
def data_list() -> None:
    """List the data sets, and where each stands."""
    from suite import data

    for entry in data.catalogue():
        place = data.where(entry["name"]) or "not here yet"
        print(f"{entry['name']:<16} {entry['kind']:<8} {place}  ({entry['licence']})")


@app.command("fetch")
def data_fetch(names: Annotated[list[str], typer.Argument(help="Data sets.")]) -> None:
    """Download data sets into the user's cache."""
    from suite import data

    for name in names:
        print(f"{name}: {data.fetch(name)}")


@app.command("verify")
def data_verify(names: Annotated[list[str], typer.Argument(help="Data sets.")]) -> int:
    """Compare the files of data sets with their pinned checksums."""
    from suite import data

    failed = 0
    for name in names:
        for file, ok, detail in data.verify(name):
            failed += not ok
            print(f"{'ok ' if ok else 'BAD'} {name} {file} {detail}")
    return INFRASTRUCTURE if failed else 0


@app.command("where")
def data_where(name: Annotated[str, typer.Argument(help="A data set.")]) -> int:
    """Print where a data set stands."""
    from suite import data

    place = data.where(name)
    print(place or f"{name} is not on this machine; type: suite data fetch {name}")
    return 0 if place else INFRASTRUCTURE
