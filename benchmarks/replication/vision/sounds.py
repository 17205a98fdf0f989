"""Spoken digits as pictures: the spectrogram of a recording, 32 bands by 32 moments."""

from __future__ import annotations

import numpy as np

__all__ = ["spectrogram"]

RATE, WINDOW, HOP, SIZE = 8000, 256, 128, 32


def spectrogram(pcm: np.ndarray) -> np.ndarray:
    """Return log-mel energies of 16-bit samples at 8 kHz as grey values, shape [32, 32], high bands on top.

    A longer recording is cut to the half second of most energy, a shorter one ends in silence.
    """
    wave = pcm.astype(np.float64) / 32768
    length = HOP * (SIZE - 1) + WINDOW
    if len(wave) > length:
        energy = np.concatenate([[0.0], np.cumsum(wave**2)])
        start = int(np.argmax(energy[length:] - energy[:-length]))
        wave = wave[start : start + length]
    wave = np.pad(wave, (0, length - len(wave)))
    frames = np.lib.stride_tricks.sliding_window_view(wave, WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    bands = np.log(power @ _BANDS.T + 1e-5)
    grey = (bands - (bands.max() - 9.0)) / 9.0  # as loud recordings as soft ones: the top nine nepers
    return np.round(255 * grey.clip(0, 1)).astype(np.uint8).T[::-1]


def _bands() -> np.ndarray:
    """Return triangles that are equally wide in mel = 2595 log10(1 + f / 700), shape [32, 129]."""
    low, high = 2595 * np.log10(1 + np.array([50, RATE / 2]) / 700)
    edges = 700 * (10 ** (np.linspace(low, high, SIZE + 2) / 2595) - 1)
    tones = np.fft.rfftfreq(WINDOW, 1 / RATE)
    rising = (tones - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - tones) / (edges[2:] - edges[1:-1])[:, None]
    return np.clip(np.minimum(rising, falling), 0, None)


_BANDS = _bands()
