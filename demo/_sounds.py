"""Ten spoken words made by formula: two vowels each, by speakers of any pitch, with noise."""

from __future__ import annotations

import numpy as np

__all__ = ["RATE", "spoken"]

RATE = 16_000
"""Samples in a second."""
VOWELS = ((280, 2250), (480, 1900), (760, 1250), (480, 850), (300, 650))
"""First and second resonance of the vocal tract in Hz: as in bee, bed, bar, bore, boot."""
WORDS = ((0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 2), (1, 3), (2, 4), (3, 0), (4, 1))
"""Vowels of each number's word."""
WIDTH = 130
"""Of a resonance, in Hz."""
HIGHEST = 4000
"""Hz that a voice has overtones up to."""


def spoken(number: int, draw: np.random.Generator) -> np.ndarray:
    """Return a number's word as a random speaker says it: 0.4 to 0.6 s of samples, shape [n], float32.

    A voice is a sum of overtones of a pitch that falls a little. Each is as loud as the resonances of the
    vocal tract make it, which go from those of the first vowel to those of the second.
    """
    n = int(draw.integers(2 * RATE // 5, 3 * RATE // 5))
    time = np.linspace(0, 1, n, dtype=np.float32)
    pitch = draw.uniform(90, 240) * (1 - draw.uniform(0, 0.2) * time)
    turn = np.exp(2j * np.pi * np.cumsum(pitch) / RATE).astype(np.complex64)
    glide = 1 / (1 + np.exp((draw.uniform(0.4, 0.6) - time) / 0.06))
    first, second = (np.float32(VOWELS[vowel]) * draw.uniform(0.9, 1.1) for vowel in WORDS[number])
    resonances = first[:, None] + (second - first)[:, None] * glide
    wave, overtone = np.zeros(n, np.float32), np.ones(n, np.complex64)
    for k in range(1, int(HIGHEST / pitch[0]) + 1):
        overtone = overtone * turn
        distance = (k * pitch - resonances) / WIDTH
        loudness = 1 / (1 + distance * distance)
        wave += overtone.imag * (loudness[0] + 0.6 * loudness[1]) / k**0.5
    wave *= np.minimum(1, 8 * np.minimum(time, 1 - time)) / np.abs(wave).max()
    return (wave + draw.uniform(0.01, 0.1) * draw.standard_normal(n)).astype(np.float32)
