// Jobs that ended without a result, grouped by vendor and code, each with its messages: as a table with the buttons that mend them.

import { changeMany } from "./actions.js";
import { el, link, table } from "./dom.js";
import { count, when } from "./words.js";

/** What the codes of a job's error mean, and what to do about them. */
const ADVICE = {
  vendor_refused: "The vendor says that these requests are wrong. Mend what sends them, or the vendor's config, then replay.",
  attempts_exhausted: "The vendor failed at every attempt. When it is well again, replay.",
  timeout: "The vendor did not answer in time at any attempt. When it is well again, replay.",
  no_answer:
    "The vendor accepted these and never called back, or never finished. Ask the vendor whether callbacks reach server.public_url; then replay.",
  bad_response:
    "The vendor's answers could not be read. Compare them with expect, result and replies in the config; then replay.",
  response_too_large: "The vendor's answers were larger than what is taken.",
  deadline: "These were not served before their own deadline. Look whether the limits are too low for what comes in.",
  crashed: "A process ended during the call too often. Look into its log; then replay.",
  unknown_outcome:
    "A call was under way when its process ended, and this vendor may be called only once. Ask the vendor; then replay by hand.",
};

export function failureTable(failures, most = Infinity) {
  const groups = new Map();
  for (const failure of failures) {
    const id = JSON.stringify([failure.vendor, failure.code]);
    const group = groups.get(id) ?? { id, vendor: failure.vendor, code: failure.code, count: 0, messages: [], last_at: "" };
    group.count += failure.count;
    group.messages.push(failure);
    if (failure.last_at > group.last_at) group.last_at = failure.last_at;
    groups.set(id, group);
  }
  const shown = [...groups.values()].sort((a, b) => b.count - a.count).slice(0, most);
  return table("Failures", ["Jobs", "Vendor and reason", "Last", "Actions"], ["num", "", "wide", ""], shown.map(row), "groups");
}

function row({ id, vendor, code, count: n, messages, last_at }) {
  return el(
    "tr",
    { key: id },
    el("td", { class: "num" }, el("strong", null, count(n))),
    el(
      "td",
      null,
      el("p", null, link(["vendors", vendor], {}, vendor), " ", el("code", null, code)),
      el(
        "ul",
        { class: "messages" },
        messages
          .slice(0, 5)
          .map((message) =>
            el(
              "li",
              { key: message.message },
              messages.length > 1 ? `${count(message.count)} × ` : null,
              el("span", { class: "data" }, message.message),
              " ",
              link(["jobs", message.request_id], {}, "an example"),
            ),
          ),
      ),
      messages.length > 5 ? el("p", { class: "advice" }, `and ${count(messages.length - 5)} other messages`) : null,
      el("p", { class: "advice" }, ADVICE[code] ?? ""),
    ),
    el("td", { class: "wide" }, when(last_at)),
    el(
      "td",
      null,
      el(
        "span",
        { class: "buttons" },
        el(
          "button",
          {
            type: "button",
            class: "main",
            "aria-label": `Replay jobs of ${vendor} with ${code}`,
            onclick: () => changeMany("replay", { vendor, code }),
          },
          "Replay …",
        ),
        link(["jobs"], { vendor, code }, "Show the jobs"),
      ),
    ),
  );
}
