// Making elements, and changing what is shown into what should be shown.
// Never reads markup: whatever comes in as text goes out as text.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element. Functions in `props` are listeners (`onclick`), `key` names it among its siblings, `own` leaves what is
 * inside to itself, everything else is an attribute; null and false are left out. Children are nodes, texts, or lists of these.
 */
export function el(tag, props, ...children) {
  return build(document.createElement(tag), props, children);
}

export function svg(tag, props, ...children) {
  return build(document.createElementNS(SVG, tag), props, children);
}

function build(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value == null || value === false) continue;
    if (typeof value === "function") listen(node, name.slice(2), value);
    else if (name === "key" || name === "own") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...nodes(children));
  return node;
}

function nodes(children) {
  const shown = children.flat(Infinity).filter((child) => child != null && child !== false);
  return shown.map((child) => (child instanceof Node ? child : document.createTextNode(child)));
}

function listen(node, type, listener) {
  node.listeners ??= {};
  if (!(type in node.listeners)) node.addEventListener(type, dispatch);
  node.listeners[type] = listener;
}

function dispatch(event) {
  return event.currentTarget.listeners[event.type]?.(event);
}

/** Makes these the children of `parent`. Elements that are there already stay, and with them focus and scroll positions. */
export function show(parent, ...children) {
  morphChildren(parent, nodes(children));
}

function morphChildren(parent, wanted) {
  const old = named(parent.childNodes);
  const next = named(wanted);
  for (const [name, have] of old) {
    if (next.get(name)?.nodeName !== have.nodeName) {
      old.delete(name);
      have.remove();
    }
  }
  let at = parent.firstChild;
  for (const [name, want] of next) {
    const have = old.get(name);
    if (!have) {
      parent.insertBefore(want, at);
    } else {
      if (have === at) at = at.nextSibling;
      else parent.insertBefore(have, at);
      morph(have, want);
    }
  }
}

/** Siblings by what tells one from the other: its key, or else its kind and its place among those of that kind. */
function named(siblings) {
  const counts = new Map();
  const names = [...siblings].map((node) => {
    if (node.key != null) return [node.key, node];
    const kind = `${node.nodeName} ${node.classList?.[0] ?? ""}`;
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
    return [`${kind} ${counts.get(kind)}`, node];
  });
  return new Map(names);
}

function morph(have, want) {
  if (have === want || have.own) return;
  if (have.nodeType === Node.TEXT_NODE) {
    if (have.data !== want.data) have.data = want.data;
    return;
  }
  for (const { name } of [...have.attributes]) {
    // Whether a <details> is open is up to whoever looks.
    if (!want.hasAttribute(name) && name !== "open") have.removeAttribute(name);
  }
  for (const { name, value } of want.attributes) {
    if (have.getAttribute(name) !== value) have.setAttribute(name, value);
  }
  for (const [type, listener] of Object.entries(want.listeners ?? {})) listen(have, type, listener);
  for (const type of Object.keys(have.listeners ?? {})) {
    if (!want.listeners?.[type]) have.listeners[type] = null;
  }
  have.key = want.key;
  morphChildren(have, [...want.childNodes]);
}

/** A part of a page with a heading. */
export function section(id, heading, ...children) {
  return el("section", { key: id, class: id, "aria-labelledby": id }, el("h2", { id }, heading), ...children);
}

/** A table, each column with its class; it scrolls by itself where it is too wide. Columns with the class `wide` are left out on a phone. */
export function table(label, head, classes, rows, kind) {
  const names = head.map((text, i) => el("th", { scope: "col", class: classes[i] }, text));
  const grid = el("table", { class: kind }, el("thead", null, el("tr", null, names)), el("tbody", null, rows));
  return el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": label }, grid);
}

/** A link within the dashboard: `#/jobs?vendor=x`. The parts are escaped. */
export function link(parts, query, ...children) {
  return el("a", { href: address(parts, query) }, ...children);
}

/** The address of a page: its path's parts, and the parameters that have a value. */
export function address(parts, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value != null && value !== "");
  const text = new URLSearchParams(given).toString();
  return "#/" + parts.map(encodeURIComponent).join("/") + (text ? "?" + text : "");
}

/** Says something to people who do not see the page, and shows it for some seconds to those who do. */
export function say(text, kind = "info") {
  const region = document.getElementById(kind === "bad" ? "alerts" : "news");
  const note = el("p", { class: `note ${kind}` }, text);
  region.append(note);
  setTimeout(() => note.remove(), kind === "bad" ? 12000 : 6000);
}

/**
 * Asks in a dialog; resolves when it closes. `content(close)` makes what is inside. Escape closes it, and the focus goes back
 * to where it was.
 */
export function dialog(title, content) {
  return new Promise((resolve) => {
    const before = document.activeElement;
    const close = () => box.close();
    const box = el("dialog", { "aria-labelledby": "dialog-title" }, el("h2", { id: "dialog-title" }, title));
    box.append(...nodes([content(close)]));
    box.addEventListener("close", () => {
      box.remove();
      if (before?.isConnected) before.focus();
      resolve();
    });
    document.body.append(box);
    box.showModal();
  });
}

/** Copies a text; where the browser does not let us, shows it to be copied by hand. */
export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied.`);
  } catch {
    const area = el("textarea", { readonly: true, rows: 8, "aria-label": what }, text);
    const opened = dialog(`${what}: copy it from here`, (close) => [
      area,
      el("p", { class: "buttons" }, el("button", { type: "button", onclick: close }, "Close")),
    ]);
    area.select();
    await opened;
  }
}
