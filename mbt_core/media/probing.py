"""How much of a file FFmpeg looks at when it opens one.

Of .wav and .w64 files with 16-bit samples it tries, packet by packet, whether they are DTS or AC-3 that is declared as
PCM: 33 ms for a minute of CD sound, and about 1 ms without. Frames of DTS, and bursts of AC-3, begin with a sync word:
where there is none of these, there is nothing to try.
"""

from __future__ import annotations

from typing import BinaryIO

HEADER = 4096  # bytes within which the chunk "fmt " is expected
TRIED = 128 << 10  # bytes: FFmpeg tries 32 packets of at most 4 KiB
PCM, EXTENSIBLE = 1, 0xFFFE
SYNC_WORDS = (
    b"\x7f\xfe\x80\x01",  # DTS (ETSI TS 102 114): core frames of 16 bits, big and little endian
    b"\xfe\x7f\x01\x80",
    b"\x1f\xff\xe8\x00",  # ... of 14 bits
    b"\xff\x1f\x00\xe8",
    b"\x72\xf8\x1f\x4e",  # IEC 61937: bursts of AC-3 and others, as S/PDIF carries them
)


def probe_options(file: BinaryIO) -> dict[str, str]:
    """Options for FFmpeg to open `file` with, which has been looked into from its start."""
    file.seek(0)
    header = file.read(16)
    is_wave = header[:4] in (b"RIFF", b"RF64", b"BW64") and header[8:12] == b"WAVE"
    if not is_wave and header[:4] != b"riff":
        return {}
    content = header + file.read(TRIED)
    at = content.find(b"fmt ", 0, HEADER)
    if at < 0:
        return {}
    format_at = at + (8 if is_wave else 24)  # a Wave64 chunk has a name of 16 bytes, and a length of 8
    tag = int.from_bytes(content[format_at : format_at + 2], "little")
    if tag == EXTENSIBLE:
        tag = int.from_bytes(content[format_at + 24 : format_at + 26], "little")
    if tag != PCM or any(word in content for word in SYNC_WORDS):
        return {}
    return {"probesize": "32"}  # the least that FFmpeg takes: one packet
