"""Pictures that would come out the same are not drawn again; whatever differs, they are."""

from dataclasses import dataclass, replace

import pandas as pd
import pytest
from matplotlib.figure import Figure

from mcanalysis.plotting.picture import Picture, save
from mcanalysis.studies import drawn
from mcanalysis.studies.connectivity.study import Connectivity
from mcanalysis.studies.drawn import Drawn, origin

STUDY = Connectivity(num_points=3)


@pytest.fixture
def kept(tmp_path):
    """A record, and the files of the two pictures that it is of."""
    folder = tmp_path / "figures"
    pictures = [Picture(stem, Figure((1, 1)), {"data": pd.DataFrame({"x": [1]})}, stem) for stem in ("a", "b")]
    files = [save(picture, folder) for picture in pictures]
    record = Drawn(folder / ".Connectivity.json", origin(STUDY, ["profiles\n1"]))
    assert record.find() is None
    record.keep(files, [file for picture in pictures for file in picture.beside(folder)])
    return record, files


def test_what_is_as_it_was_left_is_found_picture_by_picture(kept):
    record, files = kept
    assert record.find() == files
    assert [[file.name for file in of_one] for of_one in files] == [["a.pdf", "a.png"], ["b.pdf", "b.png"]]


@pytest.mark.parametrize("name", ["a.png", "b.pdf", "a.txt", "b_data.csv"])
@pytest.mark.parametrize("done", ["drawn over", "gone"])
def test_a_file_that_is_not_as_it_was_left_is_made_again(kept, name, done):
    record, _ = kept
    file = record.file.with_name(name)
    file.write_bytes(b"another") if done == "drawn over" else file.unlink()
    assert record.find() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"origin": 1}', "{"])
def test_a_damaged_record_is_none(kept, text):
    record, _ = kept
    record.file.write_text(text)
    assert record.find() is None


def test_settings_tables_and_code_are_what_a_picture_is_made_of(kept, monkeypatch):
    record, _ = kept
    known = origin(STUDY, ["profiles\n1"])
    others = [origin(STUDY, ["profiles\n2"]), origin(replace(STUDY, num_points=5), ["profiles\n1"])]
    monkeypatch.setattr(drawn, "drawing_key", lambda: "of another version")
    others.append(origin(STUDY, ["profiles\n1"]))
    assert known not in others and len(set(others)) == 3
    assert all(replace(record, origin=other).find() is None for other in others)


def test_pictures_of_a_study_of_others_are_always_drawn(kept):
    @dataclass(frozen=True)
    class Own(Connectivity):
        """A study elsewhere, whose pictures may be made of anything."""

    record, files = kept
    assert origin(Own(), ["profiles\n1"]) is None
    unknown = replace(record, origin=None)
    assert unknown.find() is None
    record.file.unlink()
    unknown.keep(files, [])
    assert not record.file.exists()
