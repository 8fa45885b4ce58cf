// Small charts, drawn as SVG: rates over the last minutes, and how much of a limit is used.
// Never sets a style: colours come from classes, because the page's policy allows no styles but those of its own file.

import { el, svg } from "./dom.js";
import { count, duration, rate } from "./words.js";

const WIDTH = 600;
const HEIGHT = 120;
/** A chart is never shorter than this; it grows while the page is open. */
const LEAST_MS = 30_000;

/** Values by second, kept for some minutes while the page is open: `{at, values: {name: number}}`. */
export class History {
  constructor(seconds = 180) {
    this.seconds = seconds;
    this.points = [];
  }

  add(at, values) {
    const last = this.points.at(-1);
    if (last && at <= last.at) return;
    this.points.push({ at, values });
    while (this.points[0].at < at - this.seconds * 1000) this.points.shift();
  }
}

/**
 * Lines over time. `series` is `[{name, label, kind}]`, `limit` a dashed line at so many a second. The latest values are in the
 * legend, as text.
 */
export function lines({ history, series, limit = null, label }) {
  const { points } = history;
  const end = points.at(-1)?.at ?? 0;
  const start = Math.max(end - history.seconds * 1000, Math.min(points[0]?.at ?? end, end - LEAST_MS));
  const all = points.flatMap(({ values }) => series.map(({ name }) => values[name] ?? 0));
  const most = nice(Math.max(limit == null ? 0 : limit * 1.1, ...all, 1));
  const x = (at) => (((at - start) / (end - start || 1)) * WIDTH).toFixed(1);
  const y = (value) => (HEIGHT - 2 - (value / most) * (HEIGHT - 8)).toFixed(1);
  const line = ({ name, kind }) => {
    const known = points.filter(({ values }) => values[name] != null);
    return svg("polyline", {
      class: `line ${kind}`,
      points: known.map(({ at, values }) => `${x(at)},${y(values[name])}`).join(" "),
    });
  };
  const legend = (values) => [
    series.map(({ name, label, kind }) => el("span", { class: `key ${kind}` }, `${label} `, el("b", null, rate(values?.[name])))),
    limit == null ? null : el("span", { class: "key limit" }, "limit ", el("b", null, rate(limit))),
  ];
  const text = el("p", { class: "legend" }, legend(points.at(-1)?.values), el("span", { class: "unit" }, "a second"));
  const picture = svg(
    "svg",
    { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": label },
    [0, 0.5].map((part) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y(most * part), y2: y(most * part) })),
    limit == null ? null : svg("line", { class: "line limit", x1: 0, x2: WIDTH, y1: y(limit), y2: y(limit) }),
    series.map(line),
  );
  return el(
    "figure",
    { class: "lines" },
    text,
    el("div", { class: "plot" }, picture, el("span", { class: "most", "aria-hidden": "true" }, rate(most))),
    el("figcaption", null, el("span", null, `${duration(Math.round((end - start) / 1000) * 1000)} ago`), el("span", null, "now")),
  );
}

/** The next round number, so that the scale does not move with every value. */
function nice(most) {
  const step = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 5, 10].map((n) => n * step).find((n) => n >= most);
}

/** A small line without words; what it shows is said beside it. */
export function spark(values, limit = null) {
  const most = Math.max(limit ?? 0, ...values, 1);
  const y = (value) => (19 - (value / most) * 18).toFixed(1);
  const points = values.map((value, i) => `${((i / Math.max(values.length - 1, 1)) * 80).toFixed(1)},${y(value)}`).join(" ");
  return svg(
    "svg",
    { class: "spark", viewBox: "0 0 80 20", preserveAspectRatio: "none", "aria-hidden": "true" },
    limit == null ? null : svg("line", { class: "line limit", x1: 0, x2: 80, y1: y(limit), y2: y(limit) }),
    svg("polyline", { class: "line sent", points }),
  );
}

/** How much of a limit is used: a bar, with the numbers beside it. */
export function gauge({ id, calls, used }) {
  const part = calls > 0 ? Math.min(used / calls, 1) : 0;
  return el(
    "span",
    { class: "gauge" },
    svg(
      "svg",
      { viewBox: "0 0 100 8", preserveAspectRatio: "none", role: "img", "aria-label": `limit ${id}: ${used} of ${calls} used` },
      svg("rect", { class: "track", width: 100, height: 8 }),
      svg("rect", { class: "fill", width: (part * 100).toFixed(1), height: 8 }),
    ),
    el("span", { class: "of" }, `${count(used)} / ${count(calls)}`),
  );
}

/** A part of a whole time, as a bar: of the timeline of a job. */
export function span(from, to, kind) {
  const start = Math.max(0, Math.min(from, 1)) * 100;
  const width = Math.max((Math.min(to, 1) - Math.max(from, 0)) * 100, 0.6);
  return svg(
    "svg",
    { class: "span", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: 100, height: 6 }),
    svg("rect", { class: kind, x: Math.min(start, 99.4).toFixed(2), width: width.toFixed(2), height: 6 }),
  );
}
