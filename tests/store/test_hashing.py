import hashlib

import pytest

from mcanalysis.store import hash_file, hash_files, hash_json


def test_json_hash_is_the_sha256_of_sorted_compact_json():
    expected = hashlib.sha256(b'{"a":[1,2.5,null],"b":"\\u00fc"}').hexdigest()
    assert hash_json({"b": "ü", "a": (1, 2.5, None)}) == expected


def test_json_hash_tells_values_apart():
    values = [1, 1.5, "1", True, None, [1], {"1": 1}, [[1]], ""]
    assert len({hash_json(value) for value in values}) == len(values)


def test_json_hash_refuses_what_json_cannot_hold():
    with pytest.raises(TypeError):
        hash_json({"a": object()})


def test_file_hash_is_that_of_the_bytes(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    assert hash_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def make(root, **files):
    paths = []
    for name, text in files.items():
        path = root / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        paths.append(path)
    return paths


def test_files_hash_ignores_order_and_place_but_not_names_or_contents(tmp_path):
    here = hash_files(make(tmp_path / "here", A_train="1", B_train="2"))
    there = hash_files(reversed(make(tmp_path / "there", A_train="1", B_train="2")))
    assert here == there
    others = [
        hash_files(make(tmp_path / "x", A_train="2", B_train="1")),
        hash_files(make(tmp_path / "y", A_train="1", C_train="2")),
        hash_files(make(tmp_path / "z", A_train="1", B_train="3")),
        hash_files(make(tmp_path / "w", A_train="1")),
        hash_files([]),
    ]
    assert len({here, *others}) == 6


def test_a_file_named_twice_counts_once(tmp_path):
    (path,) = make(tmp_path, a="1")
    assert hash_files([path, path]) == hash_files([path])
