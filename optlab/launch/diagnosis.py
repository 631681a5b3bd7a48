"""What a failure means and what helps, told from its words."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    """A kind of failure."""

    kind: str
    pattern: re.Pattern[str]  # in the cause, or in the last lines of the traceback
    advice: str


def _kind(kind: str, pattern: str, advice: str) -> Diagnosis:
    return Diagnosis(kind, re.compile(pattern, re.IGNORECASE), advice)


# The first that fits holds; SLURM's words stand at the beginning of a cause.
_KINDS = (
    _kind(
        "out of memory",
        r"out of memory|OUT_OF_MEMORY|OutOfMemoryError|\bMemoryError|can't allocate memory"
        r"|CUBLAS_STATUS_ALLOC_FAILED|oom[-_ ]kill",
        "Ask for more memory (hydra.launcher.memory=32G, or a larger GPU by "
        "hydra.launcher.constraint), run fewer side by side, or shrink train.batch_size, which "
        "makes other runs of these.",
    ),
    _kind(
        "disk full",
        r"No space left on device|Disk quota exceeded|ENOSPC",
        "Free some space, or choose another folder with runtime.runs=...; finished runs are "
        "intact. Then retry.",
    ),
    _kind(
        "node lost",
        r"^(NODE_FAIL|BOOT_FAIL|REVOKED)|is gone: no sign of life",
        "Nothing was wrong with the run: retry. If it is always the same node, exclude it "
        "(+hydra.launcher.additional.exclude=NODE).",
    ),
    _kind(
        "time limit",
        r"^(TIMEOUT|DEADLINE)",
        "Retry: it goes on from its checkpoint. If it never gets to save one, raise "
        "hydra.launcher.time or lower runtime.checkpoint_every.",
    ),
    _kind(
        "preempted too often",
        r"^PREEMPTED|requeued? .*times|too many requeues|max_requeues",
        "Retry at a quieter time or in a partition that is not preempted, or raise "
        "hydra.launcher.max_requeues; the checkpoint is kept.",
    ),
    _kind(
        "damaged files",
        r"is damaged|holds no readable run|was changed after the run was launched"
        r"|No such file or directory|JSONDecodeError",
        "Look at the folder: if a file of the run is torn or was edited, delete the folder, then "
        "retry to train the run anew.",
    ),
    _kind(
        "killed",
        r"killed by (SIG|signal)|was killed by",
        "Something ended the process from outside, most often the system for want of memory: ask "
        "for more (hydra.launcher.memory), or train fewer at a time (hydra.launcher.workers). "
        "Then retry.",
    ),
    _kind(
        "gone without a word",
        r"^(UNKNOWN|COMPLETED|RUNNING|PENDING|FAILED)|its job is gone|submission broke off",
        "The job ended before it could say why: look at its output (python -m optlab logs RUN), "
        "which may say that the node could not start it or not read the code. Then retry.",
    ),
)
_CODE = Diagnosis(
    "exception in the code",
    re.compile(""),
    "Read the traceback (python -m optlab logs RUN), mend the code or the config, then retry.",
)


def diagnosis(cause: str, detail: str = "") -> Diagnosis:
    """The kind of failure that a cause, and the end of its traceback, speak of."""
    for known in _KINDS:
        if known.pattern.search(cause):
            return known
    end = "\n".join(detail.rstrip().splitlines()[-1:])
    for known in _KINDS:
        if end and known.pattern.search(end):
            return known
    return _CODE


def alike(cause: str) -> str:
    """A cause without what differs between runs: numbers, ids, folders."""
    first = cause.partition("\n")[0]
    first = re.sub(r"(?:/[\w.+-]+){2,}", "PATH", first)
    first = re.sub(r"\b[0-9a-f]{12}\b", "RUN", first)
    return re.sub(r"\d+(?:\.\d+)?", "#", first)
