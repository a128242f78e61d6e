// Elements without a framework. Text goes in as text alone: nothing here, and nothing that uses it, parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children. `on…` are listeners, true and false are attributes that stand alone. */
export function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Sets the text where it differs: a screen reader and a selection notice what changes, and nothing else. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/** Makes the parent's children exactly these, moving none that is in its place: the focus stays where it is. */
export function setChildren(parent, children) {
  children.forEach((child, index) => {
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

let names = 0;

/** An id that no other element has. */
export function freshId(stem) {
  names += 1;
  return `${stem}-${names}`;
}

/** A section with a heading that names it; `beside` stands at the heading's right. */
export function section(title, className, beside, ...children) {
  const id = freshId("heading");
  return h("section", { class: `card ${className}`, "aria-labelledby": id },
    h("header", { class: "card-head" }, h("h2", { id }, title), beside ? h("div", { class: "beside" }, beside) : null),
    ...children);
}

/** A field with its visible label. */
export function field(label, control, className = "field") {
  control.id = control.id || freshId("field");
  return h("div", { class: className }, h("label", { for: control.id }, label), control);
}
