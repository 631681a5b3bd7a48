"""What a job of SLURM executes: ``python -m optlab.launch.job BATCH_FILE``.

Exit codes: 0 every run of the job is done; 1 one has failed; 75 stopped by USR2 and saved, so that
the job script requeues the job; 143 stopped by TERM and saved, which SLURM itself follows up.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

REQUEUE = 75
TERMINATED = 143


class Stop:
    """Which stop signals have come; nothing else is done where they arrive."""

    def __init__(self) -> None:
        self.user = False  # USR2: the time limit is near, or the job is being preempted
        self.terminate = False  # TERM: cancelled, requeued by hand, or out of time

    def listen(self) -> None:
        signal.signal(signal.SIGUSR2, self._set)
        signal.signal(signal.SIGTERM, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGUSR2:
            self.user = True
        else:
            self.terminate = True

    def __call__(self) -> bool:
        return self.user or self.terminate

    @property
    def exit_code(self) -> int:
        """Of a job that was stopped. After a USR2, TERM is only SLURM's impatience."""
        return REQUEUE if self.user else TERMINATED


def main(arguments: list[str]) -> int:
    stop = Stop()
    stop.listen()  # before the imports below, which take long enough to be killed in
    from .pack import train_pack

    return train_pack(arguments[0], stop)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
