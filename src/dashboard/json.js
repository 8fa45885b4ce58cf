// JSON as text: found, cut out and shown without ever becoming values, so that each number keeps its digits and each key its place.
// Never builds more of a tree than is open, nor more than a bounded number of members at once.

import { copy, el } from "./dom.js";

/** Members that are shown at once, and characters of a text. */
const MOST_MEMBERS = 100;
const MOST_TEXT = 400;

const SPACE = /[ \t\n\r]*/y;
const PLAIN = /[^\s,\]}]*/y;
const STRUCTURE = /["[\]{}]/g;
const QUOTE = /["\\]/g;

const match = (pattern, text, at) => {
  pattern.lastIndex = at;
  return pattern.exec(text);
};

const skipSpace = (text, at) => at + match(SPACE, text, at)[0].length;

/** The place after the string that begins at `at`. */
function endOfString(text, at) {
  for (let i = at + 1; ;) {
    const found = match(QUOTE, text, i);
    if (!found) return text.length;
    if (found[0] === '"') return found.index + 1;
    i = found.index + 2;
  }
}

/** The place after the value that begins at `at`: a loop, however deep it is. */
export function endOfValue(text, at) {
  if (text[at] === '"') return endOfString(text, at);
  if (text[at] !== "{" && text[at] !== "[") return at + match(PLAIN, text, at)[0].length;
  for (let i = at, depth = 0; ;) {
    const found = match(STRUCTURE, text, i);
    if (!found) return text.length;
    i = found.index + 1;
    if (found[0] === '"') i = endOfString(text, found.index);
    else depth += found[0] === "{" || found[0] === "[" ? 1 : -1;
    if (depth === 0) return i;
  }
}

/** The members of the object or array that begins at `at`, one by one: `{name, value, start, end}`, each text as it is written. */
export function* members(text, at = 0) {
  at = skipSpace(text, at);
  const isObject = text[at] === "{";
  let i = skipSpace(text, at + 1);
  while (i < text.length && text[i] !== "}" && text[i] !== "]") {
    let name = null;
    if (isObject) {
      const end = endOfString(text, i);
      name = text.slice(i, end);
      i = skipSpace(text, skipSpace(text, end) + 1); // after the colon
    }
    const end = endOfValue(text, i);
    yield { name, value: text.slice(i, end), start: i, end };
    i = skipSpace(text, end);
    if (text[i] !== ",") return;
    i = skipSpace(text, i + 1);
  }
}

/** Takes members with these names out of an object: their texts, and the object as values with null in their places. */
export function split(text, names) {
  const raw = {};
  let rest = "";
  let at = 0;
  for (const { name, value, start, end } of members(text)) {
    const plain = name.slice(1, -1);
    if (!names.includes(plain)) continue;
    raw[plain] = value;
    rest += text.slice(at, start) + "null";
    at = end;
  }
  return { raw, values: JSON.parse(rest + text.slice(at)) };
}

/** Whether a text is exactly one value, by the places where it begins and ends; what is inside is the API's to check. */
export function isOneValue(text) {
  const start = skipSpace(text, 0);
  const end = endOfValue(text, start);
  return end > start && skipSpace(text, end) === text.length;
}

/** A value as a tree, with a button that copies it as it is. */
export function tree(text, label) {
  const trimmed = text.trim();
  return el(
    "section",
    { class: "json", "aria-label": label },
    el(
      "p",
      { class: "json-head" },
      el("strong", null, label),
      el("button", { type: "button", class: "quiet", onclick: () => copy(text, label) }, "Copy"),
    ),
    el(
      "div",
      { class: "json-body", tabindex: 0, role: "group", "aria-label": `${label}, as a tree` },
      node(null, trimmed, trimmed.length < 20000),
    ),
  );
}

function node(name, value, isOpen) {
  const label = name == null ? [] : [el("span", { class: "name" }, name), ": "];
  if (value[0] !== "{" && value[0] !== "[") return el("div", { class: "leaf" }, label, leaf(value));
  const [open, end] = value[0] === "{" ? ["{", "}"] : ["[", "]"];
  if (/^[{[]\s*[}\]]$/.test(value)) return el("div", { class: "leaf" }, label, `${open}${end}`);
  const inside = el("div", { class: "inside" });
  const details = el(
    "details",
    { open: isOpen },
    el("summary", null, label, el("span", { class: "punct" }, `${open} … ${end}`)),
    inside,
  );
  const fill = () => {
    if (details.open && !inside.firstChild) more(inside, members(value), value[0] === "[" ? 0 : null, isOpen);
  };
  details.addEventListener("toggle", fill);
  fill();
  return details;
}

/** Adds the next members, and a button if there are others. */
function more(inside, rest, index, isOpen) {
  for (let n = 0; n < MOST_MEMBERS; n++) {
    const next = rest.next();
    if (next.done) return;
    const { name, value } = next.value;
    inside.append(node(name ?? (index == null ? null : String(index + n)), value, isOpen && n < 20));
  }
  const button = el("button", { type: "button", class: "quiet" }, `Show ${MOST_MEMBERS} more`);
  button.addEventListener("click", () => {
    button.remove();
    more(inside, rest, index == null ? null : index + MOST_MEMBERS, false);
  });
  inside.append(button);
}

function leaf(value) {
  const kind = value[0] === '"' ? "string" : value === "true" || value === "false" || value === "null" ? "word" : "number";
  const shown = el("span", { class: kind }, value.length > MOST_TEXT ? value.slice(0, MOST_TEXT) : value);
  if (value.length <= MOST_TEXT) return shown;
  const button = el("button", { type: "button", class: "quiet" }, `… all ${value.length} characters`);
  button.addEventListener("click", () => {
    shown.textContent = value;
    button.remove();
  });
  return [shown, button];
}
