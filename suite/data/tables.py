"""Two tables for regression: rented bicycles by the day, and house prices by the block."""

import csv
import functools
import io
import lzma
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from suite.data.download import through_pooch
from suite.data.embedded import split
from suite.data.entry import Array, Decoded, Entry, Layout, Pin

BIKES_URL = "https://archive.ics.uci.edu/static/public/275/bike+sharing+dataset.zip"
BIKES_ZIP = "bike_sharing/bike-sharing-dataset.zip"
# What one unit of the file stands for: the authors divided by these maxima.
BIKES_UNITS = {
    "season": 1,
    "yr": 1,
    "mnth": 1,
    "holiday": 1,
    "weekday": 1,
    "workingday": 1,
    "weathersit": 1,
    "temp": 41,
    "atemp": 50,
    "hum": 100,
    "windspeed": 67,
}
HOUSES_URL = "https://ndownloader.figshare.com/files/5976036"
HOUSES_TGZ = "california_housing/cal_housing.tgz"
HOUSES_COLUMNS = (
    "MedInc",
    "HouseAge",
    "AveRooms",
    "AveBedrms",
    "Population",
    "AveOccup",
    "Latitude",
    "Longitude",
)


def bikes(lines: Iterable[str]) -> Decoded:
    """``day.csv``: 11 columns (temperatures in °C, humidity in %, wind in km/h), count of a day."""
    import numpy as np

    rows = list(csv.DictReader(lines))
    x = np.array([[float(r[name]) * unit for name, unit in BIKES_UNITS.items()] for r in rows])
    return _table(x, np.array([float(r["cnt"]) for r in rows]), tuple(BIKES_UNITS))


def houses(rows: Array) -> Decoded:
    """The census's nine columns as scikit-learn derives eight, and the value in 100,000 dollars."""
    import numpy as np

    longitude, latitude, age, rooms, bedrooms, people, households, income, value = rows.T
    x = [income, age, rooms / households, bedrooms / households, people, people / households]
    return _table(np.stack([*x, latitude, longitude], 1), value / 100_000, HOUSES_COLUMNS)


def _table(x: Array, y: Array, names: tuple[str, ...]) -> Decoded:
    import numpy as np

    x, y = x.astype(np.float32), y.astype(np.float32)
    train, test = split(np.zeros(len(y)))
    return Decoded((x[train], y[train]), (x[test], y[test]), feature_names=names)


def read_bikes_zip(folder: Path) -> Decoded:
    """The publisher's archive."""
    with zipfile.ZipFile(folder / Path(BIKES_ZIP).name) as archive, archive.open("day.csv") as file:
        return bikes(io.TextIOWrapper(file, "ascii", newline=""))


def read_bikes_xz(folder: Path) -> Decoded:
    """The one file of it, compressed."""
    with lzma.open(folder / "day.csv.xz", "rt", newline="") as file:
        return bikes(file)


def read_houses_tgz(folder: Path) -> Decoded:
    """The publisher's archive."""
    import numpy as np

    with tarfile.open(folder / Path(HOUSES_TGZ).name, "r:gz") as archive:
        file = archive.extractfile("CaliforniaHousing/cal_housing.data")
        assert file is not None, "the archive's checksum was compared"
        return houses(np.loadtxt(file, delimiter=","))


def read_houses_xz(folder: Path) -> Decoded:
    """The same nine columns with a header, compressed."""
    import numpy as np

    with lzma.open(folder / "cal_housing.csv.xz", "rt") as file:
        return houses(np.loadtxt(file, delimiter=",", skiprows=1))


BIKES_SHA256 = "8d15e91f5348a13dbf6007b4fb14d0b08c05713bed15aa1c7fbd8afdc55a3b85"
HOUSES_SHA256 = "4633dd36a8f50c6905055b6cc07dd7c711608eb2407dd851bc3637ad458dc0ce"
BIKE_SHARING = Entry(
    name="bike_sharing",
    kind="real",
    licence="CC BY 4.0 (UCI Machine Learning Repository); cite Fanaee-T and Gama, Event labeling "
    "combining ensemble detectors and background knowledge, 2013",
    layouts=(
        Layout(
            folders=("bike_sharing",),
            pins=(Pin(Path(BIKES_ZIP).name, url=BIKES_URL),),
            read=read_bikes_zip,
            sha256=BIKES_SHA256,
        ),
        Layout(
            folders=("bike_sharing",),
            pins=(
                Pin(
                    "day.csv.xz",
                    "dd57fc8276c91c708f6454de7cdd348d621f18760cb1b2aa8f3315d10980a81c",
                ),
            ),
            read=read_bikes_xz,
            sha256=BIKES_SHA256,
        ),
    ),
    download=functools.partial(through_pooch, {BIKES_ZIP: BIKES_URL}),
)
CALIFORNIA_HOUSING = Entry(
    name="california_housing",
    kind="real",
    licence="none stated; cite Pace and Barry, Sparse Spatial Autoregressions, 1997",
    layouts=(
        Layout(
            folders=("california_housing",),
            pins=(
                Pin(
                    Path(HOUSES_TGZ).name,
                    "aaa5c9a6afe2225cc2aed2723682ae403280c4a3695a2ddda4ffb5d8215ea681",
                    HOUSES_URL,
                ),
            ),
            read=read_houses_tgz,
            sha256=HOUSES_SHA256,
        ),
        Layout(
            folders=("california_housing",),
            pins=(
                Pin(
                    "cal_housing.csv.xz",
                    "a1a82c71ba2b11b0259460b83d012dcbb36160052f54ec5805d3fdcbe2ce95f2",
                ),
            ),
            read=read_houses_xz,
            sha256=HOUSES_SHA256,
        ),
    ),
    download=functools.partial(through_pooch, {HOUSES_TGZ: HOUSES_URL}),
)
