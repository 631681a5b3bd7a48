"""What is asked of a real SLURM about its jobs."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optlab.launch.queue import NoSlurm, alive, seconds_of, tasks, why_ended

from .conftest import Submit, Wait


def test_jobs_are_known_by_array_and_task(submit: Submit, wait_until: Wait) -> None:
    array = submit("sleep 60", "--array=0-2%1")
    single = submit("sleep 60", "--hold")
    wait_until(lambda: alive()[f"{array}_0"].state == "running")

    jobs = alive()

    assert jobs[f"{array}_0"].node
    assert jobs[f"{array}_0"].reason == ""
    assert jobs[f"{array}_2"].state == "queued"
    assert jobs[f"{array}_2"].reason == "JobArrayTaskLimit"
    assert (jobs[single].state, jobs[single].reason) == ("queued", "JobHeldUser")
    assert jobs[single].seconds == 0


def test_a_job_is_alive_as_soon_as_it_is_submitted(submit: Submit) -> None:
    for _ in range(5):
        assert submit("sleep 60") in alive()


def test_a_filter_of_the_user_hides_no_job(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SQUEUE_USERS", "nobody")
    monkeypatch.setenv("SQUEUE_STATES", "COMPLETED")

    assert submit("sleep 60") in alive()


def test_every_end_is_explained(submit: Submit, wait_until: Wait) -> None:
    fails = submit("exit 3")
    killed = submit("kill -KILL $$")
    cancelled = submit("sleep 60", "--array=0-1")
    never_started = submit("sleep 60", "--hold", "--array=0-3%2")
    wait_until(lambda: alive()[f"{cancelled}_1"].state == "running")
    subprocess.run(["scancel", f"{cancelled}_1", never_started], check=True)
    ended = {fails, killed, f"{cancelled}_1", f"{never_started}_3"}
    wait_until(lambda: not ended & set(alive()))

    def explained() -> dict[str, str] | None:
        reasons = why_ended([*ended, "999999"])
        later = [job for job in ended if reasons[job].startswith(("UNKNOWN", "RUNNING", "PENDING"))]
        return None if later else reasons  # accounting lags

    reasons = wait_until(explained)

    assert reasons[fails] == "FAILED (exit code 3)"
    assert reasons[killed] == "FAILED (killed by SIGKILL)"
    assert reasons[f"{cancelled}_1"].startswith("CANCELLED (by user ")
    assert reasons[f"{never_started}_3"].startswith("CANCELLED (by user ")
    assert reasons["999999"] == "UNKNOWN (sacct does not know the job)"


def test_a_machine_without_slurm_says_so(no_slurm: None) -> None:
    with pytest.raises(NoSlurm, match="no SLURM on this machine") as raised:
        alive()

    assert not raised.value.installed
    assert why_ended(["7_1"])["7_1"].startswith("UNKNOWN (There is no SLURM")


def test_a_slurm_that_does_not_answer_is_told_from_none(
    unanswering: None,
) -> None:
    with pytest.raises(NoSlurm, match="squeue does not answer: ") as raised:
        alive()

    assert raised.value.installed


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:07", 7), ("12:00", 720), ("1:00:01", 3601), ("2-01:00:00", 176400), ("INVALID", 0)],
)
def test_times_of_slurm_are_seconds(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@given(st.sets(st.integers(0, 40), min_size=1))
def test_tasks_that_slurm_names_together_are_told_apart(members: set[int]) -> None:
    ranges = ",".join(str(task) for task in sorted(members))

    assert tasks(f"7_[{ranges}%3]") == [f"7_{task}" for task in sorted(members)]
    assert tasks(f"7_[{min(members)}-{max(members)}]") == [
        f"7_{task}" for task in range(min(members), max(members) + 1)
    ]
    assert tasks("7_1") == ["7_1"]
