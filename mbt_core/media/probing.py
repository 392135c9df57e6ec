"""How much of a file FFmpeg looks at when it opens one.

Of .wav and .w64 files with 16-bit samples it tries, packet by packet, whether they are DTS or AC-3 that is declared as
PCM: 33 ms for a minute of CD sound, and about 1 ms without. Each frame of DTS, and each burst of AC-3, begins with a
sync word: where there are none of these, there is nothing to try.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

HEADER = 8192  # bytes within which the chunks "fmt " and "data" are expected
PACKETS = 32  # that FFmpeg tries
MOST = 5_000_000  # bytes that FFmpeg looks at, whatever rate and channels a header claims
PACKET_SECONDS = 0.1  # the samples of a packet are the largest power of two that takes no longer
PCM, EXTENSIBLE, BITS = 1, 0xFFFE, 16
# As two 16-bit words, little endian.
SYNC_WORDS = (
    (0xFE7F, 0x0180),  # DTS (ETSI TS 102 114): core frames of 16 bits, big and little endian
    (0x7FFE, 0x8001),
    (0xFF1F, 0x00E8),  # ... of 14 bits
    (0x1FFF, 0xE800),
    (0xF872, 0x4E1F),  # IEC 61937: bursts of AC-3 and others, as S/PDIF carries them
)


def probe_options(file: BinaryIO) -> dict[str, str]:
    """Options for FFmpeg to open `file` with. Moves the position in the file."""
    file.seek(0)
    header = file.read(16)
    is_wave = header[:4] in (b"RIFF", b"RF64", b"BW64") and header[8:12] == b"WAVE"
    if not is_wave and header[:4] != b"riff":
        return {}
    header += file.read(HEADER)
    name_and_length = 8 if is_wave else 24  # a Wave64 chunk has a name of 16 bytes
    format_at, data_at = (header.find(name) + name_and_length for name in (b"fmt ", b"data"))
    if not name_and_length <= format_at < data_at:
        return {}

    def number(at: int, size: int = 2) -> int:
        return int.from_bytes(header[format_at + at : format_at + at + size], "little")

    tag = number(24) if number(0) == EXTENSIBLE else number(0)
    if tag != PCM or (number(14) == BITS and _has_sync_word(file, data_at, number(4, 4), number(12))):
        return {}
    return {"probesize": "32"}  # the least that FFmpeg takes: one packet


def _has_sync_word(file: BinaryIO, start: int, rate: int, frame_bytes: int) -> bool:
    """Whether one of `SYNC_WORDS` is in the packets from `start` on that FFmpeg tries, and not once, as by chance."""
    samples = 1 << max(0, int(PACKET_SECONDS * rate).bit_length() - 1)
    file.seek(start)
    content = file.read(min(MOST, PACKETS * samples * frame_bytes))
    words = np.frombuffer(content[: len(content) // 2 * 2], "<u2")
    counts = [(words[np.flatnonzero(words[:-1] == first) + 1] == second).sum() for first, second in SYNC_WORDS]
    return max(counts) > 1
