"""A real browser for the page: Chromium without a window and without a network."""

from __future__ import annotations

import shutil
import subprocess
import zlib
from dataclasses import dataclass
from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--proxy-server=127.0.0.1:9",  # nobody listens there: no network
)
DEADLINE_S = 120


def chromium() -> str | None:
    """The browser's path; None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@dataclass
class Picture:
    """What the browser drew and what it complained of."""

    png: bytes
    console: list[str]

    @property
    def corner(self) -> str:
        """The colour of the first pixel: `#rrggbb`. No filter changes it, as nothing is left of it or above."""
        return "#" + self._lines()[0][1:4].hex()

    @property
    def different_lines(self) -> int:
        """How many lines differ from the one above: next to none on a blank page."""
        return len(set(self._lines()))

    def _lines(self) -> list[bytes]:
        width, depth, kind = int.from_bytes(self.png[16:20], "big"), self.png[24], self.png[25]
        assert depth == 8
        assert kind in (2, 6), "a PNG in colour, with or without transparency"
        raw = zlib.decompress(self._packed())
        step = 1 + width * (3 if kind == 2 else 4)
        return [raw[start : start + step] for start in range(0, len(raw), step)]

    def _packed(self) -> bytes:
        packed, place = b"", 8
        while place < len(self.png):
            length, name = int.from_bytes(self.png[place : place + 4], "big"), self.png[place + 4 : place + 8]
            packed += self.png[place + 8 : place + 8 + length] if name == b"IDAT" else b""
            place += 12 + length
        return packed


def picture(page: Path, folder: Path, *, width: int = 1280, height: int = 2400, dark: bool = False) -> Picture:
    """Opens the page; the folder is for the browser's own files."""
    shot = folder / "shot.png"
    _run(page, folder, f"--window-size={width},{height}", f"--screenshot={shot}", dark=dark)
    return Picture(shot.read_bytes(), _console(folder))


def dom(page: Path, folder: Path, *, width: int = 1280) -> str:
    """The page as the browser has it after it was loaded, its scripts run."""
    return _run(page, folder, f"--window-size={width},900", "--dump-dom", dark=False)


def _run(page: Path, folder: Path, *flags: str, dark: bool) -> str:
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [chromium() or "chromium", *FLAGS, scheme, f"--user-data-dir={folder / 'profile'}", *flags, page.as_uri()]
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, timeout=DEADLINE_S, check=True, text=True)
    return done.stdout


def _console(folder: Path) -> list[str]:
    return [line for line in (folder / "log").read_text(errors="replace").splitlines() if ":CONSOLE" in line]
