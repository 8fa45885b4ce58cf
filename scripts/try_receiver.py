"""Lets a live service send real result webhooks to a receiver of examples/: each end is taken once, and nothing forged.

python try_receiver.py URL PORT COMMAND...: COMMAND starts the receiver, which is to listen on PORT of 127.0.0.1.
"""

import base64
import hashlib
import hmac
import http.client
import json
import os
import subprocess
import sys
import time
import urllib.request

PATIENCE = 60  # seconds, for any one thing


def wait_until(what, look):
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        if time.monotonic() > end:
            sys.exit(f"try_receiver: {what}: not within {PATIENCE} s")
        time.sleep(0.05)
    return found


def ask(url, method="GET", body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def post(port, body, headers):
    """The receiver's status; None while it does not listen."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/", body, headers)
        return connection.getresponse().status
    except ConnectionRefusedError:
        return None
    finally:
        connection.close()


def signed(secret, body, message="msg_1", at=None):
    at = str(int(time.time() if at is None else at))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(hmac.digest(key, f"{message}.{at}.".encode() + body, hashlib.sha256)).decode()
    return {"webhook-id": message, "webhook-timestamp": at, "webhook-signature": f"v1,{signature}"}


def is_delivered(url, job):
    return ask(f"{url}/jobs/{job}").get("result_webhook", {}).get("status") == "delivered"


def main(url, port, *command):
    port = int(port)
    secret = ask(f"{url}/result-webhooks/secret")["secrets"][0]
    surroundings = os.environ | {"WEBHOOK_SECRET": secret, "PORT": str(port)}
    receiver = subprocess.Popen(command, env=surroundings, stdout=subprocess.PIPE, text=True)
    try:
        wait_until("the receiver listens", lambda: post(port, b"", {}))
        job = {"payload": {"name": "Ada"}, "vendor": "sync", "callback_url": f"http://127.0.0.1:{port}/"}
        printed = []
        for _ in range(2):
            id = ask(f"{url}/jobs", "POST", job)["request_id"]
            wait_until("the end is delivered", lambda: is_delivered(url, id))
            owed = ask(f"{url}/jobs/{id}/result-webhook", "POST")
            assert owed["result_webhook"]["status"] == "pending", owed
            wait_until("the end is delivered again", lambda: is_delivered(url, id))
            printed.append(f"{id} complete")
        body = json.dumps({"request_id": "forged", "status": "complete"}).encode()
        good = signed(secret, body)
        forged = {
            "no signature": {},
            "another secret": signed("whsec_" + base64.b64encode(bytes(32)).decode(), body),
            "another body": signed(secret, body + b" "),
            "another id": good | {"webhook-id": "msg_2"},
            "an old message": signed(secret, body, at=time.time() - 600),
            "no time": good | {"webhook-timestamp": "now"},
            "no scheme": good | {"webhook-signature": "x"},
            "no base64": good | {"webhook-signature": "v1,x"},
        }
        wrong = {name: status for name, headers in forged.items() if (status := post(port, body, headers)) != 401}
        assert not wrong, f"forged, and not refused: {wrong}"
        # The same, rightly signed: so it was the signature that was refused above.
        body = json.dumps({"request_id": "signed", "status": "complete", "result": 1}).encode()
        assert post(port, body, signed(secret, body)) == 204
        printed.append("signed complete")
    finally:
        receiver.terminate()
        lines = receiver.communicate(timeout=PATIENCE)[0].splitlines()
    assert [" ".join(line.split()[:2]) for line in lines] == printed, f"printed: {lines}; the ends are {printed}"
    print(f"try_receiver: {command[-1]} takes each end once, and refuses {len(forged)} forged ones")


main(*sys.argv[1:])
