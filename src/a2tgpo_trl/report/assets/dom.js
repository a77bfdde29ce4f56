// Elements. Texts become text nodes, never markup.

/** An element: `el("p.note", {title: "…"}, "text", other)`. Children that are null or false are left out. */
function el(what, properties = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag);
  element.classList.add(...classes);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") for (const [key, part] of Object.entries(value)) element.style.setProperty(key, part);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...there(children));
  return element;
}

/** Children in one list, without those that are null or false. */
const there = (children) => children.flat(Infinity).filter((child) => child != null && child !== false);

const fill = (element, ...children) => element.replaceChildren(...there(children));

const byId = (id) => document.getElementById(id);

const MISSING = "–";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const withMinus = (text) => text.replace("-", "−");

/** A number on an axis or in a tooltip, as the report writes it elsewhere: whole ones as they are, others with four significant digits. */
function compact(value) {
  if (!isNumber(value)) return MISSING;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return withMinus(value.toExponential(2));
  return withMinus(String(Number.isInteger(value) ? value : Number(value.toPrecision(4))));
}

/** With two decimals and its sign. */
function signed(value) {
  if (!isNumber(value)) return MISSING;
  const text = withMinus(value.toFixed(2));
  return /[1-9]/.test(text) ? `${value > 0 ? "+" : ""}${text}` : "0.00";
}

const whole = (value) => value.toLocaleString("en");
const plural = (count, noun) => `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;
const tail = (text) => text.slice(text.lastIndexOf("/") + 1);
