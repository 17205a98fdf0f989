"""What a worker notes of a range: digests of what passed, in whatever pieces, and counts."""

from submerge.engine.work._range_log import OUTPUT, RangeLog
from submerge.store import digest

DATA = [b"first", b"second one", b"out"]


def fed(log: RangeLog, cut: int) -> RangeLog:
    for source, data in enumerate(DATA[:2]):
        log.read(source, memoryview(data[:cut]))
        log.read(source, memoryview(data[cut:]))
    return log


def test_digests_do_not_depend_on_the_pieces() -> None:
    for cut in (0, 1, 4):
        log = fed(RangeLog(2), cut)
        log.wrote(memoryview(DATA[2]))
        assert log.inputs == [digest(data) for data in DATA[:2]]
        assert log.output == digest(DATA[2])


def test_a_copy_has_the_digest_of_its_first_source() -> None:
    log = fed(RangeLog(2, copy=True), 2)
    assert log.output == log.inputs[0] == digest(DATA[0])


def test_without_digests_there_are_counts_alone() -> None:
    log = fed(RangeLog(2, hashed=False), 2)
    log.wrote(memoryview(DATA[2]))
    assert (log.inputs, log.output) == ([], "")
    for count in (1, 2):
        log.count(0, count)
    log.count(OUTPUT, 1)
    assert log.nonfinite == {0: 3, OUTPUT: 1}
