"""Takes result webhooks of Fetchgate on port 8090 and prints the jobs. How to run it: see ../README.md"""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

PORT = int(os.environ.get("PORT", "8090"))
MAX_BODY = 1 << 20  # a job without a large result is well below this
webhook = Webhook(os.environ["WEBHOOK_SECRET"])
seen = set()  # in a real service: a table with the ids of the last day, written together with your own change


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        if length > MAX_BODY:
            return self.answer(413)
        body = self.rfile.read(length)  # exactly as it came: that is what is signed
        try:
            job = webhook.verify(body, dict(self.headers))
        except (WebhookVerificationError, ValueError):  # ValueError: not even written like a signature
            return self.answer(401)
        message = self.headers["webhook-id"]
        if message not in seen:
            seen.add(message)
            print(job["request_id"], job["status"], json.dumps(job.get("result")), flush=True)
        self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Receiver).serve_forever()
