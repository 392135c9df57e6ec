"""A kind of rgb whose reading goes wrong as the file's suffix says; importable by reading processes."""

import os
import signal
import time
from pathlib import PurePath
from typing import Any

import numpy as np

from mbt_rgb.modality import Rgb


class FaultyRgb(Rgb):
    """``.hang`` never ends, ``.dies`` takes its process with it, ``.huge`` takes 8 GiB, ``.bug`` raises."""

    def read(self, clip: Any, window: Any, rng: Any) -> Any:
        match PurePath(clip.name).suffix:
            case ".hang":
                time.sleep(3600)
            case ".dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case ".huge":
                np.empty(1 << 33, np.uint8)
            case ".bug":
                raise RuntimeError("a bug")
        return super().read(clip, window, rng)
