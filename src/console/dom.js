// Elements without markup in strings: all text goes in as text, so no name can become markup.

const SVG = "http://www.w3.org/2000/svg";

/** Characters that turn the direction of the text after them: with one, a name could pass for another. */
const TURNS = /[\u061C\u200E\u200F\u202A-\u202E\u2066-\u2069]/g;

function plain(text) {
  return typeof text === "string" ? text.replace(TURNS, "\uFFFD") : text;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = plain(value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false).map(plain));
  return element;
}

/** An HTML element with attributes (`on…` are listeners, `text` is its text) and children. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Sets a text, and touches the document only if it differs. */
export function setText(node, text) {
  const shown = plain(text);
  if (node.textContent !== shown) node.textContent = shown;
}

/** Sets an attribute if it differs; `null` removes it. */
export function setAttribute(node, name, value) {
  if (value === null) {
    if (node.hasAttribute(name)) node.removeAttribute(name);
  } else if (node.getAttribute(name) !== String(value)) {
    node.setAttribute(name, value);
  }
}

/** Brings the children of `parent` in line with keyed items, and keeps elements that stay. */
export function keyed(parent, known, items, key, make, update) {
  const seen = new Set();
  let place = parent.firstElementChild;
  for (const item of items) {
    const name = key(item);
    seen.add(name);
    let view = known.get(name);
    if (!view) known.set(name, (view = make(item)));
    update(view, item);
    if (view.element === place) place = place.nextElementSibling;
    else parent.insertBefore(view.element, place);
  }
  for (const [name, view] of known) {
    if (!seen.has(name)) {
      view.element.remove();
      known.delete(name);
    }
  }
}

const toast = document.getElementById("toast");
let fading;

/** Shows a short message for some seconds, and a bad one for longer. */
export function notify(text, bad = false) {
  toast.textContent = text;
  toast.className = bad ? "shown bad" : "shown";
  clearTimeout(fading);
  fading = setTimeout(() => (toast.className = ""), bad ? 20000 : 6000);
}

const dialog = document.getElementById("dialog");
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close();
});

/**
 * Opens the dialog with this title and content; Escape closes it, or a click beside it. `isOpen` and `close` of
 * the result mean this content: another dialog that came after it is left alone.
 */
export function openDialog(title, ...content) {
  const close = h("button", { class: "quiet close", type: "button", "aria-label": "Close", text: "×", onclick: () => dialog.close() });
  const sheet = h("div", { class: "sheet" }, h("h2", { id: "dialog-title", text: title }), close, ...content);
  dialog.replaceChildren(sheet);
  if (!dialog.open) dialog.showModal();
  const isOpen = () => dialog.open && sheet.isConnected;
  return { isOpen, close: () => isOpen() && dialog.close() };
}

/** Closes the dialog, whatever it shows. */
export function closeDialog() {
  dialog.close();
}
