"""Submits a job to Fetchgate, waits for its end and prints it. How to generate `fetchgate_client`: see ../README.md"""

import json
import os
import sys
import time
import uuid

import httpx
from fetchgate_client import AuthenticatedClient, Client
from fetchgate_client.api.jobs import get_job, submit_job
from fetchgate_client.models import Accepted, Job, Problem, Status, SubmitJob

TRIES = 5
ENDED = {Status.COMPLETE, Status.FAILED, Status.EXPIRED, Status.CANCELLED}


def connect():
    url = os.environ.get("FETCHGATE_URL", "http://127.0.0.1:8000")
    key = os.environ.get("FETCHGATE_KEY")  # only where Fetchgate asks for one
    options = {
        "timeout": httpx.Timeout(75),  # longer than Fetchgate waits for a job
        "raise_on_unexpected_status": True,
    }
    return AuthenticatedClient(url, token=key, **options) if key else Client(url, **options)


def call(operation, **arguments):
    """The answer. Tries again, a few times, after a lost connection and where Fetchgate says when (429, 503)."""
    for tries_left in reversed(range(TRIES)):
        pause = 1.0
        try:
            answer = operation.sync_detailed(**arguments)
            if answer.status_code not in (429, 503) or not tries_left:
                break
            pause = float(answer.headers.get("retry-after", pause))
        except httpx.TransportError:
            if not tries_left:
                raise
        time.sleep(pause)
    if isinstance(answer.parsed, Problem):
        raise RuntimeError(f"{answer.parsed.code}: {answer.parsed.detail}")
    return answer.parsed


def run(client, job):
    """Submits a job and waits for its end, however long that takes."""
    # With the same key, trying again makes no second job.
    key = str(uuid.uuid4())
    answer = call(submit_job, client=client, body=job, idempotency_key=key, prefer="wait=10")
    while isinstance(answer, Accepted) or answer.status not in ENDED:
        answer = call(get_job, client=client, id=answer.request_id, wait="30s")
    return answer


if __name__ == "__main__":
    vendor = sys.argv[1] if len(sys.argv) > 1 else "sync"
    ended: Job = run(connect(), SubmitJob(payload={"name": "Ada"}, vendor=vendor))
    print(ended.request_id, ended.status, json.dumps(ended.to_dict().get("result")))
    sys.exit(ended.status != Status.COMPLETE)
