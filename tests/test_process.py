"""What the process takes of the machine."""

from submerge.process import peak_resident


def test_the_peak_is_what_the_process_has_held() -> None:
    before = peak_resident()
    block = bytearray(1 << 22)
    block[:: 1 << 12] = b"x" * (1 << 10)  # each page is touched
    assert peak_resident() >= before > 0
