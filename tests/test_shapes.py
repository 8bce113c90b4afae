"""The checker of shapes sees wrong ones, lets right ones and refusals pass, and leaves functions what they were."""

import doctest
import inspect
import pickle
import pkgutil
import sys
import types

import numpy as np
import pytest
import shapes
import torch
from shapes import POINT, POINTS, SHAPES, Any, Bool, checked, f64, interval, size

import mcanalysis as mc
from mcanalysis.errors import UserError
from mcanalysis.metrics import barriers, front
from mcanalysis.paths import Linear


def front_of(stability, plasticity):
    return np.ones(len(stability) + 1, dtype=bool)


def halves(values):
    return np.asarray(values, dtype=np.float32) / 2


def at_end(path):
    return {name: tensor.reshape(1, -1) for name, tensor in path[-1].items()}


def of_points(points):
    return np.zeros(1), np.zeros(1), np.zeros(2, dtype=bool)


W, V = {"w": torch.zeros(3)}, {"w": torch.zeros(2)}


@pytest.mark.parametrize(
    ("function", "stated", "argument"),
    [
        (lambda x: front_of(x, x), {"x": size("n"), "returns": Bool[Any, "n"]}, [0.0, 1.0]),
        (halves, {"values": size("n"), "returns": f64("n")}, [0.0, 1.0]),  # float32
        (halves, {"values": size("n m")}, [0.0, 1.0]),
        (at_end, {"path": POINTS, "returns": POINT}, [W, W]),
        (at_end, {"path": POINTS}, [W, V]),
        (at_end, {"path": POINTS}, [W, {"v": torch.zeros(3)}]),
        (of_points, {"points": size("k"), "returns": interval("k")}, [0.0]),
        (of_points, {"range(len(points))": size("k"), "returns[2]": size("k")}, [0.0]),
        (of_points, {"returns": float}, [0.0]),
    ],
)
def test_wrong_shapes_are_caught(function, stated, argument):
    with pytest.raises(AssertionError, match=r"expected .* to be"):
        checked(function, stated)(argument)


def test_right_shapes_pass_and_what_is_none_is_left_out():
    stated = {"a": size("*b n"), "b": size("n"), "returns": f64("*b n")}
    add = checked(lambda a, b=None: np.asarray(a, dtype=np.float64) + (0 if b is None else b), stated)
    assert add([[1, 2], [3, 4]], b=[1, 1]).tolist() == [[2, 3], [4, 5]]
    assert add(1.5 * np.ones(2)).tolist() == [1.5, 1.5]
    assert checked(at_end, {"path": POINTS, "returns['w']": size("1 3")})([W, W])["w"].shape == (1, 3)


def is_watched(function):
    return function.__code__.co_filename == shapes.__file__


def test_all_of_the_table_is_watched_wherever_it_is_held():
    assert all(is_watched(pkgutil.resolve_name(f"mcanalysis.{key}")) for key in SHAPES)
    assert is_watched(Linear.weights)  # its entry is that of Path
    modules = [vars(module) for name, module in sys.modules.items() if name.startswith("mcanalysis.")]
    found = [one for names in modules for one in names.values() if isinstance(one, types.FunctionType)]
    stated = [one for one in found if f"{one.__module__}.{one.__qualname__}".removeprefix("mcanalysis.") in SHAPES]
    assert stated and all(is_watched(one) for one in stated)


def test_a_call_from_inside_the_package_is_checked(monkeypatch):
    profile = mc.profile(Linear(W, {"w": torch.ones(3)}), lambda point: 1.0, ts=[0.0, 1.0])
    monkeypatch.setattr(barriers, "_highest", lambda contrasts: contrasts)
    with pytest.raises(AssertionError, match="chord_barrier: expected returns to be"):
        profile.chord_barrier()


def test_refusals_are_the_functions_own():
    with pytest.raises(UserError, match="one shape"):
        front.non_dominated([1.0], [1.0, 2.0])


def test_a_watched_function_is_pickled_documented_and_looked_up_as_before():
    watched, original = front.non_dominated, front.non_dominated.__wrapped__
    assert pickle.loads(pickle.dumps(watched)) is watched
    assert pickle.loads(pickle.dumps(barriers.BY_NAME))["chord_dip"] is barriers.chord_dip
    assert inspect.signature(watched) == inspect.signature(original)
    found = {test.name: test for test in doctest.DocTestFinder().find(front)}
    assert len(found["mcanalysis.metrics.front.non_dominated"].examples) == 1
