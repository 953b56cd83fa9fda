"""Tables and texts: what the files of a publisher become, on tiny copies."""

import io
import lzma
import tarfile
import zipfile

import numpy as np
import pytest
import requests

from suite.data import DataCorrupt, download, movies, tables

DAY = f"""{",".join(tables.BIKES_UNITS)},casual,cnt
1,0,1,0,6,0,2,0.5,0.4,0.8,0.1,331,985
"""
BLOCK = "-122.23,37.88,41.0,880.0,129.0,322.0,126.0,8.3252,452600.0"


def test_bikes_come_in_the_units_that_people_use(tmp_path):
    with zipfile.ZipFile(tmp_path / "bike-sharing-dataset.zip", "w") as archive:
        archive.writestr("day.csv", DAY)
    with lzma.open(tmp_path / "day.csv.xz", "wt") as file:
        file.write(DAY)
    for read in (tables.read_bikes_zip, tables.read_bikes_xz):
        decoded = read(tmp_path)
        row = dict(zip(decoded.feature_names, decoded.train[0][0].tolist(), strict=True))
        got = [row[name] for name in ("weekday", "temp", "atemp", "hum", "windspeed")]
        np.testing.assert_allclose(got, [6, 20.5, 20, 80, 6.7], rtol=1e-6)
        assert decoded.train[1].tolist() == [985]


def test_houses_are_derived_as_scikit_learn_derives_them(tmp_path):
    with tarfile.open(tmp_path / "cal_housing.tgz", "w:gz") as archive:
        member = tarfile.TarInfo("CaliforniaHousing/cal_housing.data")
        content = f"{BLOCK}\n{BLOCK}\n".encode()
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with lzma.open(tmp_path / "cal_housing.csv.xz", "wt") as file:
        file.write(f"header\n{BLOCK}\n{BLOCK}\n")
    for read in (tables.read_houses_tgz, tables.read_houses_xz):
        decoded = read(tmp_path)
        # The first row of scikit-learn's documentation of this set.
        expected = [8.3252, 41.0, 6.98412698, 1.02380952, 322.0, 2.55555556, 37.88, -122.23]
        np.testing.assert_allclose(decoded.train[0][0], expected, rtol=1e-6)
        np.testing.assert_allclose(decoded.train[1][0], 4.526, rtol=1e-6)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / movies.EVIDENCE).write_text(
        'annotation_id,text,label\nposR_840.txt,"a FUN film | it isn \'t dull |",1\n'
    )
    return {
        "movie_reviews/pos/cv001_1.txt": "good good film film film .",
        "movie_reviews/neg/cv000_2.txt": "dull film rare",
        "movie_reviews/pos/cv840_3.txt": "what a fun\nfilm , for it isn't dull !",
        "movie_reviews/neg/cv900_4.txt": "film",
    }


def test_reviews_become_ids_lengths_classes_and_evidence(texts, tmp_path):
    decoded = movies.joined(texts, tmp_path)
    assert decoded.vocabulary == ("<pad>", "<unk>", "film", "good")
    x, lengths, y, evidence = decoded.train
    assert x[:, :6].tolist() == [[1, 2, 1, 0, 0, 0], [3, 3, 2, 2, 2, 1]]
    assert (lengths.tolist(), y.tolist(), evidence.any()) == ([3, 6], [0, 1], False)
    x, lengths, y, evidence = decoded.test
    assert x.tolist() == [[1, 1, 1, 2, 1, 1, 1, 1, 1, 1], [2] + [0] * 9]
    assert evidence[0].tolist() == [False, True, True, True, False, False, True, True, True, False]
    assert (lengths.tolist(), y.tolist(), evidence[1].any()) == ([10, 1], [1, 0], False)


def test_the_words_are_part_of_the_checksum(texts, tmp_path):
    renamed = {name: text.replace("good", "fine") for name, text in texts.items()}
    one, other = (movies.joined(t, tmp_path) for t in (texts, renamed))
    assert np.array_equal(one.train[0], other.train[0])
    assert one.sha256() != other.sha256()


def test_a_passage_that_is_not_in_its_review_is_named(texts, tmp_path):
    texts["movie_reviews/pos/cv840_3.txt"] = "another film"
    with pytest.raises(DataCorrupt, match=r"cv840_3.txt: the passage 'afunfilm'"):
        movies.joined(texts, tmp_path)


def test_an_archive_and_its_tar_hold_the_same_reviews(texts, tmp_path):
    with zipfile.ZipFile(tmp_path / movies.REVIEWS_ZIP, "w") as archive:
        archive.writestr("movie_reviews/README", "no review")
        for name, text in texts.items():
            archive.writestr(name, text)
    with tarfile.open(tmp_path / "movie_reviews.tar.xz", "w:xz") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    assert movies.read_zip(tmp_path).sha256() == movies.read_tar(tmp_path).sha256()


def test_a_failed_download_of_a_file_is_an_oserror(tmp_path, monkeypatch):
    def refuse(url):
        raise OSError("no route")

    monkeypatch.setattr(download, "_require_answer", refuse)
    with pytest.raises(OSError, match="no route"):
        download.through_pooch({"a/b": "http://127.0.0.1:1/b"}, tmp_path)
    # What pooch raises when the connection breaks later on.
    assert issubclass(requests.RequestException, OSError)
