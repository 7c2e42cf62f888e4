"""Draw made scenes with real textures: a ground that drifts and grows, and a few things that move over it.

They stand in for photographs where no real video may be needed: in the demo, and to train `tiny`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Texture = npt.NDArray[np.float32]
"""float32 [2H, 2W, 3] in levels of 0 to 255; it repeats at its edges."""


class Scene:
    """A scene that follows from a seed, at any time and of any length."""

    def __init__(self, seed: int, height: int, width: int) -> None:
        self._random = random = np.random.default_rng([20240806, seed])
        self._height, self._width = height, width
        self._ground = self._texture()
        self._velocity, self._growth = random.normal(0, 0.2 * height, 2), random.uniform(0.9, 1.2)
        self._things = [self._thing() for _ in range(random.integers(1, 5))]

    def frame(self, seconds: float) -> npt.NDArray[np.uint8]:
        """Draw the picture at a time: uint8 [H, W, 3]."""
        y, x = np.mgrid[0 : self._height, 0 : self._width].astype(np.float32)
        zoom, shift = self._growth**seconds, self._velocity * seconds
        frame = sampled(self._ground, y * zoom + shift[0], x * zoom + shift[1])
        for texture, centre, speed, size, is_box in self._things:
            # A thing that leaves the picture comes back on the other side.
            reach = np.array([self._height, self._width]) + 2 * size
            place = (centre + speed * seconds + size) % reach - size
            dy, dx = y - place[0], x - place[1]
            inside = (np.maximum(abs(dy), abs(dx)) if is_box else np.hypot(dy, dx)) < size
            frame = np.where(inside[..., None], sampled(texture, dy, dx), frame)
        return frame.clip(0, 255).astype(np.uint8)

    def _thing(self) -> tuple[Texture, Any, Any, float, bool]:
        random = self._random
        centre = random.uniform(0, (self._height, self._width))
        speed = random.normal(0, 0.3 * self._height, 2)
        return self._texture(), centre, speed, random.uniform(0.08, 0.3) * self._height, random.random() < 0.5

    def _texture(self) -> Texture:
        """Draw noise with the spectrum of photographs, 1 / frequency^a, in correlated colours."""
        random, shape = self._random, (2 * self._height, 2 * self._width)
        frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(shape[0]), np.fft.rfftfreq(shape[1]), indexing="ij"))
        frequency[0, 0] = 1
        noise = np.fft.rfft2(random.normal(size=(3, *shape))) / frequency ** random.uniform(1.1, 1.9)
        noise[:, 0, 0] = 0
        fields = np.fft.irfft2(noise, shape)
        fields /= fields.std((1, 2), keepdims=True)
        colours = random.normal(((36,) * 3, (0,) * 3, (0,) * 3), 9) * random.uniform(0.5, 1.4)
        mean = random.uniform(60, 190) + random.normal(0, 25, 3)
        texture: Texture = (mean + np.einsum("fhw,fc->hwc", fields, colours)).astype(np.float32)
        return texture


def sampled(texture: Texture, y: npt.NDArray[np.float32], x: npt.NDArray[np.float32]) -> Texture:
    """Look up a texture between four of its pixels."""
    height, width, _ = texture.shape
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    dy, dx = (y - top)[..., None], (x - left)[..., None]
    rows, columns = (top % height, (top + 1) % height), (left % width, (left + 1) % width)
    upper = texture[rows[0], columns[0]] * (1 - dx) + texture[rows[0], columns[1]] * dx
    lower = texture[rows[1], columns[0]] * (1 - dx) + texture[rows[1], columns[1]] * dx
    mixed: Texture = upper * (1 - dy) + lower * dy
    return mixed
