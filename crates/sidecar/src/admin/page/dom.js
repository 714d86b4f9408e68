// Elements. Every text becomes a text node: names come from clients.
const $ = (id) => document.getElementById(id);

/// Text from elsewhere, without what turns the direction of a line.
const plain = (text) => String(text).replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

/// `attributes` may be just the class.
function el(tag, attributes, ...children) {
  return dress(document.createElement(tag), attributes, children);
}
function svg(tag, attributes, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}
function dress(node, attributes, children) {
  if (typeof attributes === "string") attributes = { class: attributes || null };
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === "") continue;
    node.append(child instanceof Node ? child : document.createTextNode(plain(child)));
  }
  return node;
}

/// Makes an element's children look like `fresh`, and leaves alone what is the same: focus, selection and scrolling
/// stay where they are. Elements with `data-key` are known again wherever they move.
function fill(id, ...fresh) {
  const focused = document.activeElement;
  morphChildren($(id), fresh.flat(3).filter(Boolean));
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
}
const keyOf = (node) => node.dataset?.key;
function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName || keyOf(old) !== keyOf(fresh)) return old.replaceWith(fresh);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  morphChildren(old, [...fresh.childNodes]);
}
function morphChildren(parent, fresh) {
  const wanted = new Set(fresh.map(keyOf).filter(Boolean));
  const known = new Map();
  for (const child of [...parent.children]) {
    if (!keyOf(child)) continue;
    if (wanted.has(keyOf(child))) known.set(keyOf(child), child);
    else child.remove();
  }
  let at = parent.firstChild;
  for (const node of fresh) {
    const match = keyOf(node) ? known.get(keyOf(node)) : at && !keyOf(at) ? at : null;
    if (!match) {
      parent.insertBefore(node, at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else parent.insertBefore(match, at);
    morph(match, node);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

/// A table whose rows become cards where there is no room; the roles keep it a table for who listens to it.
function table(label, heads, rows) {
  const head = heads.map(([text, kind]) => el("th", { class: kind, scope: "col", role: "columnheader" }, text));
  const body = rows.map(({ key, kind, cells }) => el("tr", { class: kind, role: "row", "data-key": key },
    cells.map((cell, n) => {
      cell.dataset.head = heads[n][0];
      cell.setAttribute("role", "cell");
      if (heads[n][1]) cell.classList.add(heads[n][1]);
      return cell;
    })));
  return el("table", { role: "table", "aria-label": label },
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, head)), el("tbody", { role: "rowgroup" }, body));
}

/// A bar: each part is [class, amount], of `whole`.
function bar(label, parts, whole) {
  let x = 0;
  const rects = parts.filter(([, amount]) => amount > 0).map(([kind, amount]) => {
    const width = Math.min(100 - x, 100 * amount / Math.max(whole, 1e-9));
    const rect = svg("rect", { class: kind, x: x.toFixed(2) + "%", width: width.toFixed(2) + "%", height: "100%" });
    x += width;
    return rect;
  });
  return svg("svg", { class: "bar", role: "img", "aria-label": label }, rects);
}
