"""Long work under way in a daemon: list, watch, cancel."""

from __future__ import annotations

from typing import TypedDict

import click

from storaged.cli import render
from storaged.cli.invocation import Invocation
from storaged.cli.lazy import command
from storaged.cli.parameters import complete_job
from storaged.job import JobState, Progress

job_argument = click.argument(
    "number", metavar="ID", type=click.IntRange(min=1), shell_complete=complete_job
)


class JobObject(TypedDict):
    """One job."""

    id: int
    #: create, clone, wipe, resize, start ...
    kind: str
    pool: str
    #: null if it works on the pool itself
    volume: str | None
    #: running, done, failed or cancelled
    state: str
    #: bytes
    done: int
    #: bytes; 0 is "not known"
    total: int
    #: seconds since it began
    elapsed: float


@command("list", examples=("storagectl job list", "storagectl job list --json | jq '.[].id'"))
@click.pass_obj
def list_jobs(call: Invocation) -> None:
    """List the long work under way.

    Creates, copies, wipes and the like that anybody began in the daemon. Uploads and downloads
    belong to their clients and are not among them.
    """
    with call.look() as storage:
        objects = [job_object(each) for each in storage.jobs()]
    call.emit(objects, lambda: _table(objects))


@command("watch", examples=("storagectl job watch 12", "storagectl job watch 12 --json"))
@job_argument
@click.pass_obj
def watch(call: Invocation, number: int) -> None:
    """Show the progress of a job until its end.

    Ctrl-C ends the showing, not the job. Ends with an error if the job does.
    """
    with call.look() as storage:
        job = storage.job(number)
        call.watch(job)
        shown = job_object(job.progress())
        what = f"{render.clean(_what(shown))} done"
        call.emit({"action": "watched", "job": shown}, what)


@command("cancel", examples=("storagectl job cancel 12",))
@job_argument
@click.pass_obj
def cancel(call: Invocation, number: int) -> None:
    """Cancel a job and wait until it has put everything back.

    A job that ends before the cancel takes hold has done its work, and this says so.
    """
    from storaged.cli.progress import CANCEL_BOUND

    with call.change() as storage:
        job = storage.job(number)
        job.cancel()
        job.wait(CANCEL_BOUND)
        shown = job_object(job.progress())
    word = {
        JobState.RUNNING: "is being cancelled and has not stopped yet",
        JobState.CANCELLED: "cancelled",
        JobState.DONE: "was done before the cancel took hold",
        JobState.FAILED: "failed before the cancel took hold",
    }[JobState(shown["state"])]
    call.emit({"action": "cancelled", "job": shown}, f"{render.clean(_what(shown))} {word}")


def job_object(progress: Progress) -> JobObject:
    """Return a job."""
    return {
        "id": progress.id,
        "kind": progress.kind,
        "pool": progress.pool,
        "volume": progress.volume,
        "state": str(progress.state),
        "done": progress.done,
        "total": progress.total,
        "elapsed": round(progress.elapsed, 3),
    }


def _what(shown: JobObject) -> str:
    return f"job {shown['id']} ({shown['kind']} {shown['volume'] or shown['pool']})"


def _table(objects: list[JobObject]) -> str:
    rows = [
        (
            str(each["id"]),
            each["kind"],
            each["pool"],
            each["volume"] or "-",
            _share(each),
            render.duration(each["elapsed"]),
        )
        for each in objects
    ]
    return render.table((">Id", "Kind", "Pool", "Volume", "Done", "Elapsed"), rows)


def _share(each: JobObject) -> str:
    if not each["total"]:
        return render.size(each["done"]) if each["done"] else "-"
    return f"{100 * each['done'] // each['total']} % of {render.size(each['total'])}"
