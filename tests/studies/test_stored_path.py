"""Names of points and files: what users have measured stays valid; whole runs; lengths; kinds of paths."""

import numpy as np
import pytest
import torch

from mcanalysis.errors import UserError
from mcanalysis.params import delta_distance
from mcanalysis.params.lora import base_point
from mcanalysis.paths.path_kinds import path_kind, path_kind_names
from mcanalysis.runs.transitions import Transition
from mcanalysis.store.hashing import hash_json
from mcanalysis.store.point_files import point_bytes, points_of
from mcanalysis.studies.connectivity.stored_path import StoredPath
from mcanalysis.studies.connectivity.study import PATHS, Connectivity


def adapter(seed, rank=2):
    generator = torch.Generator().manual_seed(seed)
    return {
        "q.lora_A.weight": torch.randn(rank, 5, generator=generator),
        "q.lora_B.weight": torch.randn(6, rank, generator=generator),
    }


def transition(*points, old=("A",), new="B"):
    points = points or (adapter(0), adapter(1))
    return Transition("1-A", f"{len(points)}-{new}", points, tuple(f"hash{i}" for i in range(len(points))), old, new)


def stored(tmp_path, kind, where=None, **settings):
    return StoredPath(where or transition(), kind, Connectivity(**settings), tmp_path)


def test_keys_of_the_three_first_paths_are_what_they_have_always_been(tmp_path):
    fitted = [["A"], "B", "", 60, 1e-2, 16]
    for kind in PATHS:
        path = stored(tmp_path, kind)
        key = hash_json([kind, "hash0", "hash1", *(fitted if kind == "bezier-factor" else [])])
        assert path.key == key
        assert path.point_key(0.0) == "hash0" and path.point_key(1.0) == "hash1"
        assert path.point_key(0.15) == f"{key[:24]}/0.15"
        assert path.file.name == f"1-A--2-B-{kind}-{key[:8]}.safetensors"
        assert [path.point_key(t) for t in path.ts][1] == f"{key[:24]}/0.05"


def test_an_aligned_path_from_an_adapter_that_changes_nothing_has_a_key_of_its_own(tmp_path):
    still = base_point(adapter(0))
    for kind in ("linear-factor", "linear-delta", "linear-aligned"):
        before, now = (stored(tmp_path, kind, transition(a, adapter(1))) for a in (adapter(0), still))
        assert (before.key == now.key) == (kind != "linear-aligned")  # the hashes of the minima are the same here


def test_keys_tell_finders_and_seeds_apart_and_are_those_of_before_without_them(tmp_path):
    settings = [{}, {"finder": "neb"}, {"finder": "bisection"}, {"curve_seed": 0}, {"curve_seed": 1}]
    keys = [stored(tmp_path, "polychain-factor", paths=("polychain-factor",), **each).key for each in settings]
    assert len(set(keys)) == 5
    assert keys[0] == hash_json(["polychain-factor", "hash0", "hash1", ["A"], "B", "", 60, 1e-2, 16])
    assert len({stored(tmp_path, "linear-factor", paths=("linear-factor",), curve_seed=n).key for n in (0, 1)}) == 1


def test_keys_tell_settings_of_curves_apart_and_only_of_curves(tmp_path):
    for kind in path_kind_names():
        keys = {stored(tmp_path, kind, **s).key for s in ({}, {"num_bends": 2}, {"curve_steps": 9}, {"num_points": 3})}
        assert len(keys) == (3 if path_kind(kind).is_fitted else 1)


def test_a_path_through_a_whole_run_has_the_minima_on_its_grid(tmp_path):
    where = transition(*(adapter(i) for i in range(8)), old=tuple("ABCDEFG"), new="H")
    path = stored(tmp_path, "segmented_bezier-factor", where)
    assert len(path.ts) == 22 and path.ts[0] == 0 and path.ts[-1] == 1
    keys = [path.point_key(t) for t in path.ts]
    assert [k for k in keys if k.startswith("hash")] == [f"hash{i}" for i in range(8)]
    for t, key in path.minima.items():
        minimum = where.points[int(key[4:])]
        assert all(torch.equal(path.straight(t)[n], minimum[n]) for n in minimum)
    assert np.isnan(path.deviation(path.ts)).all()


def test_a_curve_is_read_from_its_file_or_from_bends_that_were_sent(tmp_path):
    for kind, bends in (("bezier-delta", 1), ("polychain-aligned", 3)):
        path = stored(tmp_path, kind, num_bends=bends)
        assert path.if_there() is None and path.lengths([0.5]) is None
        moved = [{n: x + 1 for n, x in bend.items()} for bend in path.straight.bends]
        path.file.parent.mkdir(parents=True, exist_ok=True)
        path.file.write_bytes(point_bytes(moved))
        points = stored(tmp_path, kind, num_bends=bends).if_there()(0.5), path.bent(points_of(point_bytes(moved)))(0.5)
        assert all(torch.equal(points[0][n], points[1][n]) for n in points[0])
        assert not all(torch.equal(points[0][n], path.straight(0.5)[n]) for n in points[0])
        assert len(path.if_there().bends) == bends


def test_lengths_in_the_paths_space_and_in_delta(tmp_path):
    where = transition()
    apart = delta_distance(*where.points)
    straight = stored(tmp_path, "linear-delta", where).lengths([0.0, 0.25, 1.0])
    assert (straight.length, straight.length_delta, straight.distance_delta) == pytest.approx((apart,) * 3, rel=1e-6)
    assert straight.arc == pytest.approx([0, apart / 4, apart], rel=1e-6)
    factor = stored(tmp_path, "linear-factor", where).lengths([1.0])
    assert factor.length_delta > apart * (1 + 1e-6)
    ranks = stored(tmp_path, "linear-delta", transition(adapter(0), adapter(1, rank=3)))
    assert np.isnan(ranks.deviation([0.5])).all() and ranks.lengths([1.0]).length > 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"paths": ("beziers-factor",)}, "Did you mean 'bezier-factor'"),
        ({"paths": ("bezier-facto",)}, "Did you mean 'bezier-factor'"),
        ({"paths": ("linear",)}, "Unknown path 'linear'"),
        ({"paths": ()}, "at least one path"),
        ({"paths": ("linear-delta", "linear-delta")}, "each path once"),
        ({"num_bends": 0}, "--num-bends"),
        ({"finder": "nudged"}, "Unknown finder 'nudged'"),
        ({"finder": "neb"}, "Expected a chain for the finder neb, .* got Bezier.*--paths polychain-factor"),
        ({"finder": "neb", "paths": ("polychain-factor",), "num_bends": 9, "curve_steps": 8}, "--curve-steps"),
        ({"tolerance": 0.0}, "--tolerance"),
        ({"tolerance": float("nan")}, "--tolerance"),
        ({"tolerance": 1e-7}, "rounding"),
        ({"ensemble": 1}, "--ensemble"),
        ({"simplex": (1, 2)}, "--simplex"),
        ({"simplex": (1, 2, 2)}, "--simplex"),
        ({"num_points": 1}, "--num-points"),
        ({"num_examples": 0}, "--num-examples"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Connectivity(**settings)
