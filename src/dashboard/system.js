// The processes, what they stand on, and the config that is in force; secrets come masked.

import { read } from "./api.js";
import { el, section, table } from "./dom.js";
import { duration, NONE, when } from "./words.js";

export const title = () => "System";

export function open(view) {
  view.show(el("h1", null, "System"), el("p", { class: "loading" }, "Reading …"));
  view.every(5000, async (signal) => {
    const system = await read("/system", { signal });
    view.show(el("h1", null, "System"), page(system));
  });
}

function page({ process, uptime_s, processes, store, redis, config }) {
  const fact = (name, ...value) => el("div", null, el("dt", null, name), el("dd", null, value));
  const well = (status) => el("span", { class: `state ${status === "ok" ? "good" : "bad"}` }, status);
  return [
    el(
      "dl",
      { class: "facts-list" },
      fact("Version", process.version),
      fact("Up", duration(uptime_s * 1000)),
      fact("Store", `${store.kind}, schema ${store.schema} `, well(store.status)),
      fact("Redis", redis ? [redis.version ?? "", " ", well(redis.status)] : "not needed"),
      fact("Config", el("code", null, config.hash)),
    ),
    config.warnings.length
      ? section(
          "warnings",
          ["Warnings"],
          el(
            "ul",
            null,
            config.warnings.map((text) => el("li", null, text)),
          ),
        )
      : null,
    section("processes", "Processes", processTable(processes, process, config)),
    section(
      "settings",
      ["Config in force"],
      Object.entries(config.vendors).map(([name, lines]) =>
        el(
          "details",
          { key: name },
          el("summary", null, el("span", { class: "data" }, name)),
          el("pre", { class: "data", tabindex: 0 }, lines.join("\n")),
        ),
      ),
      el(
        "div",
        { class: "scroll", tabindex: 0, role: "group", "aria-label": "Settings" },
        el(
          "table",
          { class: "settings" },
          el(
            "tbody",
            null,
            Object.entries(config.settings).map(([name, value]) =>
              el(
                "tr",
                { key: name },
                el("th", { scope: "row" }, el("code", null, name)),
                el("td", { class: "data" }, value == null ? NONE : String(value)),
              ),
            ),
          ),
        ),
      ),
    ),
  ];
}

function processTable(processes, own, config) {
  const row = (process) =>
    el(
      "tr",
      { key: process.id },
      el(
        "th",
        { scope: "row" },
        el("code", null, process.id),
        process.id === own.id ? el("small", null, " answers this page") : null,
      ),
      el("td", null, process.roles.join(", ")),
      el("td", { class: "wide" }, process.version),
      el("td", { class: "wide" }, when(process.started_at)),
      el(
        "td",
        null,
        process.alive
          ? el("span", { class: "state good" }, "alive")
          : [el("span", { class: "state bad" }, "not seen"), " ", when(process.last_seen)],
      ),
      el(
        "td",
        { class: "wide" },
        el("code", null, process.config),
        process.config === config.hash ? null : el("strong", { class: "bad" }, " differs"),
      ),
    );
  const head = ["Process", "Roles", "Version", "Started", "State", "Config"];
  const classes = ["", "", "wide", "wide", "", "wide"];
  return table("Processes", head, classes, processes.map(row));
}
