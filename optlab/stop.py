"""The flag by which a signal asks a training to save and stop."""

from __future__ import annotations

import signal
from types import FrameType


class StopFlag:
    """Set by a signal; the run saves and stops at the next step boundary."""

    def __init__(self) -> None:
        self.is_set = False

    def listen(self, *signals: signal.Signals) -> None:
        """Let these signals set the flag instead of ending the process."""
        for number in signals:
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.is_set = True
