"""Text from files, models and machines on its way to a terminal."""

from __future__ import annotations

from solon.files.plain_text import visible as visible
