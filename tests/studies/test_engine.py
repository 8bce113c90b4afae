"""The engine: what is shared, kept, in turn, and what an error ends."""

import pytest

from mcanalysis.studies.engine import Engine, Here, Piece


def number(x, progress):
    if x == "bad":
        raise ValueError("bad")
    return x


class Shelf:
    """Keeps results in a dictionary, and remembers what was put there."""

    def __init__(self):
        self.results, self.kept = {}, []

    def at(self, key):
        shelf = self

        class Kept:
            def find(self):
                return shelf.results.get(key)

            def keep(self, result):
                shelf.kept.append(key)
                shelf.results[key] = result
                return result

        return Kept()

    def piece(self, x, turn=0):
        return Piece(str(x), number, (x,), self.at(str(x)), turn)


def test_what_is_kept_is_not_computed_and_two_that_want_one_piece_share_it():
    shelf = Shelf()
    shelf.results["1"] = 10

    def study(xs):
        return (yield [shelf.piece(x) for x in xs])

    assert Engine(Here()).run([study([1, 2]), study([2, 3]), study([3, 1])]) == [[10, 2], [2, 3], [3, 10]]
    assert shelf.kept == ["2", "3"]


def test_studies_within_a_study_go_on_side_by_side():
    shelf = Shelf()

    def chain(*xs):
        found = []
        for x in xs:
            found += yield [shelf.piece(x)]
        return sum(found)

    def study():
        both = yield [chain(1, 2, 3), shelf.piece(7), chain(10, 20)]
        nothing = yield []
        return both, nothing

    assert Engine(Here()).run([study()]) == [([6, 7, 30], [])]
    assert shelf.kept == ["7", "1", "10", "2", "20", "3"]


def test_lower_turns_go_first():
    shelf = Shelf()

    def study(xs, turn):
        for x in xs:
            yield [shelf.piece(x, turn)]

    Engine(Here()).run([study([1, 2], 1), study([3, 4], 0)])
    assert shelf.kept == ["3", "4", "1", "2"]


def test_an_error_ends_its_study_alone_and_is_raised_when_the_others_are_done():
    shelf, closed = Shelf(), []

    def careful():
        try:
            yield [shelf.piece("bad"), shelf.piece(1)]
        except ValueError:
            (found,) = yield [shelf.piece(2)]
            return found

    def inner():
        try:
            yield [shelf.piece(5)]
            yield [shelf.piece(6)]
        finally:
            closed.append("inner")

    def careless():
        yield [shelf.piece("bad"), inner()]

    def other():
        yield [shelf.piece(3)]
        yield [shelf.piece(4)]

    engine = Engine(Here())
    assert engine.run([careful()]) == [2]
    with pytest.raises(ValueError, match="bad"):
        engine.run([careless(), other()])
    assert closed == ["inner"] and {"3", "4"} <= set(shelf.kept) and "6" not in shelf.kept


def test_a_refusal_comes_before_anything_is_computed():
    shelf = Shelf()

    def refused():
        raise ValueError("refused")
        yield

    def other():
        yield [shelf.piece(3)]

    with pytest.raises(ValueError, match="refused"):
        Engine(Here()).run([other(), refused()])
    assert shelf.kept == []


def test_two_errors_end_a_study_once():
    def study():
        try:
            yield [failing("a"), failing("b")]
        except ValueError as error:
            first = str(error)
        (two,) = yield [Piece("2", number, (2,))]
        return first, two

    def failing(name):
        yield []
        raise ValueError(name)

    assert Engine(Here()).run([study()]) == [("a", 2)]


def test_a_stop_in_a_piece_closes_the_studies():
    closed = []

    def stopped(progress):
        raise KeyboardInterrupt

    def study():
        try:
            yield [Piece("s", stopped)]
        finally:
            closed.append(1)

    with pytest.raises(KeyboardInterrupt):
        Engine(Here()).run([study()])
    assert closed == [1]


def test_progress_counts_what_is_known_so_far():
    said = []

    class Bar:
        total = 0

        def update(self, n=1):
            said.append((n, self.total))

        def close(self):
            said.append("closed")

    def study():
        yield [Piece(str(x), number, (x,)) for x in range(3)]
        yield [Piece("more", number, (9,))]

    Engine(Here(), lambda total, desc: Bar()).run([study()])
    assert said == [(1, 3), (1, 3), (1, 3), (1, 4), "closed"]


def test_no_time_left_is_told_while_something_trains_that_will_be_measured():
    told = []

    class Bar:
        total, is_open = 0, False

        def update(self, n=1):
            told.append((self.total, self.is_open))

        def close(self):
            pass

    def study():
        yield [Piece("other", number, (2,)), Piece("run", number, (1,), trains=True)]
        yield [Piece(f"point {i}", number, (i,)) for i in range(2)]

    Engine(Here(), lambda total, desc: Bar()).run([study()])
    assert told == [(2, True), (2, False), (4, False), (4, False)]
