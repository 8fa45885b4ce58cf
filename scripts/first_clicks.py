"""Sends what the page at /docs has filled in when somebody opens an operation and clicks: it must not be refused.

Left out: operations where something required must be typed in first (a job's id), streams, and what vendors call.
"""

import json
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
            request = filled_in(api, url, template, method, operation)
            if request is None:
                continue
            sent += 1
            try:
                urllib.request.urlopen(request, timeout=30).read()
            except urllib.error.HTTPError as error:
                refused.append(f"{method.upper()} {request.full_url}: {error.code} {error.read().decode()}")
    if refused:
        sys.exit("first clicks that are refused:\n" + "\n".join(refused))
    print(f"first_clicks: {sent} operations take what the page at /docs has filled in")


def is_for_everybody(operation):
    is_stream = "text/event-stream" in operation["responses"].get("200", {}).get("content", {})
    return not is_stream and operation["tags"] != ["Vendor webhooks"]


def filled_in(api, url, template, method, operation):
    """The request as the page prepares it; None if a required parameter is left to the reader."""
    query, headers, path = [], {}, template
    for parameter in operation.get("parameters", []):
        if "$ref" in parameter:
            parameter = api["components"]["parameters"][parameter["$ref"].rsplit("/", 1)[1]]
        value = parameter.get("example", parameter["schema"].get("default"))
        if value is None:
            if parameter.get("required"):
                return None
        elif parameter["in"] == "query":
            query.append((parameter["name"], value))
        elif parameter["in"] == "header":
            headers[parameter["name"]] = value
        else:
            path = path.replace("{" + parameter["name"] + "}", value)
    body = None
    if "requestBody" in operation:
        kind, content = next(iter(operation["requestBody"]["content"].items()))
        headers["Content-Type"] = kind
        body = json.dumps(next(iter(content["examples"].values()))["value"]).encode()
    path += "?" + urllib.parse.urlencode(query) if query else ""
    return urllib.request.Request(url + path, body, headers, method=method.upper())


main(*sys.argv[1:])
