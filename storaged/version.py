"""The version of this distribution: one number, read by the build and by the programs."""

from __future__ import annotations

VERSION = "0.1.0"
