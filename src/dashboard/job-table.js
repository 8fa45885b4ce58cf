// Jobs as the rows of a table: of the list, and of a vendor's newest.

import { el, link, table } from "./dom.js";
import { count, duration, NONE, status, when } from "./words.js";

export function jobTable(jobs) {
  const head = ["Job", "Vendor", "Status", "Attempts", "Tenant", "Tags", "Submitted", "Took"];
  const classes = ["", "", "", "num wide", "wide", "wide", "wide", "num wide"];
  const row = (job) => {
    const cells = [
      link(["jobs", job.request_id], {}, el("code", null, short(job.request_id))),
      el("span", { class: "data" }, job.vendor),
      [
        status(job.status),
        job.error
          ? el("small", null, " ", el("code", null, job.error.code))
          : job.last_error
            ? el("small", null, " ", lastCall(job.last_error))
            : null,
      ],
      count(job.attempts),
      el("span", { class: "data" }, job.tenant),
      job.tags.map((tag) => el("span", { class: "tag data" }, tag)),
      when(job.created_at),
      job.finished_at ? duration(Date.parse(job.finished_at) - Date.parse(job.created_at)) : NONE,
    ];
    return el(
      "tr",
      { key: job.request_id },
      cells.map((cell, i) => (i ? el("td", { class: classes[i] }, cell) : el("th", { scope: "row" }, cell))),
    );
  };
  return table("Jobs", head, classes, jobs.map(row), "jobs");
}

/** How the last call of a job that goes on went. The vendor's status says more than the code of the error. */
function lastCall({ vendor }) {
  return vendor ? `last answered ${vendor.status}` : "last call failed";
}

/** An id's end is what differs between jobs of the same moment. */
export function short(id) {
  return `${id.slice(0, 8)}…${id.slice(-6)}`;
}
