// The data of the page, and small ways to build parts of it. Text is always set as text, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);

function element(tag, text = null, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function part(root, name) { return root.querySelector(`[data-part="${name}"]`); }
function control(root, name) { return root.querySelector(`[data-control="${name}"]`); }

function fillSelect(select, texts) {
  select.replaceChildren(...texts.map((text, i) => element("option", text, { value: i })));
}

// A number as the tables of the page show it: two decimals, fewer for large ones, a dash for none.
function shown(value, digits = null) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const places = digits ?? (size < 9.995 ? 2 : size < 99.95 ? 1 : 0);
  const text = value.toFixed(places);
  return Number(text) === 0 ? (0).toFixed(places) : text.replace("-", "−");
}

function place(t) { return shown(t, 3).replace(/0+$/, "").replace(/\.$/, ""); }
