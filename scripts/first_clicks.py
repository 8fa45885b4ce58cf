"""Sends what the page at /docs has filled in when somebody opens an operation, picks an example and clicks: it must not be refused.

Left out: operations where something required must be typed in first (a job's id), streams, and what vendors call. FETCHGATE_KEY is the key,
where the service wants one.
"""

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request

METHODS = ("get", "post", "put", "delete")


def main(path, url):
    api = json.load(open(path, encoding="utf-8"))
    sent, refused = 0, []
    for template, item in api["paths"].items():
        for method in METHODS:
            operation = item.get(method)
            if operation is None or not is_for_everybody(operation):
                continue
            for request in filled_in(api, url, template, method, operation):
                sent += 1
                try:
                    urllib.request.urlopen(request, timeout=30).read()
                except urllib.error.HTTPError as error:
                    refused.append(f"{method.upper()} {request.full_url} {request.data}: {error.code} {error.read().decode()}")
    if refused:
        sys.exit("first clicks that are refused:\n" + "\n".join(refused))
    print(f"first_clicks: {sent} requests that the page at /docs has filled in are taken")


def is_for_everybody(operation):
    is_stream = "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
    return not is_stream and operation["tags"] != ["Vendor webhooks"]


def filled_in(api, url, template, method, operation):
    """The requests as the page prepares them, one for each example of a body; none if a required parameter is left to the reader."""
    key = os.environ.get("FETCHGATE_KEY")
    query, headers, path = [], {"Authorization": f"Bearer {key}"} if key else {}, template
    for parameter in operation.get("parameters", []):
        if "$ref" in parameter:
            parameter = api["components"]["parameters"][parameter["$ref"].rsplit("/", 1)[1]]
        value = parameter.get("example", parameter["schema"].get("default"))
        if value is None:
            if parameter.get("required"):
                return
        elif parameter["in"] == "query":
            query.append((parameter["name"], value))
        elif parameter["in"] == "header":
            headers[parameter["name"]] = value
        else:
            path = path.replace("{" + parameter["name"] + "}", value)
    path += "?" + urllib.parse.urlencode(query) if query else ""
    for kind, body in bodies(operation):
        more = {} if kind is None else {"Content-Type": kind}
        yield urllib.request.Request(url + path, body, headers | more, method=method.upper())


def bodies(operation):
    """(content type, bytes) of every example."""
    if "requestBody" not in operation:
        yield None, None
        return
    for kind, content in operation["requestBody"]["content"].items():
        for example in content["examples"].values():
            is_json = kind == "application/json"
            yield kind, (json.dumps(example["value"]) if is_json else example["value"]).encode()


main(*sys.argv[1:])
